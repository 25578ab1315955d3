package quorum

import (
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// verdict is what a replica decides about a write that arrives.
type verdict uint8

const (
	// verdictMerge: the set is merged as far as the drop rule lets it; acknowledge once the result is durable.
	verdictMerge verdict = iota
	// verdictCovered: the strong lane has taken this write in, by its write id. Acknowledge.
	verdictCovered
	// verdictHeld: the held set's context covers the attempt's dot: it is held, or what superseded it is. Acknowledge
	// once that is durable.
	verdictHeld
	// verdictRefused: something here is stamped at or above the attempt, which would be lost behind it. The coordinator
	// stamps it anew.
	verdictRefused
)

// decide is the accept rule of design.md §7 and §8: what this replica does with a write that arrives, given what it
// holds. The order of the cases is part of the protocol.
//
//  1. A write id that the strong lane covers is acknowledged: it took effect, whatever its stamp.
//  2. A stamp that is not above the strong lane's is refused, repeated messages included: after a strong write only a
//     new stamp may follow it. So is an attempt from before what the replica has promised to the repair watermark. The
//     key's append fence and promise are checked in this same place, with this same answer.
//  3. A dot that the held context covers is acknowledged: the message is late or repeated.
//  4. Unless siblings are kept, a stamp below a held version's is refused, so that a write that is acknowledged is the
//     last one everywhere it was acknowledged.
//  5. All else is merged.
//
// A repair has no attempt that could be refused; the drop rule alone decides what of it survives.
func (v *versions) decide(w *WriteRequest, keeps bool) verdict {
	if w.IsRepair() {
		return verdictMerge
	}
	attempt, _ := w.Set.Holds(w.New)
	switch {
	case v.hasStrong && v.coversID(attempt.ID):
		return verdictCovered
	case v.hasStrong && !attempt.Stamp.After(v.strong.Stamp):
		return verdictRefused
	case attempt.Dot.Time <= v.repair.Promised:
		return verdictRefused
	case v.set.Covers(attempt.Dot):
		return verdictHeld
	case !keeps && v.highest().After(attempt.Stamp) && mutant.Planted != mutant.LateStampAccepted:
		return verdictRefused
	default:
		return verdictMerge
	}
}

// merged returns the held set together with the one that arrived, both as far as the drop rule lets them.
func (v *versions) merged(arrived causal.SiblingSet, keeps bool) causal.SiblingSet {
	return causal.Merge(v.surviving(v.set, keeps), v.surviving(arrived, keeps))
}

// draft is a write that a coordinator wants to make.
type draft struct {
	// id is the write id, zero before the first attempt, whose dot it becomes.
	id causal.Dot
	// context is what the writer had read, nil for a blind write.
	context causal.Vector
	// above is the highest stamp, and base the highest log position, that replicas refused earlier attempts with.
	above   causal.Stamp
	base    causal.Position
	deleted bool
	value   []byte
}

// placement is what became of placing a draft.
type placement uint8

const (
	// placementMade: the new set holds the attempt.
	placementMade placement = iota
	// placementEarly: the clock reading is not above everything held or seen; try again with a later one.
	placementEarly
	// placementFull: the key would have more siblings than the limit allows.
	placementFull
	// placementHealing: this replica has lost rows, so that what its new versions claim to cover may include versions that it
	// does not know.
	placementHealing
	// placementCovered: the strong lane has taken in an earlier attempt of this very write.
	placementCovered
)

// place puts the draft on top of what the coordinator holds, as the attempt with the dot, based on a log position that
// was really appended. A new attempt takes the place of the write's earlier one and keeps the original context.
func (v *versions) place(d *draft, dot causal.Dot, base causal.Position, keeps bool, siblingsMax int) (causal.SiblingSet, placement) {
	if !d.id.IsZero() && v.hasStrong && v.coversID(d.id) {
		return causal.SiblingSet{}, placementCovered
	}
	top := v.highest()
	if d.above.After(top) {
		top = d.above
	}
	// A higher base than this node's own was appended at the replica that it was seen at.
	for _, seen := range [...]causal.Position{d.base, top.Base} {
		if seen.Compare(base) > 0 {
			base = seen
		}
	}
	stamp := causal.Stamp{Base: base, Time: dot.Time, Node: dot.Node}
	if !stamp.After(top) || dot.Time <= v.repair.Promised || v.set.Covers(dot) || d.context.Covers(dot) {
		// A vector covers all of a node's dots up to its entry, so that a reading which was overtaken by a later one
		// of this node would be taken for superseded.
		return causal.SiblingSet{}, placementEarly
	}
	id := d.id
	if id.IsZero() {
		id = dot
	}
	held := v.surviving(v.set, keeps).Drop(func(s causal.Sibling) bool { return s.ID != id })
	set := held.Put(causal.Sibling{
		ID: id, Dot: dot, Stamp: stamp, Deleted: d.deleted, Value: d.value,
	}, d.reads(held, keeps))
	if len(set.Siblings) > siblingsMax && len(set.Siblings) > len(v.set.Siblings) {
		return causal.SiblingSet{}, placementFull
	}
	return set, placementMade
}

// reads returns what the write replaces. Where siblings are kept it is exactly the context that came with it, nothing
// for a blind write. Where the last writer wins it is all that the coordinator holds: the new stamp is above all of
// that, so that no reader could tell, and the set stays small.
func (d *draft) reads(held causal.SiblingSet, keeps bool) causal.Vector {
	if keeps && mutant.Planted != mutant.BlindWriteCovers {
		return d.context
	}
	return held.Context.Join(d.context)
}

// writerContext returns the context that the writer gets back: it covers the write itself and what the write replaced.
// Where siblings were kept beside it whose dots the write's own entry would cover too, the writer gets back what it
// came with instead: overwriting a version unseen would lose it, one more sibling loses nothing.
func (d *draft) writerContext(set causal.SiblingSet, dot causal.Dot, keeps bool) causal.Vector {
	if !keeps || len(set.Siblings) == 1 {
		return set.Context
	}
	own := d.context.With(dot)
	for i := range set.Siblings {
		if s := &set.Siblings[i]; s.Dot != dot && own.Covers(s.Dot) {
			return d.context
		}
	}
	return own
}
