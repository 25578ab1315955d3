package live

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Bounds of what a planner draws.
const (
	calmMin, calmMax = 200 * time.Millisecond, 1200 * time.Millisecond
	holdMin, holdMax = 500 * time.Millisecond, 3500 * time.Millisecond
	// stepMean is about how long a step takes with the calm before it.
	stepMean = 3 * time.Second
	// holdNoMajorityMax bounds a fault that leaves no majority: strong operations cannot succeed meanwhile, and a run
	// that consists of timeouts tells little.
	holdNoMajorityMax = time.Second
	// oneIn is how many faults of a kind that can take any number of nodes spare the majority for each that does not.
	oneIn                = 5
	toggleMin, toggleMax = 100 * time.Millisecond, 400 * time.Millisecond
	skewMin, skewMax     = time.Second, 10 * time.Minute
	// aheadDefault is how far ahead a clock is set under a workload that writes eventually. Versions that were stamped
	// ahead are refused by the other replicas until their own clocks have come there, and the run has to wait for that.
	aheadDefault       = 20 * time.Second
	delayMin, delayMax = 20 * time.Millisecond, 250 * time.Millisecond
)

// Cut is one direction of one link: what From sends does not reach To. Nodes are numbered from 0.
type Cut struct{ From, To int }

// Step is one fault of a plan.
type Step struct {
	// Calm is how long to wait before it.
	Calm time.Duration
	// Fault is one of the faults' names.
	Fault string
	// Nodes are the victims, in order; of a partition, every node that loses a link.
	Nodes []int
	// Cuts are the links that a partition cuts.
	Cuts []Cut
	// Hold is how long the fault stays in force.
	Hold time.Duration
	// Toggle is the pause between two changes of a flapping partition.
	Toggle time.Duration
	// Skew is how far a clock goes wrong, forwards or backwards.
	Skew time.Duration
	// Delay is how long a slow node's frames are held back.
	Delay time.Duration
	// Disk is the disk fault that the injector is asked for.
	Disk string
}

// planConfig is what a plan has to suit.
type planConfig struct {
	nodes    int
	attached bool
	// ahead bounds how far ahead a clock is set.
	ahead time.Duration
	// wipeAfter is how many steps come before the one that takes a disk away, which should have something on it.
	wipeAfter int
	// decks holds the nemeses, each with its faults. Every nemesis gets its turn before one comes again, and so does every
	// fault within a nemesis, so that a short run misses none by chance.
	decks [][]string
}

// planner draws the steps of a run. It is pure: the same random source, decks and cluster size give the same steps.
type planner struct {
	rand *rand.Rand
	planConfig
	turns []int         // nemeses still to come in this round
	left  map[int][]int // by nemesis, faults still to come in this round
	// lows alternates the two kinds of a full disk.
	lows int
	// gone are the nodes whose disk was wiped.
	gone []int
	// made counts the steps.
	made int
}

func newPlanner(r *rand.Rand, cfg planConfig) *planner {
	return &planner{rand: r, planConfig: cfg, left: map[int][]int{}}
}

// wipes reports whether the nemesis takes a disk away.
func (p *planner) wipes(deck int) bool { return slices.Contains(p.decks[deck], Wipe) }

// more reports whether there is a step left: all nemeses come again and again but the one that takes a disk away.
func (p *planner) more() bool {
	return len(p.gone) == 0 || slices.ContainsFunc(all(len(p.decks)), func(deck int) bool { return !p.wipes(deck) })
}

// turn returns the nemesis whose turn it is. There must be one: see more.
func (p *planner) turn() int {
	early := p.made < p.wipeAfter && slices.ContainsFunc(all(len(p.decks)), func(deck int) bool { return !p.wipes(deck) })
	for {
		if len(p.turns) == 0 {
			p.turns = p.rand.Perm(len(p.decks))
		}
		deck := p.turns[0]
		p.turns = p.turns[1:]
		if !p.wipes(deck) || !early && len(p.gone) == 0 {
			return deck
		}
	}
}

// next returns the next step. There must be at least one deck, and a step left.
func (p *planner) next() Step {
	deck := p.turn()
	p.made++
	if len(p.left[deck]) == 0 {
		p.left[deck] = p.rand.Perm(len(p.decks[deck]))
	}
	fault := p.decks[deck][p.left[deck][0]]
	p.left[deck] = p.left[deck][1:]

	s := Step{Calm: p.between(calmMin, calmMax), Fault: fault, Hold: p.between(holdMin, holdMax)}
	switch fault {
	case PartitionHalves, PartitionRing, PartitionBridge, PartitionOneWay, PartitionFlapping:
		p.partition(&s)
	case Kill, Pause, Power:
		p.victims(&s, true)
	case Clock:
		p.victims(&s, false)
		s.Skew = p.skew()
	case Slow:
		p.victims(&s, false)
		s.Delay = p.between(delayMin, delayMax)
	case DiskFull:
		p.diskFull(&s)
	case DiskError:
		s.Disk = diskError
		p.minority(&s)
	case Wipe:
		s.Nodes = p.pick(1)
		p.gone = s.Nodes
	}
	return s
}

// skew draws how wrong a clock goes, ahead or behind.
func (p *planner) skew() time.Duration {
	if p.rand.IntN(2) == 0 {
		return -p.between(skewMin, skewMax)
	}
	return p.between(skewMin, p.ahead)
}

// victims draws a minority, or now and then any number. Where the fault silences its victims the hold is short then.
func (p *planner) victims(s *Step, silences bool) {
	if p.rand.IntN(oneIn) > 0 {
		p.minority(s)
		return
	}
	s.Nodes = p.pick(1 + p.rand.IntN(p.nodes-len(p.gone)))
	if silences && !p.majorityWithout(len(s.Nodes)) {
		s.Hold = min(s.Hold, holdNoMajorityMax)
	}
}

// minority draws at least one node and, where possible, so few that the others are a majority.
func (p *planner) minority(s *Step) {
	most := max(1, (p.nodes-1)/2)
	s.Nodes = p.pick(1 + p.rand.IntN(most))
	if !p.majorityWithout(len(s.Nodes)) {
		s.Hold = min(s.Hold, holdNoMajorityMax)
	}
}

// majorityWithout reports whether the nodes that are left are a majority without so many of them.
func (p *planner) majorityWithout(count int) bool {
	return 2*(p.nodes-len(p.gone)-count) > p.nodes
}

// diskFull takes turns between too little space, upon which a node refuses writes, and none, upon which it may have to stop.
func (p *planner) diskFull(s *Step) {
	p.lows++
	s.Disk = diskLow
	if p.lows%2 == 0 && !p.attached {
		s.Disk = diskFull
	}
	p.minority(s)
}

// pick draws count nodes, in order.
func (p *planner) pick(count int) []int {
	out := p.order()[:count]
	slices.Sort(out)
	return out
}

// order returns the nodes that are left, in any order.
func (p *planner) order() []int {
	return slices.DeleteFunc(p.rand.Perm(p.nodes), func(i int) bool { return slices.Contains(p.gone, i) })
}

func (p *planner) between(low, high time.Duration) time.Duration {
	return (low + time.Duration(p.rand.Int64N(int64(high-low)+1))).Round(time.Millisecond)
}

// partition draws the cuts.
func (p *planner) partition(s *Step) {
	order := p.order()
	switch s.Fault {
	case PartitionHalves, PartitionFlapping:
		half := p.half(len(order))
		s.Cuts = apart(order[:half], order[half:])
		if s.Fault == PartitionFlapping {
			s.Toggle = p.between(toggleMin, toggleMax)
		}
	case PartitionRing:
		s.Cuts = ring(order)
	case PartitionBridge:
		// order[0] is the bridge. Of two nodes one is the other's only peer, and nothing can be a bridge.
		rest := order[1:]
		if len(order) == 2 {
			rest = order
		}
		s.Cuts = apart(rest[:len(rest)/2], rest[len(rest)/2:])
	case PartitionOneWay:
		mute := p.rand.IntN(2) == 0
		for _, other := range order[1:] {
			cut := Cut{From: order[0], To: other}
			if !mute {
				cut = Cut{From: other, To: order[0]}
			}
			s.Cuts = append(s.Cuts, cut)
		}
	}
	slices.SortFunc(s.Cuts, compareCuts)
	s.Nodes = touched(s.Cuts)
	if 2*(largest(p.nodes, s.Cuts)-len(p.gone)) <= p.nodes {
		s.Hold = min(s.Hold, holdNoMajorityMax)
	}
}

// half is the size of the smaller group. An even number of nodes is split evenly every other time only: otherwise no group
// would ever have a majority.
func (p *planner) half(nodes int) int {
	if nodes > 2 && nodes%2 == 0 && p.rand.IntN(2) == 0 {
		return nodes/2 - 1
	}
	return nodes / 2
}

func compareCuts(a, b Cut) int {
	if a.From != b.From {
		return a.From - b.From
	}
	return a.To - b.To
}

// apart cuts all links between two groups.
func apart(a, b []int) []Cut {
	var cuts []Cut
	for _, x := range a {
		for _, y := range b {
			cuts = append(cuts, Cut{From: x, To: y}, Cut{From: y, To: x})
		}
	}
	return cuts
}

// ring leaves each node the links to as many neighbours as make a majority with itself. Of three nodes, or two, the
// neighbours are all there are; then one link is cut, which also leaves everybody a majority where there are three.
func ring(order []int) []Cut {
	n := len(order)
	reach := (n/2 + 1) / 2 // 2*reach+1 nodes are a majority
	if 2*reach+1 >= n {
		return apart(order[:1], order[1:2])
	}
	var cuts []Cut
	for i := range n {
		for j := i + 1; j < n; j++ {
			if distance := min(j-i, n-(j-i)); distance > reach {
				cuts = append(cuts, apart(order[i:i+1], order[j:j+1])...)
			}
		}
	}
	return cuts
}

// touched returns the nodes that the cuts concern, in order.
func touched(cuts []Cut) []int {
	var out []int
	for _, c := range cuts {
		out = append(out, c.From, c.To)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// largest returns how many nodes the best-connected node can talk to in both directions, itself included.
func largest(nodes int, cuts []Cut) int {
	best := 0
	for i := range nodes {
		seen := 0
		for j := range nodes {
			if !slices.Contains(cuts, Cut{From: i, To: j}) && !slices.Contains(cuts, Cut{From: j, To: i}) {
				seen++
			}
		}
		best = max(best, seen)
	}
	return best
}
