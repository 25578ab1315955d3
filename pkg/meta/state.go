package meta

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// stateFormat is the version of State's stored form. A node refuses to read another one.
const stateFormat = 1

// Genesis is what a cluster is created with. It never changes afterwards.
type Genesis struct {
	// ClusterID is random, never 0, and tells clusters apart that were given the same names.
	ClusterID uint64 `json:"cluster_id"`
	// Partitions is Q, the number of partitions of the key space.
	Partitions int `json:"partitions"`
	// Replicas is N, the number of replicas of a partition.
	Replicas int `json:"replicas"`
	// InitialMembers names the members that bootstrapped group 0, in the order of their NodeIDs.
	InitialMembers []string `json:"initial_members"`
}

// Member is one node as group 0 knows it.
type Member struct {
	ID   kv.NodeID `json:"id"`
	Name string    `json:"name"`
	// Disk identifies the data directory that the NodeID was given to. 0 until the node has registered.
	Disk   uint64 `json:"disk"`
	HTTP   string `json:"http"`
	GRPC   string `json:"grpc"`
	Gossip string `json:"gossip"`
	RESP   string `json:"resp,omitempty"`
	Zone   string `json:"zone,omitempty"`
	DC     string `json:"dc,omitempty"`
}

// Registered reports whether the node itself has confirmed its membership.
func (m Member) Registered() bool { return m.Disk != 0 }

// State is the state of group 0. A published State is immutable; Apply makes a new one.
type State struct {
	Format  int      `json:"format"`
	Genesis Genesis  `json:"genesis"`
	Members []Member `json:"members"` // sorted by ID
	// Map is the partition map in force; its epoch is 0 before the first one.
	Map ring.Map `json:"map"`
	// Policies is sorted by prefix.
	Policies []kv.Policy `json:"policies"`
	// PolicyEpoch grows with each change of Policies.
	PolicyEpoch uint64 `json:"policy_epoch"`
	// Fences say how keys stand between the lanes, sorted by prefix. PolicyEpoch grows with each change of them too.
	Fences []Fence `json:"fences,omitempty"`
	// Floor is a reading up to which no replica accepts an eventual write: see advance.Floor.
	Floor causal.HLC `json:"floor,omitempty"`
}

// Formed reports whether the cluster has its identity.
func (s *State) Formed() bool { return s.Genesis.ClusterID != 0 }

// Ready reports whether there is a partition map to route by.
func (s *State) Ready() bool { return s.Map.Epoch != 0 }

// Member finds a member by id.
func (s *State) Member(id kv.NodeID) (Member, bool) {
	i, ok := slices.BinarySearchFunc(s.Members, id, func(m Member, id kv.NodeID) int { return cmp.Compare(m.ID, id) })
	if !ok {
		return Member{}, false
	}
	return s.Members[i], true
}

// PolicyFor returns the policy with the longest prefix of key, and false when none matches.
func (s *State) PolicyFor(key []byte) (kv.Policy, bool) {
	best := -1
	for i := range s.Policies {
		if bytes.HasPrefix(key, s.Policies[i].Prefix) && (best < 0 || len(s.Policies[i].Prefix) > len(s.Policies[best].Prefix)) {
			best = i
		}
	}
	if best < 0 {
		return kv.Policy{}, false
	}
	return s.Policies[best], true
}

// HasTTL reports whether any policy has a time to live.
func (s *State) HasTTL() bool {
	return slices.ContainsFunc(s.Policies, func(p kv.Policy) bool { return p.TTL != 0 })
}

// nodes lists the members for placement.
func (s *State) nodes() []ring.Node {
	out := make([]ring.Node, 0, len(s.Members))
	for _, m := range s.Members {
		out = append(out, ring.Node{ID: m.ID, Zone: m.Zone, DC: m.DC, Weight: 1})
	}
	return out
}

// clone copies what Apply may change. Maps and policies are replaced whole, never edited in place.
func (s *State) clone() *State {
	out := *s
	out.Members = slices.Clone(s.Members)
	out.Policies = slices.Clone(s.Policies)
	out.Fences = slices.Clone(s.Fences)
	return &out
}

func decodeState(b []byte) (*State, error) {
	s := &State{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("meta: stored state: %w", err)
	}
	if s.Format != stateFormat {
		return nil, fmt.Errorf("meta: stored state has format %d; this version reads %d", s.Format, stateFormat)
	}
	return s, nil
}
