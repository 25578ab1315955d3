package antientropy

import (
	"errors"

	"github.com/caprockdb/caprock/pkg/kv"
)

// healing is how far a replica that has lost rows has come in getting them back. It is pure, and forgotten when the node
// stops: then the replica asks everybody once more.
type healing struct {
	// losses is how often rows had been lost when this began. What was compared before says nothing.
	losses uint64
	// all are the replicas that were compared whole since, sound those of them that have lost nothing themselves.
	all, sound map[kv.NodeID]bool
	// asFar says that one of the sound ones has a watermark as high as this one's, so that it could bring back also what is
	// from before that.
	asFar bool
	// union says that everybody was met and nobody was sound: then all give what they have, from before the watermark too.
	union bool
}

func newHealing(losses uint64, union bool) healing {
	return healing{losses: losses, union: union, all: map[kv.NodeID]bool{}, sound: map[kv.NodeID]bool{}}
}

// met notes a whole comparison.
func (h *healing) met(node kv.NodeID, healthy, asFar bool) {
	h.all[node] = true
	if healthy {
		h.sound[node] = true
		h.asFar = h.asFar || asFar
	}
}

// healingStep is what follows from whom a replica has met.
type healingStep uint8

const (
	healingGoesOn healingStep = iota
	// healingTakesAll: begin again, and take everything from everybody.
	healingTakesAll
	// healingDone: the replica has got back what it lost, as far as anybody has it.
	healingDone
)

// next decides for one of so many owners. A write that a majority holds is held by a majority without this replica less one,
// so that N - majority + 1 sound others cannot all lack it (design.md §7). One that has lost rows itself may lack it, and
// counts only when all others were met: then there is nobody left to ask.
func (h *healing) next(owners int) healingStep {
	others := owners - 1
	need := min(others, owners-kv.Majority(owners)+1)
	switch {
	case others == 0, len(h.sound) >= need && h.asFar:
		return healingDone
	case len(h.all) < others:
		return healingGoesOn
	case h.asFar, len(h.sound) == 0 && h.union:
		return healingDone
	case len(h.sound) == 0:
		return healingTakesAll
	default:
		return healingGoesOn // the sound ones are about to learn of this replica's watermark
	}
}

// healingBy returns how far the partition has come since rows were lost for the last time.
func (s *Service) healingBy(p kv.PartitionID, losses uint64) healing {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.of(p)
	if g.healing.all == nil || g.healing.losses != losses {
		g.healing = newHealing(losses, false)
	}
	return g.healing
}

// Heal notes durably that rows of the partition were lost here, or were never here though others may count on them. From then on
// the replica counts neither as an acknowledgement nor as an answer, until it was compared with the others.
func (s *Service) Heal(p kv.PartitionID) error {
	if err := s.deps.Engine.BeginHealing(p); err != nil {
		return err
	}
	s.mu.Lock()
	clear(s.of(p).compared)
	s.mu.Unlock()
	s.hurry()
	return nil
}

// mend heals a partition whose tree still has hashes of rows that were lost, until fn has taken them away. Meanwhile the
// replica may look like the others and is not, so that what is compared before fn has ended says nothing.
func (s *Service) mend(p kv.PartitionID, fn func() error) error {
	hold := func(n int) {
		s.mu.Lock()
		s.of(p).mending += n
		s.mu.Unlock()
	}
	hold(1)
	defer hold(-1)
	if err := s.Heal(p); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return errors.Join(err, s.deps.Engine.RefoldTree(p))
	}
	return s.Heal(p)
}

// healed ends the healing of a partition once enough of its other replicas were compared with it whole.
func (s *Service) healed(o Owned) {
	losses := s.deps.Engine.Losses(o.Partition)
	h := s.healingBy(o.Partition, losses)
	s.mu.Lock()
	step := h.next(len(o.Owners))
	if s.of(o.Partition).mending > 0 {
		step = healingGoesOn
	}
	if step == healingTakesAll {
		s.of(o.Partition).healing = newHealing(losses, true)
	}
	s.mu.Unlock()
	switch step {
	case healingGoesOn:
	case healingTakesAll:
		s.deps.Logger.Warn("all replicas have lost rows: each takes what the others still have", "partition", o.Partition)
		s.hurry()
	case healingDone:
		done, err := s.deps.Engine.EndHealing(o.Partition, losses)
		switch {
		case err != nil:
			s.deps.Logger.Warn("the end of a repair could not be written", "partition", o.Partition, "error", err)
		case done:
			s.deps.Logger.Info("a replica that had lost rows has been repaired", "partition", o.Partition)
		}
	}
}
