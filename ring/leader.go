package ring

import "slices"

// balanceLeaders reorders owners so that each node is the first of its share of partitions by weight. A partition whose
// first owner can stay keeps it, because every change of a preferred leader is a leader transfer.
func (a *assignment) balanceLeaders() {
	lead := make(loads, len(a.load))
	for _, owners := range a.held {
		lead[owners[0]]++
	}
	// Each round lowers the sum over nodes of 1/w + 2/w + … + lead/w, so the rounds end.
	for a.shiftLead(lead) {
	}
}

// shiftLead passes the lead of one partition from a node that has more than its share to one that has less, through
// others where they share no partition. It returns false when no such chain evens anything out.
func (a *assignment) shiftLead(lead loads) bool {
	n := len(lead)
	// via[u][v] is a partition that u leads and v could.
	via := make([][]int, n)
	for u := range via {
		via[u] = slices.Repeat([]int{none}, n)
	}
	for p, owners := range a.held {
		for _, v := range owners[1:] {
			via[owners[0]][v] = p
		}
	}
	for _, u := range a.byLead(lead) {
		from, order := reach(via, u)
		best := none
		for _, v := range order[1:] {
			if a.evens(lead, u, v) && (best == none || a.compareNext(lead, v, best) < 0) {
				best = v
			}
		}
		if best == none {
			continue
		}
		lead[u]--
		lead[best]++
		for v := best; v != u; v = from[v] {
			a.promote(via[from[v]][v], v)
		}
		return true
	}
	return false
}

// evens reports whether u has more for its weight than v would have with one partition more.
func (a *assignment) evens(lead loads, u, v int) bool {
	return lead[u]*a.l.weight[v] > (lead[v]+1)*a.l.weight[u]
}

// compareNext compares what nodes would lead for their weight with one partition more.
func (a *assignment) compareNext(lead loads, u, v int) int {
	return (lead[u]+1)*a.l.weight[v] - (lead[v]+1)*a.l.weight[u]
}

// byLead returns the nodes, those that lead most for their weight first.
func (a *assignment) byLead(lead loads) []int {
	out := make([]int, len(lead))
	for i := range out {
		out[i] = i
	}
	slices.SortStableFunc(out, func(u, v int) int { return lead[v]*a.l.weight[u] - lead[u]*a.l.weight[v] })
	return out
}

// reach returns the nodes that can be reached from u, nearest first, and from where each was reached.
func reach(via [][]int, u int) (from, order []int) {
	from = slices.Repeat([]int{none}, len(via))
	order = []int{u}
	for i := 0; i < len(order); i++ {
		for v, p := range via[order[i]] {
			if p != none && v != u && from[v] == none {
				from[v] = order[i]
				order = append(order, v)
			}
		}
	}
	return from, order
}

// promote makes v the first owner of partition p and moves those before it back by one.
func (a *assignment) promote(p, v int) {
	owners := a.held[p]
	i := slices.Index(owners, v)
	copy(owners[1:i+1], owners[:i])
	owners[0] = v
}
