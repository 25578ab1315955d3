package quorum

import (
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// versions is what is known of a key: its state in the strong lane and its sibling set in the eventual one, as one
// replica holds them or as several were merged.
type versions struct {
	hasStrong bool
	strong    storage.Strong
	set       causal.SiblingSet
	// repair is what the replica has promised and finished of the partition's repair.
	repair storage.RepairState
	// fence is the lowest stamp that entries of the log, applied or not, leave to eventual versions of the key: they must be
	// above it. pledge is the reading up to which the replica has promised to take no attempt on it (see Store.Peek).
	fence  causal.Stamp
	pledge causal.HLC
	// shut says that no attempt on the key may be accepted, sealed that no repair may bring a version either.
	shut, sealed bool
	// now is the reading by which it is judged what has expired; zero: nothing has.
	now causal.HLC
	// forgotten is the time up to which this node may have forgotten dots of its own.
	forgotten causal.HLC
}

// add merges what another replica holds.
func (v *versions) add(r *ReadReply) {
	if r.HasStrong && (!v.hasStrong || r.Strong.Revision > v.strong.Revision) {
		// The log orders the states of the strong lane; the newest one says what the others did not know yet.
		v.hasStrong, v.strong = true, r.Strong
	}
	v.set = causal.Merge(v.set, r.Set)
}

// lags reports whether the set knows of a state of the strong lane that is newer than the one known here, so that the two together may
// lack a version that was acknowledged, or have one twice.
func (v *versions) lags(set causal.SiblingSet) bool { return needs(set) > v.strong.Revision }

// needs returns the log index of the newest state of the strong lane that the set is to be read with: one that it was pruned by, or
// that a version in it has replaced or taken in.
func needs(set causal.SiblingSet) uint64 { return max(set.Pruned, set.Context.Log()) }

// covers is the drop rule (design.md §8): whether the strong lane's state has taken in or replaced the sibling. Under a
// resolver that keeps siblings it goes by write id alone, else siblings vanish that no strong write ever saw.
func (v *versions) covers(s *causal.Sibling, keeps bool) bool {
	if !v.hasStrong {
		return false
	}
	if !keeps && !s.Stamp.After(v.strong.Stamp) {
		return true
	}
	return v.coversID(s.ID)
}

// coversID reports whether the strong lane's state has taken in the write with the id.
func (v *versions) coversID(id causal.Dot) bool {
	return id.Time <= v.strong.Before || slices.Contains(v.strong.Covered, id)
}

// surviving returns the set without the siblings that the drop rule discards. The context stays, so that what was
// dropped does not come back, and carries the revision of the state that dropped it: a replica which merges the set before
// it has applied that state must not take what is missing for what never was.
func (v *versions) surviving(set causal.SiblingSet, keeps bool) causal.SiblingSet {
	if !v.hasStrong {
		return set
	}
	return set.Prune(func(s causal.Sibling) bool { return !v.covers(&s, keeps) }, v.strong.Revision)
}

// highest returns the highest stamp of all that is known of the key, the zero stamp when nothing is.
func (v *versions) highest() causal.Stamp {
	var top causal.Stamp
	if v.hasStrong {
		top = v.strong.Stamp
	}
	if s, ok := v.set.Latest(); ok && s.Stamp.After(top) {
		top = s.Stamp
	}
	return top
}

// visible returns the eventual versions that a reader sees: those that the strong lane's state has neither taken in nor, where the
// last writer wins, replaced by its stamp.
func (v *versions) visible(keeps bool) []causal.Sibling {
	set := v.surviving(v.set, keeps)
	if mutant.Planted == mutant.HiddenBelowStrong && v.hasStrong {
		set = set.Drop(func(s causal.Sibling) bool { return s.Stamp.After(v.strong.Stamp) })
	}
	return set.Siblings
}

// replaced reports whether an eventual write has replaced the strong lane's state, under a resolver that keeps versions: one whose
// writer had seen that state, or that took it in. A stamp does not say that, since every write is stamped above the states
// that its coordinator knows.
func (v *versions) replaced(keeps bool) bool {
	return keeps && v.hasStrong && v.set.Covers(causal.LogDot(v.strong.Revision))
}

// state returns the strong lane's state as one more version, which stands beside those that neither took it in nor replaced it;
// false when there is none, or no value in it.
func (v *versions) state(keeps bool) (causal.Sibling, bool) {
	if !keeps || !v.hasStrong || v.strong.Deleted || v.replaced(keeps) || mutant.Planted == mutant.HiddenBelowStrong {
		return causal.Sibling{}, false
	}
	at := v.strong.Stamp
	dot := causal.Dot{Node: at.Node, Time: at.Time}
	s := causal.Sibling{ID: dot, Dot: dot, Stamp: at, Value: v.strong.Value, Expiry: v.strong.Expiry}
	return s, !s.ExpiredAt(v.now)
}

// seen returns the versions that a reader sees, with those that have expired as the tombstones that they have become; none if there
// are no eventual ones, when the strong lane's state is all there is.
func (v *versions) seen(keeps bool) []causal.Sibling {
	visible := v.visible(keeps)
	if len(visible) == 0 {
		return nil
	}
	out := visible
	for i := range visible {
		if !visible[i].ExpiredAt(v.now) || mutant.Planted == mutant.ExpiredReturned {
			continue
		}
		if &out[0] == &visible[0] {
			out = slices.Clone(visible)
		}
		s := &out[i]
		s.Deleted, s.Value, s.State, s.Expiry = true, nil, false, 0
	}
	if s, beside := v.state(keeps); beside {
		out = append(out[:len(out):len(out)], s)
	}
	return out
}

// context returns what a reader has seen of the key.
func (v *versions) context(keeps bool) causal.Vector {
	if keeps && v.hasStrong {
		return v.set.Context.With(causal.LogDot(v.strong.Revision))
	}
	return v.set.Context
}

// expires reports whether it matters to a reader what the time is.
func (v *versions) expires() bool {
	return v.strong.Expiry != 0 || slices.ContainsFunc(v.set.Siblings, func(s causal.Sibling) bool { return s.Expiry != 0 })
}

// live reports whether a reader would find a value.
func (v *versions) live(r Resolver) bool {
	visible := v.seen(r.KeepsSiblings())
	switch {
	case len(visible) == 0:
		return v.hasStrong && !v.strong.Deleted && !v.replaced(r.KeepsSiblings())
	case r.KeepsSiblings():
		return slices.ContainsFunc(visible, func(s causal.Sibling) bool { return !s.Deleted })
	default:
		return !r.Resolve(visible).Deleted
	}
}

// resolve fills in what a reader is answered: the strong lane's state if there is nothing else, else what the resolver makes of the
// versions that a reader sees.
func (v *versions) resolve(res *kv.Response, r Resolver, mode kv.SiblingMode) error {
	visible := v.seen(r.KeepsSiblings())
	if len(visible) == 0 {
		res.Settled = true
		if v.hasStrong && !v.strong.Deleted && !v.replaced(r.KeepsSiblings()) {
			res.Found, res.Value, res.Version = true, v.strong.Value, v.strong.Revision
			res.Timestamp = v.strong.Stamp.Time.Time()
			res.Expires = expiryTime(v.strong.Expiry)
		}
		return nil
	}
	_, leaves := r.(Siblings)
	concurrent := leaves && len(visible) > 1 &&
		slices.ContainsFunc(visible, func(s causal.Sibling) bool { return !s.Deleted })
	if concurrent {
		switch mode {
		case kv.SiblingsError:
			return kv.Errorf(kv.CodeSiblings, "the key has %d concurrent versions", len(visible))
		case kv.SiblingsResolve:
			res.Concurrent = len(visible)
		case kv.SiblingsDefault, kv.SiblingsAll:
			res.Siblings = siblings(visible)
			res.Found = true
		}
	}
	winner := v.combine(r, visible)
	if res.Siblings == nil && !winner.Deleted {
		res.Found, res.Value, res.Expires = true, winner.Value, expiryTime(winner.Expiry)
	}
	if res.Found {
		res.Timestamp = winner.Stamp.Time.Time()
	}
	return nil
}

// combine returns what the resolver makes of the versions that are seen, as a user reads it: without what the strong lane's state has
// counted of them before.
func (v *versions) combine(r Resolver, seen []causal.Sibling) causal.Sibling {
	winner := r.Resolve(seen)
	if winner.State && len(v.strong.Base) > 0 {
		base, _ := decodeTallies(v.strong.Base)
		all, _ := decodeTallies(winner.Value)
		winner.Value = all.less(base).encode()
	}
	return plain(winner)
}

// expiryTime returns when a value expires as answers carry it.
func expiryTime(at causal.HLC) (t time.Time) {
	if at != 0 {
		t = at.Time()
	}
	return t
}

// siblings returns the versions as answers carry them.
func siblings(versions []causal.Sibling) []kv.Sibling {
	out := make([]kv.Sibling, len(versions))
	for i := range versions {
		s := plain(versions[i])
		out[i] = kv.Sibling{Value: s.Value, Deleted: s.Deleted, Timestamp: s.Stamp.Time.Time(), Node: s.Dot.Node}
	}
	return out
}
