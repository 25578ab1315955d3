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
	// FaultSkew sets one node's wall clock off by up to ten minutes either way.
	FaultSkew Fault = "skew"
	// FaultPause holds back what one node sends and is sent, and what it answers its clients; then everything comes at
	// once, stale. It is no real stop: the node's own timers run on, so that it may know sooner than a stopped one that
	// it was away.
	FaultPause Fault = "pause"
	// FaultDisk fails the next write or sync of one node's log, which must end the node; it starts again from its disk.
	FaultDisk Fault = "disk"
	// FaultSlowDisk makes the log of one node take long to become durable.
	FaultSlowDisk Fault = "slow-disk"
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
