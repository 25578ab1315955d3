package kv

// NodeID identifies a node for the life of the cluster. It is assigned by group 0 and never reused, not even after the
// node's disk was wiped: dots and Raft votes are unique only as long as the id is.
type NodeID uint64

// NoNode is the NodeID of no node.
const NoNode NodeID = 0

// PartitionID numbers a partition of the key space, from 0 to Q−1.
type PartitionID uint16

// GroupID numbers a Raft group. Group 0 holds the metadata; group p+1 replicates partition p.
type GroupID uint32

// MetaGroup is the Raft group of members, partition map and policies.
const MetaGroup GroupID = 0

// Group returns the Raft group that replicates the partition.
func (p PartitionID) Group() GroupID { return GroupID(p) + 1 }

// Partition returns the partition that the group replicates, and false for the metadata group.
func (g GroupID) Partition() (PartitionID, bool) {
	if g == MetaGroup {
		return 0, false
	}
	return PartitionID(g - 1), true
}

// Epoch numbers the versions of the partition map. It only grows. Epoch 0 means "no map yet".
type Epoch uint64
