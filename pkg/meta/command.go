package meta

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// command is one entry of group 0: exactly one of its fields is set.
type command struct {
	Genesis      *Genesis   `json:"genesis,omitempty"`
	Register     *Member    `json:"register,omitempty"`
	Map          *ring.Map  `json:"map,omitempty"`
	PutPolicy    *kv.Policy `json:"put_policy,omitempty"`
	DeletePolicy *[]byte    `json:"delete_policy,omitempty"`
	// Advance ends one fence's passing, Refence begins what the policies ask for and an older version did not know of.
	Advance *advance  `json:"advance,omitempty"`
	Refence *struct{} `json:"refence,omitempty"`
}

// reply is what a command answers. It crosses the network when the command was forwarded.
type reply struct {
	Code   kv.Code `json:"code,omitempty"`
	Detail string  `json:"detail,omitempty"`
	// PolicyEpoch is State.PolicyEpoch after the command. A node whose own epoch has reached it has seen the change.
	PolicyEpoch uint64 `json:"policy_epoch,omitempty"`
}

func (r reply) err() error {
	if r.Code == "" {
		return nil
	}
	return kv.Errorf(r.Code, "%s", r.Detail)
}

func refuse(format string, args ...any) reply {
	return reply{Code: kv.CodeBadRequest, Detail: fmt.Sprintf(format, args...)}
}

// errCommand means that an entry of group 0 cannot be read: skipping it would let replicas diverge.
var errCommand = errors.New("meta: unreadable command in the log of group 0")

// apply returns the state after the command, which is s itself when the command changes nothing. It is pure.
func apply(s *State, raw []byte) (*State, reply, error) {
	var c command
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields() // an older node must stop, not diverge
	if err := dec.Decode(&c); err != nil {
		return nil, reply{}, fmt.Errorf("%w: %w", errCommand, err)
	}
	switch {
	case c.Genesis != nil:
		next, r := applyGenesis(s, *c.Genesis)
		return next, r, nil
	case c.Register != nil:
		next, r := applyRegister(s, *c.Register)
		return next, r, nil
	case c.Map != nil:
		next, r := applyMap(s, *c.Map)
		return next, r, nil
	case c.PutPolicy != nil:
		next, r := applyPutPolicy(s, *c.PutPolicy)
		return next, r, nil
	case c.DeletePolicy != nil:
		next, r := applyDeletePolicy(s, *c.DeletePolicy)
		return next, r, nil
	case c.Advance != nil:
		next, r := applyAdvance(s, *c.Advance)
		return next, r, nil
	case c.Refence != nil:
		next, r := applyRefence(s)
		return next, r, nil
	}
	return nil, reply{}, fmt.Errorf("%w: it has no content", errCommand)
}

// applyGenesis gives the cluster its identity. Two leaders in a row may both propose one; the first wins.
func applyGenesis(s *State, g Genesis) (*State, reply) {
	if s.Formed() {
		return s, reply{}
	}
	next := s.clone()
	next.Format = stateFormat
	next.Genesis = g
	for i, name := range g.InitialMembers {
		next.Members = append(next.Members, Member{ID: kv.NodeID(i + 1), Name: name})
	}
	return next, reply{}
}

// applyRegister records where a member listens and which disk its id belongs to.
func applyRegister(s *State, m Member) (*State, reply) {
	i := slices.IndexFunc(s.Members, func(o Member) bool { return o.ID == m.ID })
	switch {
	case !s.Formed():
		return s, refuse("the cluster has not been formed yet")
	case i < 0:
		return s, refuse("node id %d (%s) is not a member of this cluster", m.ID, m.Name)
	case s.Members[i].Name != m.Name:
		return s, refuse("node id %d belongs to %s, not to %s", m.ID, s.Members[i].Name, m.Name)
	case s.Members[i].Registered() && s.Members[i].Disk != m.Disk:
		return s, refuse("%s lost its disk: node id %d belongs to another data directory and is never reused", m.Name, m.ID)
	case s.Members[i] == m:
		return s, reply{}
	}
	next := s.clone()
	next.Members[i] = m
	return next, reply{}
}

// applyMap replaces the partition map by its successor.
func applyMap(s *State, m ring.Map) (*State, reply) {
	if m.Epoch != s.Map.Epoch+1 {
		return s, refuse("the map's epoch is %d, so the next is %d, not %d", s.Map.Epoch, s.Map.Epoch+1, m.Epoch)
	}
	if err := m.Validate(); err != nil {
		return s, refuse("invalid partition map: %v", err)
	}
	next := s.clone()
	next.Map = m
	return next, reply{}
}

func applyPutPolicy(s *State, p kv.Policy) (*State, reply) {
	if s.Formed() {
		if _, err := p.Quorum.Resolve(kv.Quorum{N: s.Genesis.Replicas, R: 1, W: 1}, s.Genesis.Replicas); err != nil {
			return s, reply{Code: kv.CodeOf(err), Detail: kv.AsError(err).Detail}
		}
	}
	next := s.clone()
	i, found := slices.BinarySearchFunc(next.Policies, p.Prefix, comparePolicy)
	if found {
		next.Policies[i] = p
	} else {
		next.Policies = slices.Insert(next.Policies, i, p)
	}
	next.PolicyEpoch++
	next.refence()
	return next, reply{}
}

func applyDeletePolicy(s *State, prefix []byte) (*State, reply) {
	i, found := slices.BinarySearchFunc(s.Policies, prefix, comparePolicy)
	if !found {
		return s, reply{}
	}
	next := s.clone()
	next.Policies = slices.Delete(next.Policies, i, i+1)
	next.PolicyEpoch++
	next.refence()
	return next, reply{}
}

func comparePolicy(p kv.Policy, prefix []byte) int { return bytes.Compare(p.Prefix, prefix) }
