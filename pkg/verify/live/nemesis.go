package live

import (
	"fmt"
	"slices"
	"strings"
)

// The faults. A step of a plan has one of them.
const (
	// PartitionHalves splits the nodes in two groups that do not hear each other.
	PartitionHalves = "partition-halves"
	// PartitionRing leaves each node its neighbours on a ring: everybody sees a majority, no two see the same one.
	PartitionRing = "partition-ring"
	// PartitionBridge splits the nodes in two groups that only one node hears both of.
	PartitionBridge = "partition-bridge"
	// PartitionOneWay cuts the links of one node in one direction.
	PartitionOneWay = "partition-one-way"
	// PartitionFlapping makes and mends halves several times a second.
	PartitionFlapping = "partition-flapping"
	// Kill ends processes by SIGKILL and starts them again.
	Kill = "kill"
	// Pause stops processes by SIGSTOP and has them go on by SIGCONT.
	Pause = "pause"
	// Power kills processes whose disks then lose what had not been synced.
	Power = "power"
	// Wipe kills one process and takes its disk away, once in a run. It must refuse to serve under its old id, so that the node
	// is gone for the rest of the run.
	Wipe = "wipe"
	// Clock moves the wall clocks of nodes by up to ten minutes.
	Clock = "clock"
	// Slow delays what nodes exchange with their peers.
	Slow = "slow"
	// DiskFull takes the space away from a node's disk.
	DiskFull = "disk-full"
	// DiskError has a node's next write to its log fail, upon which the node must stop by itself.
	DiskError = "disk-error"
)

// Nemeses that stand for several faults, or for none.
const (
	nemesisNone      = "none"
	nemesisPartition = "partition"
	nemesisAll       = "all"
)

// wipeNodesMin is how many nodes there must be for one to be taken away.
const wipeNodesMin = 3

// nemesis is what a user can ask for: a name, and the faults that take turns under it.
type nemesis struct {
	name   string
	faults []string
	// attached: it needs no control over the processes.
	attached bool
	// peers: it needs a node to be cut off from.
	peers bool
	// lasting: its victim does not come back. Not part of nemesisAll.
	lasting bool
}

// nemeses lists them in the order in which help texts do.
func nemeses() []nemesis {
	partitions := []string{PartitionHalves, PartitionRing, PartitionBridge, PartitionOneWay, PartitionFlapping}
	out := []nemesis{{name: nemesisPartition, faults: partitions, attached: true, peers: true}}
	for _, p := range partitions {
		out = append(out, nemesis{name: p, faults: []string{p}, attached: true, peers: true})
	}
	for _, f := range []string{Kill, Pause, Power} {
		out = append(out, nemesis{name: f, faults: []string{f}})
	}
	return append(out,
		nemesis{name: Clock, faults: []string{Clock}, attached: true},
		nemesis{name: Slow, faults: []string{Slow}, attached: true, peers: true},
		nemesis{name: DiskFull, faults: []string{DiskFull}, attached: true},
		nemesis{name: DiskError, faults: []string{DiskError}},
		nemesis{name: Wipe, faults: []string{Wipe}, lasting: true},
	)
}

// Nemeses names everything that Config.Nemeses may hold.
func Nemeses() []string {
	out := []string{nemesisNone}
	for _, n := range nemeses() {
		out = append(out, n.name)
	}
	return append(out, nemesisAll)
}

// choose returns the decks of faults that the names ask for, one deck for each nemesis.
func choose(names []string, nodes int, attached bool) ([][]string, error) {
	var decks [][]string
	known := nemeses()
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		if name == nemesisNone {
			continue
		}
		if name == nemesisAll {
			return chooseAll(nodes, attached)
		}
		i := slices.IndexFunc(known, func(n nemesis) bool { return n.name == name })
		switch {
		case i < 0:
			return nil, fmt.Errorf("%q is not a nemesis; the nemeses are %s", name, strings.Join(Nemeses(), ", "))
		case attached && !known[i].attached:
			return nil, fmt.Errorf("%q needs control over the processes, which a cluster that runs already does not give; possible are %s",
				name, strings.Join(attachable(), ", "))
		case known[i].peers && nodes == 1:
			return nil, fmt.Errorf("%q needs at least 2 nodes", name)
		case known[i].lasting && nodes < wipeNodesMin:
			return nil, fmt.Errorf("%q needs at least %d nodes: its victim is gone for good, and the others must be a majority", name, wipeNodesMin)
		}
		decks = append(decks, known[i].faults)
	}
	return decks, nil
}

// chooseAll returns every nemesis that the cluster allows, the partitions as one.
func chooseAll(nodes int, attached bool) ([][]string, error) {
	var decks [][]string
	for _, n := range nemeses() {
		single := n.name != nemesisPartition && strings.HasPrefix(n.name, nemesisPartition)
		if single || n.lasting || attached && !n.attached || n.peers && nodes == 1 {
			continue
		}
		decks = append(decks, n.faults)
	}
	return decks, nil
}

func attachable() []string {
	out := []string{nemesisNone}
	for _, n := range nemeses() {
		if n.attached {
			out = append(out, n.name)
		}
	}
	return append(out, nemesisAll)
}
