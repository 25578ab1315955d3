package ring

import (
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// PartitionsMax is the number of partitions that a PartitionID can tell apart.
const PartitionsMax = 1 << 16

// Map says which nodes own which partition. It is the state of group 0, and read everywhere: whoever wants to change
// one changes a Clone.
type Map struct {
	// Epoch is the version of the map. Every peer request carries it.
	Epoch kv.Epoch `json:"epoch"`
	// Replicas is the number of owners of each partition, N.
	Replicas int `json:"replicas"`
	// Partitions is indexed by PartitionID. Its length never changes once the cluster exists.
	Partitions []Partition `json:"partitions"`
}

// Partition is where one partition lives.
type Partition struct {
	// Replicas are the owners in order of preference: the first is the preferred leader.
	Replicas []kv.NodeID `json:"replicas"`
}

// PartitionOf returns the partition of the key.
func (m *Map) PartitionOf(key []byte) kv.PartitionID { return PartitionOf(key, len(m.Partitions)) }

// Owners returns the preference list of the partition, nil for a partition that does not exist. It is not to be changed.
func (m *Map) Owners(p kv.PartitionID) []kv.NodeID {
	if int(p) >= len(m.Partitions) {
		return nil
	}
	return m.Partitions[p].Replicas
}

// Owns reports whether the node owns a replica of the partition.
func (m *Map) Owns(p kv.PartitionID, node kv.NodeID) bool { return slices.Contains(m.Owners(p), node) }

// Clone returns a copy that shares nothing with m.
func (m *Map) Clone() Map {
	out := *m
	out.Partitions = slices.Clone(m.Partitions)
	for i := range out.Partitions {
		out.Partitions[i].Replicas = slices.Clone(out.Partitions[i].Replicas)
	}
	return out
}

// Validate checks that every partition has Replicas distinct owners.
func (m *Map) Validate() error {
	switch {
	case m.Epoch == 0:
		return fmt.Errorf("ring: the map has no epoch")
	case m.Replicas < 1:
		return fmt.Errorf("ring: the map has %d replicas a partition", m.Replicas)
	case len(m.Partitions) < 1 || len(m.Partitions) > PartitionsMax:
		return fmt.Errorf("ring: the map has %d partitions; it must have 1 to %d", len(m.Partitions), PartitionsMax)
	}
	for p := range m.Partitions {
		owners := m.Partitions[p].Replicas
		if len(owners) != m.Replicas {
			return fmt.Errorf("ring: partition %d has %d owners, not %d", p, len(owners), m.Replicas)
		}
		for i, n := range owners {
			if n == kv.NoNode || slices.Contains(owners[:i], n) {
				return fmt.Errorf("ring: partition %d lists node %d, which is no node or listed twice", p, n)
			}
		}
	}
	return nil
}

// Move is what has to happen to the replicas of one partition to get from one map to another.
type Move struct {
	Partition kv.PartitionID `json:"partition"`
	Add       []kv.NodeID    `json:"add"`    // in the new order of preference
	Remove    []kv.NodeID    `json:"remove"` // in the old order of preference
}

// Diff returns the moves from one map to another, by partition. A partition whose owners only changed their order needs
// none.
func Diff(from, to Map) []Move {
	var out []Move
	for i := range max(len(from.Partitions), len(to.Partitions)) {
		p := kv.PartitionID(i)
		before, after := from.Owners(p), to.Owners(p)
		m := Move{Partition: p, Add: missing(after, before), Remove: missing(before, after)}
		if len(m.Add) > 0 || len(m.Remove) > 0 {
			out = append(out, m)
		}
	}
	return out
}

// missing returns the elements of a that b lacks.
func missing(a, b []kv.NodeID) []kv.NodeID {
	var out []kv.NodeID
	for _, n := range a {
		if !slices.Contains(b, n) {
			out = append(out, n)
		}
	}
	return out
}
