package quorum

import (
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
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
	// verdictShut: no eventual version of the key may be accepted at present, whatever its stamp.
	verdictShut
)

// decide is the accept rule of design.md §7 and §8, in the order of ADR 0009: what this replica does with a write that arrives,
// given what it holds. The order of the cases is part of the protocol.
//
//  1. A write id that the strong lane covers is acknowledged: it took effect, whatever its stamp.
//  2. While the policy lets no eventual write in, none is acknowledged, not even one that was sent before (ADR 0014).
//  3. A stamp that is not above the strong lane's, or above the key's fence, is refused, repeated messages included: after a
//     strong write, which may be in the log only, only a new stamp may follow it. So is an attempt from before what the
//     replica has promised, for the key or to the repair watermark.
//  4. Unless siblings are kept, a stamp below a held version's is refused, so that a write that is acknowledged is the
//     last one everywhere it was acknowledged. A context that covers it is no excuse: a repair may have brought that.
//  5. A dot that the held context covers is acknowledged: the message is late or repeated.
//  6. All else is merged.
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
	case v.shut && mutant.Planted != mutant.LateEpochAccepted:
		return verdictShut
	case mutant.Planted == mutant.CoveredBeforeFence && v.set.Covers(attempt.Dot):
		return verdictHeld
	case v.hasStrong && !attempt.Stamp.After(v.strong.Stamp), !attempt.Stamp.After(v.fence):
		return verdictRefused
	case attempt.Dot.Time <= v.promised():
		return verdictRefused
	case !keeps && v.highest().After(attempt.Stamp) && mutant.Planted != mutant.LateStampAccepted:
		return verdictRefused
	case v.set.Covers(attempt.Dot):
		return verdictHeld
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
	// context is what the writer had read, nothing for a blind write.
	context causal.Seen
	// above is the highest stamp, and base the highest log position, that replicas refused earlier attempts with.
	above   causal.Stamp
	base    causal.Position
	deleted bool
	value   []byte
	// waited is how long the write has waited for a position that it may be based on.
	waited time.Duration
	// blind says that the write came without a context, rather than with one of a reader that found nothing.
	blind bool
	// ttl is how long the value is there, 0 for ever; expiry is when that ends, which its first attempt decides.
	ttl    time.Duration
	expiry causal.HLC
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
	// placementBehind: what the write has to follow is in the log, in a term of which nothing is known to be committed: it may
	// still come to nothing, and a stamp based on it would then stand above what is committed in its place.
	placementBehind
	// placementCovered: the strong lane has taken in an earlier attempt of this very write.
	placementCovered
	// placementShut: no eventual version of the key may be accepted at present.
	placementShut
	// placementImpossible: the resolver can make nothing of the write.
	placementImpossible
	// placementOver: the write's first attempt is so long ago that its request must be over.
	placementOver
)

// AttemptSpan is the longest time between the first attempt of a write and its last: a request's, and a little for clocks. What is
// below the repair watermark by more than that has all its attempts below it.
const AttemptSpan = kv.RequestTimeoutMax + 5*time.Second

// place puts the draft on top of what the coordinator holds, as the attempt with the dot, based on a log position that
// was really appended. A new attempt takes the place of the write's earlier one and keeps the original context.
//
// The error goes with placementImpossible, and is a *kv.Error.
func (v *versions) place(
	d *draft, dot causal.Dot, base causal.Position, r Resolver, siblingsMax int,
) (causal.SiblingSet, placement, error) {
	keeps := r.KeepsSiblings()
	if !d.id.IsZero() && v.hasStrong && v.coversID(d.id) {
		return causal.SiblingSet{}, placementCovered, nil
	}
	if !d.id.IsZero() && dot.Time.Millis()-d.id.Time.Millis() > AttemptSpan.Milliseconds() {
		return causal.SiblingSet{}, placementOver, nil
	}
	if v.shut {
		return causal.SiblingSet{}, placementShut, nil
	}
	top := v.highest()
	// A higher base than this node's own was taken, by the same rule, at the replica that it was seen at. That of a fence
	// was not: it is where some entry is.
	for _, seen := range [...]causal.Position{d.base, top.Base} {
		if seen.Compare(base) > 0 {
			base = seen
		}
	}
	for _, seen := range [...]causal.Stamp{v.fence, d.above} {
		if seen.After(top) {
			top = seen
		}
	}
	if top.Base.Compare(base) > 0 && mutant.Planted != mutant.BaseGuessed {
		return causal.SiblingSet{}, placementBehind, nil
	}
	stamp := causal.Stamp{Base: base, Time: dot.Time, Node: dot.Node}
	if !stamp.After(top) || dot.Time <= v.promised() || v.set.Covers(dot) || d.context.Covers(dot) {
		// A vector covers all of a node's dots up to its entry, so that a reading which was overtaken by a later one
		// of this node would be taken for superseded.
		return causal.SiblingSet{}, placementEarly, nil
	}
	s := causal.Sibling{ID: d.id, Dot: dot, Stamp: stamp, Deleted: d.deleted, Value: d.value, Expiry: d.expiry}
	if mutant.Planted == mutant.RestampNewID {
		s.ID = dot
	}
	if d.id.IsZero() {
		s.ID = dot
		if d.ttl > 0 {
			s.Expiry = causal.MakeHLC(dot.Time.Millis()+d.ttl.Milliseconds(), 0)
		}
	}
	expiry := s.Expiry
	if f, ok := r.(Folder); ok && !d.deleted {
		if err := v.fold(&s, d, f); err != nil {
			return causal.SiblingSet{}, placementImpossible, err
		}
	}
	// A dot that was seen by itself is dropped here, where it is held. The set's vector covers it already and is not made to
	// cover more: versions beside it that this node has not seen would be taken for superseded.
	held := v.surviving(v.set, keeps).Drop(func(h causal.Sibling) bool {
		return h.ID != s.ID && !slices.Contains(d.context.Dots, h.Dot)
	})
	set := held.Put(s, d.reads(held, r, v.strong.Revision))
	if len(set.Siblings) > siblingsMax && len(set.Siblings) > len(v.set.Siblings) {
		return causal.SiblingSet{}, placementFull, nil
	}
	d.expiry = expiry
	return set, placementMade, nil
}

// fold makes of the sibling what the resolver makes of the draft and the live versions that it takes in, the strong lane's state among
// them.
func (v *versions) fold(s *causal.Sibling, d *draft, r Folder) error {
	now := s.Dot.Time
	visible := v.visible(true)
	held := make([]causal.Sibling, 0, len(visible)+1)
	for _, h := range visible {
		if !h.Deleted && !h.ExpiredAt(now) && (d.blind || !d.context.Covers(h.Dot)) {
			held = append(held, h)
		}
	}
	if h, beside := v.state(true); beside && !h.ExpiredAt(now) && (d.blind || !d.context.Covers(causal.LogDot(v.strong.Revision))) {
		held = append(held, h)
	}
	value, err := r.Fold(Fold{Value: d.value, Again: !d.id.IsZero(), Held: held, Dot: s.Dot, Last: v.last(s.Dot.Node)})
	if err != nil {
		return err
	}
	s.Value = value
	_, s.State = r.(Counter)
	if s.Expiry != 0 && len(held) > 0 {
		if held := latestExpiry(held); held == 0 || held > s.Expiry {
			s.Expiry = held
		}
	}
	return nil
}

// last returns the node's last dot in the set, zero if it might have had a later one that was forgotten.
func (v *versions) last(node kv.NodeID) causal.Dot {
	for _, d := range v.set.Context {
		if d.Node == node && d.Time > v.forgotten {
			return d
		}
	}
	return causal.Dot{}
}

// reads returns what the write replaces, where the strong lane's state has the revision. Where siblings are kept it is exactly the
// context that came with it; for a blind write the resolver says whether that is all or nothing. What was folded into the write it
// replaces. Where the last writer wins it is all that the coordinator holds: the new stamp is above all of that, so that no reader
// could tell, and the set stays small.
//
// A state that this node has not applied is not replaced, whatever the writer says to have seen: an index that came from outside may be
// another cluster's. The write then stands beside it, which loses nothing.
func (d *draft) reads(held causal.SiblingSet, r Resolver, revision uint64) causal.Vector {
	keeps := r.KeepsSiblings()
	all := !keeps || d.blind && r.Blind() != BlindStays || !d.deleted && r.Blind() == BlindFolds
	seen := d.context.Vector.LogUpTo(revision)
	if !all && mutant.Planted != mutant.BlindWriteCovers {
		return seen
	}
	seen = held.Context.Join(seen)
	if keeps && revision > 0 {
		seen = seen.With(causal.LogDot(revision))
	}
	return seen
}

// writerContext returns the context that the writer gets back: what it came with, and its own write. What it had seen by itself
// and this node's set covers is gone from there, and from wherever its own write comes, so that it need not be said again:
// the context does not grow with the writes. Where nothing stands beside the write, it is what the write replaced.
func (d *draft) writerContext(set causal.SiblingSet, dot causal.Dot, keeps bool) causal.Seen {
	missed := make([]causal.Dot, 0, len(d.context.Dots)+1)
	for _, seen := range d.context.Dots {
		if !set.Covers(seen) {
			missed = append(missed, seen)
		}
	}
	if !keeps || len(set.Siblings) == 1 {
		return causal.Seen{Vector: set.Context}.With(missed...)
	}
	return causal.Seen{Vector: d.context.Vector}.With(append(missed, dot)...)
}
