package ring

import "slices"

// search finds the cheapest chain of exchanges: u gives its replica of a partition to v, v gives one of another
// partition to w, and so on, so that in the end only the loads of the first and the last node change. It is the
// augmenting path of a flow, with nodes as vertices. A shortest chain never uses one partition twice in a way that
// would break its spread, because such a chain could be cut short.
type search struct {
	a    *assignment
	edge [][]exchange // by giver and taker
	dist []int        // cost of the cheapest chain that ends at the node
	from []int        // the giver before it in that chain
}

// exchange is one way for a giver to hand a replica to a taker.
type exchange struct {
	partition int // none when there is no way
	cost      int
}

const (
	// costOfMove outweighs the length of any chain: less data moved is better than fewer exchanges.
	costOfMove = 1 << 20
	unreached  = 1 << 60
)

func (a *assignment) newSearch() *search {
	n := len(a.load)
	s := &search{a: a, edge: make([][]exchange, n), dist: make([]int, n), from: make([]int, n)}
	for u := range n {
		s.edge[u] = slices.Repeat([]exchange{{partition: none}}, n)
		s.dist[u] = unreached
		s.from[u] = none
	}
	for p := range a.held {
		for _, u := range a.held[p] {
			s.addEdges(p, u)
		}
	}
	return s
}

// addEdges notes to whom u could hand its replica of partition p.
func (s *search) addEdges(p, u int) {
	for v := range s.edge[u] {
		known := s.edge[u][v]
		cost := s.a.moveCost(p, u, v)
		if known.partition != none && known.cost <= cost || slices.Contains(s.a.held[p], v) {
			continue
		}
		// Within a zone the spread stays as it is.
		if s.a.l.zoneOf[u] == s.a.l.zoneOf[v] || s.a.fits(p, u, v) {
			s.edge[u][v] = exchange{partition: p, cost: cost}
		}
	}
}

// start lets chains begin at the node.
func (s *search) start(v, cost int) { s.dist[v] = cost * costOfMove }

// run returns the node at the end of the cheapest chain among those that accept, none if no chain reaches one.
// Of equally cheap ends the emptiest wins.
func (s *search) run(accepts func(int) bool) int {
	// Bellman–Ford: no cost is negative, so as many rounds as there are nodes settle every distance.
	for range s.dist {
		changed := false
		for u, du := range s.dist {
			if du == unreached {
				continue
			}
			for v, e := range s.edge[u] {
				if d := du + e.cost*costOfMove + 1; e.partition != none && d < s.dist[v] {
					s.dist[v], s.from[v] = d, u
					changed = true
				}
			}
		}
		if !changed {
			break
		}
	}
	end := none
	for v, d := range s.dist {
		if d == unreached || !accepts(v) {
			continue
		}
		if end == none || d < s.dist[end] || d == s.dist[end] && s.a.compareLoad(v, end) < 0 {
			end = v
		}
	}
	return end
}

// apply carries out the chain that ends at the node and returns the node where it begins.
func (a *assignment) apply(s *search, end int) int {
	v := end
	for s.from[v] != none {
		u := s.from[v]
		p := s.edge[u][v].partition
		a.remove(p, u)
		a.add(p, v)
		v = u
	}
	return v
}
