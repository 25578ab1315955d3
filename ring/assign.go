package ring

import (
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// assignment is a placement in the making. Nodes are indexes into the layout.
type assignment struct {
	l *layout
	// held lists the owners of each partition in order of preference.
	held [][]int
	// load counts the replicas of each node. Invariant: it agrees with held.
	load loads
	// was lists who owned each partition in the map that is being rebalanced; keeping a replica there moves no data.
	was [][]int

	// Scratch of fits, by zone and by data center.
	zoneCount, zoneNeed, zoneRoom []int
}

// none stands for no node where a node is expected.
const none = -1

func newAssignment(l *layout) *assignment {
	return &assignment{
		l:         l,
		held:      make([][]int, l.q),
		was:       make([][]int, l.q),
		load:      make(loads, len(l.ids)),
		zoneCount: make([]int, len(l.zone)),
		zoneNeed:  make([]int, len(l.dc)),
		zoneRoom:  make([]int, len(l.dc)),
	}
}

// adopt takes over what can stay of an earlier map: replicas whose node is still there, less what breaks the spread.
func (a *assignment) adopt(prev Map) {
	index := make(map[kv.NodeID]int, len(a.l.ids))
	for i, id := range a.l.ids {
		index[id] = i
	}
	for p := range prev.Partitions {
		for _, id := range prev.Partitions[p].Replicas {
			if i, ok := index[id]; ok {
				a.was[p] = append(a.was[p], i)
				a.add(p, i)
			}
		}
	}
	for p := range a.held {
		for !a.fits(p, none, none) {
			a.remove(p, a.worst(p))
		}
	}
}

// worst returns the owner that partition p should lose: one whose loss leaves the least to mend, and among those the
// most loaded.
func (a *assignment) worst(p int) int {
	best, bestCost := none, 0
	for _, u := range a.held[p] {
		cost := a.misfit(p, u)
		if best == none || cost < bestCost || cost == bestCost && a.compareLoad(u, best) > 0 {
			best, bestCost = u, cost
		}
	}
	return best
}

// compareLoad compares how full nodes are for their share.
func (a *assignment) compareLoad(u, v int) int {
	// load[u]/ceil[u] against load[v]/ceil[v]. A ceil is at least 1 unless a node may hold nothing at all.
	x, y := a.load[u]*max(a.l.ceil[v], 1), a.load[v]*max(a.l.ceil[u], 1)
	return x - y
}

func (a *assignment) add(p, v int) {
	a.held[p] = append(a.held[p], v)
	a.load[v]++
}

func (a *assignment) remove(p, u int) {
	i := slices.Index(a.held[p], u)
	a.held[p] = slices.Delete(a.held[p], i, i+1)
	a.load[u]--
}

// fits reports whether partition p, with one owner replaced by another (either may be none), is within the spans or
// can be brought there by only adding owners.
func (a *assignment) fits(p, without, with int) bool {
	count := a.count(p, without, with)
	return count <= a.l.n && a.open(a.l.n-count) == 0
}

// misfit measures how far partition p without the owner is from fitting.
func (a *assignment) misfit(p, without int) int {
	count := a.count(p, without, none)
	return max(count-a.l.n, 0) + a.open(max(a.l.n-count, 0))
}

// count fills zoneCount for partition p with one owner replaced, and returns the number of owners.
func (a *assignment) count(p, without, with int) int {
	clear(a.zoneCount)
	count := 0
	for _, u := range a.held[p] {
		if u != without {
			a.zoneCount[a.l.zoneOf[u]]++
			count++
		}
	}
	if with != none {
		a.zoneCount[a.l.zoneOf[with]]++
		count++
	}
	return count
}

// open returns how many replicas too many or unplaceable there are if holes more are added to what zoneCount holds; 0
// means that the spans can be met. Zones nest in data centers, so checking each level from below is exact.
func (a *assignment) open(holes int) int {
	l := a.l
	clear(a.zoneNeed)
	clear(a.zoneRoom)
	over, need, room := 0, 0, 0
	dcCount := func(d int) int {
		t := 0
		for z, of := range l.dcOf {
			if of == d {
				t += a.zoneCount[z]
			}
		}
		return t
	}
	for z, c := range a.zoneCount {
		over += max(c-l.zone[z].hi, 0)
		a.zoneNeed[l.dcOf[z]] += max(l.zone[z].lo-c, 0)
		a.zoneRoom[l.dcOf[z]] += max(l.zone[z].hi-c, 0)
	}
	for d := range l.dc {
		c := dcCount(d)
		over += max(c-l.dc[d].hi, 0)
		dcNeed := max(a.zoneNeed[d], l.dc[d].lo-c)
		dcRoom := min(a.zoneRoom[d], max(l.dc[d].hi-c, 0))
		over += max(dcNeed-dcRoom, 0)
		need += dcNeed
		room += dcRoom
	}
	return over + max(need-holes, 0) + max(holes-room, 0)
}

// fill gives partition p the owners that it lacks. It walks the ring for the first node that fits and is below its
// load in the first of the limits, then in the next; when all that fit are full, replicas of other partitions are
// exchanged until one is not.
func (a *assignment) fill(p int, limits ...loads) error {
	for len(a.held[p]) < a.l.n {
		v := a.firstBelow(p, limits)
		if v == none && !a.exchangeInto(p, limits[len(limits)-1]) {
			return fmt.Errorf("ring: no node is left for a replica of partition %d", p)
		}
		if v != none {
			a.add(p, v)
		}
	}
	return nil
}

func (a *assignment) firstBelow(p int, limits []loads) int {
	order := a.l.walk(p)
	for _, limit := range limits {
		for _, v := range order {
			if a.load[v] < limit[v] && !slices.Contains(a.held[p], v) && a.fits(p, none, v) {
				return v
			}
		}
	}
	return none
}

// exchangeInto gives partition p one more owner, a full one, which hands a replica of another partition on to a node
// that is not full, directly or through others.
func (a *assignment) exchangeInto(p int, limit loads) bool {
	s := a.newSearch()
	for v := range a.load {
		if !slices.Contains(a.held[p], v) && a.fits(p, none, v) {
			s.start(v, a.moveCost(p, none, v))
		}
	}
	end := s.run(func(v int) bool { return a.load[v] < limit[v] })
	if end == none {
		return false
	}
	a.add(p, a.apply(s, end))
	return true
}

// relieve takes replicas from nodes above the limit.
func (a *assignment) relieve(limit loads) {
	for {
		over := a.nodesWhere(func(v int) bool { return a.load[v] > limit[v] })
		if len(over) == 0 {
			return
		}
		if !a.shift(over, func(v int) bool { return a.load[v] < a.l.floor[v] }) &&
			!a.shift(over, func(v int) bool { return a.load[v] < a.l.ceil[v] }) &&
			!a.shift(over, func(v int) bool { return a.load[v] < limit[v] }) {
			return
		}
	}
}

// feed gives replicas to nodes that are more than slack short of their share, until they have it.
func (a *assignment) feed(slack int) {
	starved := make([]bool, len(a.load))
	for v := range a.load {
		starved[v] = a.load[v] < a.l.floor[v]-slack
	}
	hungry := func(v int) bool { return starved[v] && a.load[v] < a.l.floor[v] }
	for len(a.nodesWhere(hungry)) > 0 {
		above := a.nodesWhere(func(v int) bool { return a.load[v] > a.l.ceil[v] })
		if a.shift(above, hungry) {
			continue
		}
		above = a.nodesWhere(func(v int) bool { return a.load[v] > a.l.floor[v] })
		if !a.shift(above, hungry) {
			return
		}
	}
}

func (a *assignment) nodesWhere(is func(int) bool) []int {
	var out []int
	for v := range a.load {
		if is(v) {
			out = append(out, v)
		}
	}
	return out
}

// shift moves one replica from one of the sources to a node that accepts, through others where it must.
func (a *assignment) shift(sources []int, accepts func(int) bool) bool {
	if len(sources) == 0 {
		return false
	}
	s := a.newSearch()
	for _, v := range sources {
		s.start(v, 0)
	}
	end := s.run(accepts)
	if end == none {
		return false
	}
	a.apply(s, end)
	return true
}

// moveCost is what it costs in data to replace u by v as an owner of partition p: one replica, unless v had it all
// along or u was not going to keep it.
func (a *assignment) moveCost(p, u, v int) int {
	if slices.Contains(a.was[p], v) || u != none && !slices.Contains(a.was[p], u) {
		return 0
	}
	return 1
}

func (a *assignment) toMap(epoch kv.Epoch) Map {
	m := Map{Epoch: epoch, Replicas: a.l.n, Partitions: make([]Partition, a.l.q)}
	for p := range a.held {
		for _, i := range a.held[p] {
			m.Partitions[p].Replicas = append(m.Partitions[p].Replicas, a.l.ids[i])
		}
	}
	return m
}
