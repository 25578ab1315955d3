package meta

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Probe is what a node with an empty disk asks the other initial members before it takes part in group 0. A node whose
// disk was wiped must not vote under its old id: it has forgotten the votes and the entries that others count on.
type Probe struct {
	ID      kv.NodeID `json:"id"`
	Name    string    `json:"name"`
	Disk    uint64    `json:"disk"`
	Genesis Genesis   `json:"genesis"` // without a ClusterID
}

// ProbeReply answers a Probe. An empty Refusal means that the answering node knows nothing against the asking one.
type ProbeReply struct {
	Refusal string `json:"refusal,omitempty"`
}

// AnswerProbe decides what this node, configured with genesis and knowing the state, says to a probing one. It is pure.
func AnswerProbe(s *State, genesis Genesis, p Probe) ProbeReply {
	if s.Formed() {
		genesis = s.Genesis
	}
	switch {
	case !slices.Equal(genesis.InitialMembers, p.Genesis.InitialMembers):
		return ProbeReply{Refusal: "the lists of initial members differ: give every node the same --initial-members"}
	case genesis.Partitions != p.Genesis.Partitions:
		return ProbeReply{Refusal: "the numbers of partitions differ: give every node the same --partitions"}
	case genesis.Replicas != p.Genesis.Replicas:
		return ProbeReply{Refusal: "the numbers of replicas differ: give every node the same --n"}
	}
	m, ok := s.Member(p.ID)
	if ok && m.Registered() && m.Disk != p.Disk {
		return ProbeReply{Refusal: p.Name + " is already a member with another data directory; a node id is never reused, " +
			"so restore that directory or give the cluster a node with a new name"}
	}
	return ProbeReply{}
}
