package sim

import (
	"slices"
	"time"
)

// Fault is a kind of trouble.
type Fault string

// The faults. Each ends after a while, but for FaultWipe.
const (
	// FaultCut isolates one node.
	FaultCut Fault = "cut"
	// FaultHalves separates the nodes from all others.
	FaultHalves Fault = "halves"
	// FaultRing leaves every node a majority that it sees, and no two of them the same one. The nodes are the ring in order.
	// It needs five nodes; with fewer a plan holds FaultBridge instead.
	FaultRing Fault = "ring"
	// FaultBridge separates two halves that only the first node sees both of. The rest follows, one half after the other.
	FaultBridge Fault = "bridge"
	// FaultOneWay silences the direction from the first node to the second.
	FaultOneWay Fault = "one-way"
	// FaultFlapping separates the nodes from all others, and mends and makes the cut again many times.
	FaultFlapping Fault = "flapping"
	// FaultKill ends one node at once, as kill -9 does, and starts it again.
	FaultKill Fault = "kill"
	// FaultPower cuts one node's power: what was not synced survives in part.
	FaultPower Fault = "power"
	// FaultBlackout cuts everybody's power at one instant.
	FaultBlackout Fault = "blackout"
	// FaultNoise makes the whole network lose, double, delay and reorder.
	FaultNoise Fault = "noise"
	// FaultSlow makes the direction from the first node to the second slow.
	FaultSlow Fault = "slow"
	// FaultSkew sets one node's wall clock off by up to ten minutes either way, or by hours where the scenario says so.
	FaultSkew Fault = "skew"
	// FaultPause holds back what one node sends and is sent, and what it answers its clients; then everything comes at
	// once, stale. It is no real stop: the node's own timers run on, so that it may know sooner than a stopped one that
	// it was away.
	FaultPause Fault = "pause"
	// FaultDisk fails the next write or sync of one node's log, which must end the node; it starts again from its disk.
	FaultDisk Fault = "disk"
	// FaultSlowDisk makes the log of one node take long to become durable.
	FaultSlowDisk Fault = "slow-disk"
	// FaultFull lets the disk of one node say that it has no space: the node refuses writes of its clients until it has. Plans
	// have it where they name it.
	FaultFull Fault = "full"
	// FaultRot takes rows of the eventual lane away from under one running node, or turns a bit of them. It meets the same node
	// throughout a plan, and plans have it where they name it.
	FaultRot Fault = "rot"
	// FaultWipe ends one node and empties its disk. It comes back and must refuse to serve, so that it is gone for good:
	// only a plan that permits it has it.
	FaultWipe Fault = "wipe"
)

// Faults lists the faults that a cluster gets over.
func Faults() []Fault {
	return []Fault{
		FaultCut, FaultHalves, FaultRing, FaultBridge, FaultOneWay, FaultFlapping, FaultKill, FaultPower, FaultBlackout,
		FaultNoise, FaultSlow, FaultSkew, FaultPause, FaultDisk, FaultSlowDisk,
	}
}

// stops reports whether the fault ends nodes.
func (f Fault) stops() bool {
	return slices.Contains([]Fault{FaultKill, FaultPower, FaultBlackout, FaultDisk, FaultWipe}, f)
}

// pair is a direction between two nodes, from 0.
type pair struct{ from, to int }

// cuts adds the directions that the step silences. A flapping cut that is mended just now silences none.
func (s *Step) cuts(nodes int, out map[pair]bool) {
	both := func(a, b int) { out[pair{a, b}], out[pair{b, a}] = true, true }
	switch s.Fault {
	case FaultOneWay:
		out[pair{s.Nodes[0], s.Nodes[1]}] = true
	case FaultCut, FaultHalves, FaultFlapping:
		for i := range nodes {
			for _, j := range s.Nodes {
				if !slices.Contains(s.Nodes, i) {
					both(i, j)
				}
			}
		}
	case FaultBridge:
		half := 1 + (nodes-1)/2
		for _, i := range s.Nodes[1:half] {
			for _, j := range s.Nodes[half:] {
				both(i, j)
			}
		}
	case FaultRing:
		// Each node sees itself and as many on either side as make a majority.
		reach := (nodes/2 + 1) / 2
		for i := range nodes {
			for j := range i {
				if d := min(i-j, nodes-i+j); d > reach {
					both(s.Nodes[i], s.Nodes[j])
				}
			}
		}
	}
}

// Conditions say how one direction between two nodes behaves.
type Conditions struct {
	// Loss and Duplicate are the probabilities that a batch vanishes, or comes twice.
	Loss, Duplicate float64
	// DelayMin and DelayMax bound how long a batch is under way.
	DelayMin, DelayMax time.Duration
	// Reorder lets batches of one link overtake each other. Without it a slow one holds up those behind it, as TCP does.
	// The second copy of a duplicated batch comes at any time.
	Reorder bool
}

// Calm are the conditions of a local network. There is some delay, because with none at all simulated time would stand
// still for as long as messages beget messages.
func Calm() Conditions {
	return Conditions{DelayMin: 100 * time.Microsecond, DelayMax: time.Millisecond}
}

// tally counts the batches of one direction that a cut swallowed, and those that met conditions of their own.
type tally struct{ cutOff, special uint64 }

// meets counts what a batch of the direction meets. It reports whether that is a cut. The caller holds n.mu.
func (n *Network) meets(d direction) (cut bool) {
	count := n.tallies[d]
	if _, special := n.special[d]; special {
		count.special++
	}
	if _, cut = n.cuts[d]; cut {
		count.cutOff++
		n.stats.CutOff++
	}
	n.tallies[d] = count
	return cut
}

// effect counts what faults of the step's kind have done so far to whom the step is about, but for those that stop nodes.
func (n *nemesis) effect(s *Step) (count uint64) {
	c := n.c
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	switch s.Fault {
	case FaultPause:
		return c.net.held[c.nodes[s.Nodes[0]].id]
	case FaultSkew:
		return c.nodes[s.Nodes[0]].misread.Load()
	case FaultRot:
		return c.nodes[s.Nodes[0]].rotten.Load()
	case FaultFull:
		if l := c.nodes[s.Nodes[0]].life.Load(); l != nil {
			return l.faults.Stats().Low
		}
		return 0
	case FaultSlowDisk:
		return c.nodes[s.Nodes[0]].pace.slowed.Load()
	case FaultNoise:
		return c.net.stats.Lost + c.net.stats.Duplicated + c.net.stats.Overtaken
	case FaultSlow:
		return c.net.tallies[direction{c.nodes[s.Nodes[0]].id, c.nodes[s.Nodes[1]].id}].special
	}
	cut := map[pair]bool{}
	s.cuts(len(c.nodes), cut)
	for p := range cut {
		count += c.net.tallies[direction{c.nodes[p.from].id, c.nodes[p.to].id}].cutOff
	}
	return count
}

// conditions returns what the network is like while the steps are in force: everywhere, and in single directions.
func conditions(active []*Step) (everywhere Conditions, special map[pair]Conditions) {
	everywhere, special = Calm(), map[pair]Conditions{}
	for _, s := range active {
		switch s.Fault {
		case FaultNoise:
			everywhere = Conditions{
				Loss: float64(s.Loss) / 100, Duplicate: float64(s.Duplicate) / 100,
				DelayMin: time.Millisecond, DelayMax: s.Delay, Reorder: true,
			}
		case FaultSlow:
			special[pair{s.Nodes[0], s.Nodes[1]}] = Conditions{DelayMin: s.Delay / 2, DelayMax: s.Delay}
		}
	}
	return everywhere, special
}
