package causal

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/caprockdb/caprock/pkg/mutant"
)

// Sibling is one version of a key that no other held version supersedes.
type Sibling struct {
	// ID is the write's identity for life: the dot of its first attempt. The strong lane covers writes by their ID.
	ID Dot
	// Dot is this attempt's. A write that is stamped again gets a new Dot and keeps its ID.
	Dot     Dot
	Stamp   Stamp
	Deleted bool // a tombstone; Value is then empty
	// State says that Value is the state of a resolver, not what a user wrote (see package quorum).
	State bool
	// Expiry is the reading from which on readers no longer find the value; 0 means never.
	Expiry HLC
	Value  []byte
}

// ExpiredAt reports whether a reader whose clock reads now no longer finds the value.
func (s *Sibling) ExpiredAt(now HLC) bool { return s.Expiry != 0 && s.Expiry <= now }

// compare is a total order over everything in a sibling. Two siblings with one dot are the same write, unless something
// is broken; then the order makes replicas agree instead of keeping the damage apart for ever.
func (s *Sibling) compare(o *Sibling) int {
	if c := s.Dot.Compare(o.Dot); c != 0 {
		return c
	}
	if c := s.Stamp.Compare(o.Stamp); c != 0 {
		return c
	}
	if c := s.ID.Compare(o.ID); c != 0 {
		return c
	}
	if s.Deleted != o.Deleted {
		if s.Deleted {
			return 1
		}
		return -1
	}
	if c := cmp.Compare(s.Expiry, o.Expiry); c != 0 {
		return c
	}
	if s.State != o.State {
		if s.State {
			return 1
		}
		return -1
	}
	return bytes.Compare(s.Value, o.Value)
}

// SiblingSet is the state of one key in the eventual lane: a dotted-version-vector set.
//
// Invariant: Siblings are sorted by Dot without repeats, and Context covers each of their dots. A dot that Context
// covers and that no sibling has is superseded.
type SiblingSet struct {
	Siblings []Sibling
	Context  Vector
	// Pruned is the highest index, in the partition's Raft log, of a state of the strong lane that dropped siblings from the
	// set or from one that was merged into it; 0 is none. What superseded those siblings is in that state only: whoever reads
	// the set reads too little unless the strong lane is applied up to there where it is read. An index is enough, without a
	// term: what was applied is committed, and no two committed entries of a group share an index.
	Pruned uint64
}

// IsZero reports whether nothing was ever written to the set.
func (s SiblingSet) IsZero() bool {
	return len(s.Siblings) == 0 && len(s.Context) == 0 && s.Pruned == 0
}

// Covers reports whether the set has seen the dot: it holds it or it holds what superseded it.
func (s SiblingSet) Covers(d Dot) bool { return s.Context.Covers(d) }

// Holds returns the sibling with the dot.
func (s SiblingSet) Holds(d Dot) (Sibling, bool) {
	for i := range s.Siblings {
		if s.Siblings[i].Dot == d {
			return s.Siblings[i], true
		}
	}
	return Sibling{}, false
}

// Latest returns the sibling with the highest stamp, the last writer; false when the set holds none.
func (s SiblingSet) Latest() (Sibling, bool) {
	if len(s.Siblings) == 0 {
		return Sibling{}, false
	}
	best := &s.Siblings[0]
	for i := 1; i < len(s.Siblings); i++ {
		// Of equal stamps, which only two attempts of one node could share, the higher dot wins on every replica.
		if c := &s.Siblings[i]; !best.Stamp.After(c.Stamp) {
			best = c
		}
	}
	return *best, true
}

// Put returns the set after a write: w replaces exactly the siblings whose dots read covers and stands beside the
// others. read is what the writer had seen: the context it was given, s.Context for a blind write that covers what its
// coordinator holds, nil for a blind write that becomes a sibling.
//
// w.Dot must be new: issued by a clock that is past every reading in s.Context and in read.
func (s SiblingSet) Put(w Sibling, read Vector) SiblingSet {
	out := make([]Sibling, 0, len(s.Siblings)+1)
	placed := false
	for i := range s.Siblings {
		h := &s.Siblings[i]
		if h.Dot == w.Dot || read.Covers(h.Dot) {
			continue
		}
		if !placed && w.Dot.Compare(h.Dot) < 0 {
			out = append(out, w)
			placed = true
		}
		out = append(out, *h)
	}
	if !placed {
		out = append(out, w)
	}
	return SiblingSet{Siblings: out, Context: s.Context.Join(read).With(w.Dot), Pruned: s.Pruned}
}

// Drop returns the set without the siblings that keep refuses. The context stays as it is, so that what was dropped is
// superseded and does not come back from another replica.
func (s SiblingSet) Drop(keep func(Sibling) bool) SiblingSet {
	for i := range s.Siblings {
		if keep(s.Siblings[i]) {
			continue
		}
		out := slices.Clone(s.Siblings[:i])
		for _, h := range s.Siblings[i+1:] {
			if keep(h) {
				out = append(out, h)
			}
		}
		return SiblingSet{Siblings: out, Context: s.Context, Pruned: s.Pruned}
	}
	return s
}

// Prune is Drop for siblings that a state of the strong lane covers, whose log index goes with the set from then on if
// there were any.
func (s SiblingSet) Prune(keep func(Sibling) bool, index uint64) SiblingSet {
	out := s.Drop(keep)
	if len(out.Siblings) < len(s.Siblings) {
		out.Pruned = max(out.Pruned, index)
	}
	return out
}

// Equal reports whether both sets have the same siblings and context, and were pruned up to the same state of the strong
// lane. An absent value equals an empty one.
func (s SiblingSet) Equal(o SiblingSet) bool { return s.Pruned == o.Pruned && s.SameVersions(o) }

// SameVersions reports whether both sets have the same siblings and context.
func (s SiblingSet) SameVersions(o SiblingSet) bool {
	if len(s.Siblings) != len(o.Siblings) || !s.Context.Equal(o.Context) {
		return false
	}
	for i := range s.Siblings {
		if s.Siblings[i].compare(&o.Siblings[i]) != 0 {
			return false
		}
	}
	return true
}

// Merge joins two states of one key: a sibling stays if both sides hold it, or if the side that lacks it has not seen
// it, and the result was pruned as far as either. It is commutative, associative and idempotent. When one side already is
// the result, that side is returned and nothing is allocated.
func Merge(a, b SiblingSet) SiblingSet {
	m := compareSets(a, b)
	if !m.fromB && m.keptA == len(a.Siblings) && a.Context.Dominates(b.Context) && a.Pruned >= b.Pruned {
		return a
	}
	if !m.fromA && m.keptB == len(b.Siblings) && b.Context.Dominates(a.Context) && b.Pruned >= a.Pruned {
		return b
	}
	out := make([]Sibling, 0, m.size)
	walkSets(a, b, func(x, y *Sibling) {
		if w, _ := survivor(a, b, x, y); w != nil {
			out = append(out, *w)
		}
	})
	return SiblingSet{Siblings: out, Context: a.Context.Join(b.Context), Pruned: max(a.Pruned, b.Pruned)}
}

// side says which operand of a merge a sibling comes from.
type side uint8

const (
	sideA side = iota + 1
	sideB
	sideBoth
)

// comparison is what a merge of two sets would do.
type comparison struct {
	size         int  // siblings of the result
	keptA, keptB int  // siblings of a, of b that stay
	fromA, fromB bool // the result has a sibling that only a, only b has
}

func compareSets(a, b SiblingSet) comparison {
	var m comparison
	walkSets(a, b, func(x, y *Sibling) {
		w, from := survivor(a, b, x, y)
		if w == nil {
			return
		}
		m.size++
		if from != sideB {
			m.keptA++
		}
		if from != sideA {
			m.keptB++
		}
		m.fromA = m.fromA || from == sideA
		m.fromB = m.fromB || from == sideB
	})
	return m
}

// survivor decides over one dot: x is a's sibling with it, y is b's, either may be nil. It returns nil when the dot is
// superseded, else the sibling that stays and where it was found.
func survivor(a, b SiblingSet, x, y *Sibling) (*Sibling, side) {
	switch {
	case y == nil:
		if b.Context.Covers(x.Dot) && mutant.Planted != mutant.ContextIgnored {
			return nil, 0
		}
		return x, sideA
	case x == nil:
		if a.Context.Covers(y.Dot) && mutant.Planted != mutant.ContextIgnored {
			return nil, 0
		}
		return y, sideB
	}
	switch c := x.compare(y); {
	case c > 0:
		return x, sideA
	case c < 0:
		return y, sideB
	}
	return x, sideBoth
}

// walkSets calls fn for each dot that either set holds, in order, with the siblings that have it.
func walkSets(a, b SiblingSet, fn func(x, y *Sibling)) {
	i, j := 0, 0
	for i < len(a.Siblings) || j < len(b.Siblings) {
		switch {
		case j == len(b.Siblings):
			fn(&a.Siblings[i], nil)
			i++
			continue
		case i == len(a.Siblings):
			fn(nil, &b.Siblings[j])
			j++
			continue
		}
		x, y := &a.Siblings[i], &b.Siblings[j]
		switch c := x.Dot.Compare(y.Dot); {
		case c < 0:
			fn(x, nil)
			i++
		case c > 0:
			fn(nil, y)
			j++
		default:
			fn(x, y)
			i++
			j++
		}
	}
}
