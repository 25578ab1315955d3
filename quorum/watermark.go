package quorum

import (
	"context"
	"errors"
	"sync"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// What the repair watermark (package antientropy) asks of a replica. The replica's promise and watermark are read under the
// key's stripe, so that Flush, which passes every stripe, knows of all that was accepted before a promise.

func errQuarantined(p kv.PartitionID) error {
	return kv.Errorf(kv.CodeNotReady, "the replica's rows of partition %d are damaged and being replaced", p).WithOutcome(kv.OutcomeNotApplied)
}

func errHealing(p kv.PartitionID) error {
	return kv.Errorf(kv.CodeNotReady, "the replica has lost rows of partition %d and is being repaired by the others", p).WithOutcome(kv.OutcomeNotApplied)
}

// errLost is wrapped by the error of a replica that has answered and does not count.
var errLost = errors.New("has lost rows")

func errUncounted(p kv.PartitionID, node kv.NodeID) error {
	return kv.Errorf(kv.CodeNotReady, "node %d %w of partition %d and does not count until it was compared with the other replicas", node, errLost, p)
}

// clearest returns which of two failures of replicas to tell the user of: the later one, unless the earlier one is that a
// replica has lost rows. Replicas that are down explain themselves.
func clearest(was, is error) error {
	if errors.Is(was, errLost) {
		return was
	}
	return is
}

// current returns the set that arrived without the versions from before the watermark that are not held: everything from
// then was here, so that they have been superseded, and what superseded them may be gone.
func (v *versions) current(arrived causal.SiblingSet) causal.SiblingSet {
	mark := v.repair.Committed
	if mark == 0 || mutant.Planted == mutant.LateDotAccepted {
		return arrived
	}
	kept := arrived.Drop(func(s causal.Sibling) bool {
		_, held := v.set.Holds(s.Dot)
		return held || s.Dot.Time > mark
	})
	if len(kept.Siblings) == 0 && v.set.IsZero() && kept.Context.Latest() <= mark && !v.lags(kept) {
		return causal.SiblingSet{} // nothing is left to cover that could still arrive
	}
	return kept
}

// unsealed returns what arrived without the versions that are not held: none is left that the strong lane has not taken in, so that
// they have been replaced, and what replaced them may be gone.
func (v *versions) unsealed(arrived causal.SiblingSet) causal.SiblingSet {
	return arrived.Drop(func(s causal.Sibling) bool {
		_, held := v.set.Holds(s.Dot)
		return held
	})
}

// errShut is the refusal of an attempt that a policy has come to forbid since the request was admitted.
func errShut() error {
	return kv.Errorf(kv.CodeLevelFenced, "the lanes of the key's prefix are being switched, or are strong-only: no eventual write is taken").
		WithOutcome(kv.OutcomeNotApplied)
}

// refusal returns the stamp that an attempt must be above.
func (v *versions) refusal() causal.Stamp {
	top := v.highest()
	if v.fence.After(top) {
		top = v.fence
	}
	top.Time = max(top.Time, v.promised())
	return top
}

// promised returns the reading up to which the replica takes no attempt.
func (v *versions) promised() causal.HLC { return max(v.repair.Promised, v.pledge) }

// Flush returns once everything that this replica had accepted for the partition is in storage and durable.
func (s *Store) Flush(ctx context.Context, p kv.PartitionID) error {
	var mu sync.Mutex // guards failed
	var failed error
	waiting := 1
	done := make(chan struct{}, 1)
	finish := func(err error) {
		mu.Lock()
		failed = errors.Join(failed, err)
		waiting--
		last := waiting == 0
		mu.Unlock()
		if last {
			done <- struct{}{}
		}
	}
	for i := range s.pending.stripes {
		st := &s.pending.stripes[i]
		st.mu.Lock()
		for id, e := range st.entries {
			if id.partition != p {
				continue
			}
			mu.Lock()
			waiting++
			mu.Unlock()
			if !e.await(durable, finish) {
				mu.Lock()
				waiting--
				mu.Unlock()
			}
		}
		st.mu.Unlock()
	}
	finish(nil)
	select {
	case <-done:
		return failed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Heal merges a set like a repair; while the replica heals, also versions from before the watermark. The caller vouches for
// those: they come from a replica that has lost nothing.
func (s *Store) Heal(w WriteRequest, done func(WriteReply, error)) { s.write(w, true, done) }

// Renounce drops, while the replica heals, the versions of the key from up to the time that theirs does not hold: a replica
// which has lost nothing has been without them since. It calls done like Write.
func (s *Store) Renounce(p kv.PartitionID, key []byte, theirs causal.SiblingSet, upTo causal.HLC, done func(error)) {
	s.change(p, key, false, done, func(v *versions) (causal.SiblingSet, bool) {
		if !v.repair.Healing {
			return v.set, false
		}
		kept := v.set.Drop(func(s causal.Sibling) bool {
			_, held := theirs.Holds(s.Dot)
			return held || s.Dot.Time > upTo
		})
		if len(kept.Siblings) == 0 && kept.Context.Latest() <= upTo && theirs.IsZero() && !v.lags(kept) {
			kept = causal.SiblingSet{}
		}
		return kept, !kept.Equal(v.set)
	})
}

// Rewrite writes what the replica holds of the key again, with its hash in the tree. A row that cannot be read is removed. It
// calls done like Write.
func (s *Store) Rewrite(p kv.PartitionID, key []byte, done func(error)) {
	s.change(p, key, true, done, func(v *versions) (causal.SiblingSet, bool) { return v.set, true })
}

// Collect removes what the replica holds of the key if that is no value and all of it is from before the watermark, and
// reports whether it is gone. applied is how far the partition's log was applied before the call. A tombstone above a value
// of the strong lane stays: it is what hides that value. It calls done like Write.
func (s *Store) Collect(p kv.PartitionID, key []byte, applied uint64, done func(gone bool, err error)) {
	gone := false
	s.change(p, key, false, func(err error) { done(gone && err == nil, err) }, func(v *versions) (causal.SiblingSet, bool) {
		gone = v.set.IsZero() || v.collectable(applied, s.deps.KeepsSiblings(key))
		if gone && !v.set.IsZero() {
			s.metrics.collected.Inc()
		}
		return causal.SiblingSet{}, gone && !v.set.IsZero()
	})
}

// collectable reports whether no replica needs the set any more.
func (v *versions) collectable(applied uint64, keeps bool) bool {
	at, dead := storage.DeadSince(v.set)
	if !dead || v.repair.Healing || at > v.repair.Committed && mutant.Planted != mutant.TombstoneCollectedEarly {
		return false
	}
	if needs(v.set) > applied {
		return false // the state that replaced what is missing has not arrived, and only this row says that it will
	}
	if v.replaced(keeps) && !v.strong.Deleted && mutant.Planted != mutant.TombstoneAboveLive {
		return false
	}
	for i := range v.set.Siblings {
		t := v.set.Siblings[i].Stamp
		// A strong write below the tombstone is at or before its base. Only once that is applied is S known to have none.
		if t.Base.Index > applied {
			return false
		}
		if v.hasStrong && !v.strong.Deleted && !keeps && t.After(v.strong.Stamp) && mutant.Planted != mutant.TombstoneAboveLive {
			return false
		}
	}
	return true
}

// change replaces the content of a key by what decide makes of it, if it says so. A row that cannot be read is none if
// damaged says so.
func (s *Store) change(
	p kv.PartitionID, key []byte, damaged bool, done func(error), decide func(*versions) (causal.SiblingSet, bool),
) {
	e, v, err := s.open(p, key)
	if err != nil && (!damaged || !errors.Is(err, storage.ErrCorruption)) {
		s.close(e)
		done(err)
		return
	}
	e.stripe.mu.Lock()
	v.set = e.load(v.set)
	v.repair = s.deps.State.Repair(p)
	set, changed := decide(v)
	var c *commit
	waiting := true
	if changed {
		if len(set.Siblings) < len(v.set.Siblings) {
			s.lanes.of(p).gone.Add(1)
		}
		raise(&s.lanes.of(p).pruned, set.Pruned)
		c = e.put(set, durable, done)
	} else {
		waiting = e.await(durable, done)
	}
	e.leave()
	e.stripe.mu.Unlock()
	switch {
	case c != nil:
		_ = s.pending.offer(c) // it reports to done
	case !waiting:
		done(nil)
	}
}
