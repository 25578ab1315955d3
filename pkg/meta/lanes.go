package meta

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// How the keys of a prefix stand between the lanes. A policy says what its keys' lanes are to be; the fences say what every node may
// rely on meanwhile. ADR 0014 has the argument.

// FenceMode is what nodes do with the keys of a fence.
type FenceMode string

const (
	// FenceOpen says that eventual writes are accepted, so that strong operations look for them.
	FenceOpen FenceMode = "open"
	// FenceDraining says that eventual writes are refused, and strong operations still look for those that were accepted before. It ends, once
	// nothing of them is left, as FenceClosed.
	FenceDraining FenceMode = "draining"
	// FenceClosed says that eventual writes are refused, and there are none to look for.
	FenceClosed FenceMode = "closed"
	// FenceOpening says that eventual writes are refused, and strong operations look for them again. It ends, once every node does so, as
	// FenceOpen.
	FenceOpening FenceMode = "opening"
)

// Passing reports whether the mode is one between two others.
func (m FenceMode) Passing() bool { return m == FenceDraining || m == FenceOpening }

// Fence is how the keys of a prefix stand, except those of a longer prefix that has a fence of its own.
type Fence struct {
	Prefix []byte    `json:"prefix"`
	Mode   FenceMode `json:"mode"`
	// Epoch is the policy epoch from which on it is so. No two modes of a prefix have the same one.
	Epoch uint64 `json:"epoch"`
}

// advance ends a mode that is between two others. It does nothing unless the fence still is the one it was decided by.
type advance struct {
	Prefix []byte `json:"prefix"`
	Epoch  uint64 `json:"epoch"`
	// Floor, when a fence opens, is a reading that is later than all that any node had when it last relied on the fence
	// being closed.
	Floor causal.HLC `json:"floor,omitempty"`
}

// FenceOf returns how the key stands. A key without a fence is open.
func (s *State) FenceOf(key []byte) Fence {
	best := Fence{Mode: FenceOpen}
	for i := range s.Fences {
		if f := &s.Fences[i]; len(f.Prefix) >= len(best.Prefix) && bytes.HasPrefix(key, f.Prefix) {
			best = *f
		}
	}
	return best
}

// Passing returns the fences that are between two modes.
func (s *State) Passing() []Fence {
	var out []Fence
	for _, f := range s.Fences {
		if f.Mode.Passing() {
			out = append(out, f)
		}
	}
	return out
}

// ClosedRange reports whether every key with the prefix is closed, and the latest epoch of what says so.
func (s *State) ClosedRange(prefix []byte) (epoch uint64, closed bool) {
	f := s.FenceOf(prefix)
	epoch, closed = f.Epoch, f.Mode == FenceClosed
	for i := range s.Fences {
		if bytes.HasPrefix(s.Fences[i].Prefix, prefix) {
			epoch, closed = max(epoch, s.Fences[i].Epoch), closed && s.Fences[i].Mode == FenceClosed
		}
	}
	return epoch, closed
}

// strongOnly reports whether the policies want the key to have no eventual versions.
func (s *State) strongOnly(key []byte) bool {
	p, _ := s.PolicyFor(key)
	return p.Lanes == kv.LanesStrongOnly
}

// Agrees reports whether the fences are those that the policies ask for, or on the way to them.
func (s *State) Agrees() bool {
	next := s.clone()
	next.refence()
	return slices.EqualFunc(s.Fences, next.Fences, func(a, b Fence) bool { return bytes.Equal(a.Prefix, b.Prefix) && a.Mode == b.Mode })
}

// refence has every key begin to go where the policies want it. The keys between two boundaries, prefixes of a policy or of a
// fence, stand alike before and after, so that each boundary is decided by itself. s must be a clone with the epoch of the change.
func (s *State) refence() {
	was := *s
	var bounds [][]byte
	for i := range s.Policies {
		bounds = append(bounds, s.Policies[i].Prefix)
	}
	for i := range s.Fences {
		bounds = append(bounds, s.Fences[i].Prefix)
	}
	slices.SortFunc(bounds, bytes.Compare)
	bounds = slices.CompactFunc(bounds, bytes.Equal)
	s.Fences = s.Fences[:0:0]
	for _, b := range bounds { // a prefix comes before those that begin with it
		f := was.FenceOf(b)
		f.Prefix = b
		if next := f.Mode.toward(s.strongOnly(b)); next != f.Mode {
			f.Mode, f.Epoch = next, s.PolicyEpoch
		}
		if around := s.FenceOf(b); around.Mode != f.Mode || f.Mode.Passing() && around.Epoch != f.Epoch {
			s.Fences = append(s.Fences, f)
		}
	}
}

// toward returns the first step to what is wanted. A step that has not been finished is taken back at once: nobody relies on what it
// would have led to.
func (m FenceMode) toward(strongOnly bool) FenceMode {
	switch {
	case strongOnly && m == FenceOpen:
		return FenceDraining
	case strongOnly && m == FenceOpening:
		return FenceClosed
	case !strongOnly && m == FenceClosed:
		if mutant.Planted == mutant.OpenedAtOnce {
			return FenceOpen
		}
		return FenceOpening
	case !strongOnly && m == FenceDraining:
		return FenceOpen
	}
	return m
}

func applyAdvance(s *State, a advance) (*State, reply) {
	i := slices.IndexFunc(s.Fences, func(f Fence) bool {
		return bytes.Equal(f.Prefix, a.Prefix) && f.Epoch == a.Epoch && f.Mode.Passing()
	})
	if i < 0 {
		return s, reply{}
	}
	next := s.clone()
	next.PolicyEpoch++
	f := &next.Fences[i]
	f.Epoch = next.PolicyEpoch
	if f.Mode == FenceDraining {
		f.Mode = FenceClosed
	} else {
		f.Mode, next.Floor = FenceOpen, max(next.Floor, a.Floor)
	}
	next.refence()
	return next, reply{}
}

func applyRefence(s *State) (*State, reply) {
	if s.Agrees() {
		return s, reply{}
	}
	next := s.clone()
	next.PolicyEpoch++
	next.refence()
	return next, reply{}
}

// SwitchOf returns the fences of keys that the policy with exactly this prefix decides, and that are between two modes.
func (s *State) SwitchOf(prefix []byte) []Fence {
	var out []Fence
	for _, f := range s.Passing() {
		// The fence's own first key stands for all of it: its boundaries are those of the policies too.
		if p, ok := s.PolicyFor(f.Prefix); ok && bytes.Equal(p.Prefix, prefix) {
			out = append(out, f)
		}
	}
	if f := s.FenceOf(prefix); f.Mode.Passing() && len(f.Prefix) < len(prefix) {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Fence) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return out
}
