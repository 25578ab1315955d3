package quorum

import (
	"maps"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// The repair watermark may not pass what only a hint holds: a replica discards what arrives from behind it, and with that a
// sloppy write which was acknowledged for the hint's sake. Asking every member whether it keeps any was sound, and let one
// dead member that never kept a hint hold up every partition for ever. Who may keep hints of a partition is known:
//
//   - its owners, which keep those of what they coordinate; all of them take part in the watermark anyway;
//   - whoever an owner asked to, for a sloppy write. The owner notes that durably before it asks (Ask), tells it whoever
//     raises the watermark once it has promised, and strikes it out when a watermark has passed that is above all that it had
//     asked that node to keep (Strike), because then that node was asked and had nothing left from up to there;
//   - whoever an owner asked that kept no notes: one of an earlier map, or of before there were notes. A disk that has not
//     kept the partition from its beginning says so (storage.RepairState.HintsAnywhere), until one watermark has passed for
//     which all members answered.
//
// An attempt from up to the promise is not handed to anybody (divert), so that none is after the notes were told. A node that
// is no member any more has nothing to say: nobody takes what it kept.

// hintHolder is a node that was asked to keep hints of a partition.
type hintHolder struct {
	// asked is a reading of the clock from when it was asked last: nothing that it keeps for this node is stamped later.
	asked   causal.HLC
	durable bool
	waiters []func(error)
}

// holder returns the note about the node, a new one if there is none. mu must be held, except in NewHints.
func (s *Hints) holder(p kv.PartitionID, id kv.NodeID) *hintHolder {
	if s.holders[p] == nil {
		s.holders[p] = map[kv.NodeID]*hintHolder{}
	}
	h := s.holders[p][id]
	if h == nil {
		h = &hintHolder{}
		s.holders[p][id] = h
	}
	return h
}

// Ask notes durably that the node may keep hints of the partition stamped up to now, and calls ready, which must not block.
func (s *Hints) Ask(p kv.PartitionID, id kv.NodeID, ready func(error)) {
	s.mu.Lock()
	h := s.holder(p, id)
	h.asked = s.deps.Clock.Last()
	first := !h.durable && len(h.waiters) == 0
	durable := h.durable || mutant.Planted == mutant.HintHolderForgotten
	if !durable {
		h.waiters = append(h.waiters, ready)
	}
	s.mu.Unlock()
	switch {
	case durable:
		ready(nil)
	case first:
		s.note(p, func(err error) { s.noted(p, id, h, err) })
	}
}

// note writes the partition's notes as they are when the batch is filled.
func (s *Hints) note(p kv.PartitionID, done func(error)) {
	err := s.deps.Committer.Commit(func(b *storage.Batch) { b.SetHintHolders(p, s.Holders(p)) }, done)
	if err != nil {
		done(err)
	}
}

// noted tells those who wait for a note that it is durable, or that it may not be.
func (s *Hints) noted(p kv.PartitionID, id kv.NodeID, h *hintHolder, err error) {
	s.mu.Lock()
	waiters := h.waiters
	h.waiters, h.durable = nil, err == nil
	if err != nil && s.holders[p][id] == h {
		delete(s.holders[p], id)
	}
	s.mu.Unlock()
	for _, ready := range waiters {
		ready(err)
	}
}

// Holders returns the nodes that this one has asked to keep hints of the partition and not struck out.
func (s *Hints) Holders(p kv.PartitionID) []kv.NodeID {
	if mutant.Planted == mutant.HintHolderForgotten {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.holders[p]))
}

// Strike strikes out the nodes that were last asked at or before the time, up to which all holders have nothing left. That the
// disk learns of it is not waited for: it may know too many.
func (s *Hints) Strike(p kv.PartitionID, upTo causal.HLC) {
	s.mu.Lock()
	before := len(s.holders[p])
	maps.DeleteFunc(s.holders[p], func(_ kv.NodeID, h *hintHolder) bool { return h.durable && h.asked <= upTo })
	struck := len(s.holders[p]) < before
	s.mu.Unlock()
	if struck {
		s.note(p, func(err error) {
			if err != nil {
				s.deps.Logger.Debug("the notes of who keeps hints stay longer than they are", "partition", p, "error", err)
			}
		})
	}
}
