package consensus

import (
	"context"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Recall returns what the partition's group answered to the operation, and false when it does not know it: it was not
// applied so far, or so long ago that it was forgotten. The answer reflects everything that was committed when Recall was
// called. It works on the leader only.
func (s *Store) Recall(ctx context.Context, p kv.PartitionID, id kv.OpID) (WriteReply, bool, error) {
	before, _ := s.Sound(p.Group()) // a replica that is rebuilt behind the barrier may be back at an earlier entry
	if err := s.ReadBarrier(ctx, p.Group()); err != nil {
		return WriteReply{}, false, err
	}
	reply, found, err := recall(s.deps.Engine.State(), p.Group(), id)
	if err != nil {
		s.Distrust(p.Group(), err)
	}
	if after, sound := s.Sound(p.Group()); !sound || after != before {
		return WriteReply{}, false, quarantined(kv.OutcomeNotApplied)
	}
	return reply, found, err
}

// recall looks an operation up while entries are applied beside it. Its reads are not of one moment, and a session moves
// when it is written in a new era. But it only ever moves to a later one. So the eras are looked through from the oldest
// to the latest, and on to those that have begun meanwhile: a row that was not found where the look has been lies ahead.
// From the latest to the oldest, as an apply looks, the row could jump over the look.
func recall(rows dedupRows, g kv.GroupID, id kv.OpID) (WriteReply, bool, error) {
	clock, found, err := readGroupClock(rows, g)
	if err != nil || !found {
		return WriteReply{}, false, err
	}
	for era := clock.era - min(clock.era, erasKept-1); ; era++ {
		// The clock is written with a session that it moves, and read after the row was missed.
		if era > clock.era {
			if clock, _, err = readGroupClock(rows, g); err != nil || era > clock.era {
				return WriteReply{}, false, err
			}
			era = max(era, clock.era-min(clock.era, erasKept-1))
		}
		s, err := readSessionAt(rows, g, id.Session, era)
		if err != nil {
			return WriteReply{}, false, err
		}
		if s != nil {
			return s.find(id)
		}
	}
}

// find returns what the operation was answered.
func (s *session) find(id kv.OpID) (WriteReply, bool, error) {
	i, found := s.search(id.Sequence)
	if !found {
		return WriteReply{}, false, nil
	}
	reply, err := decodeReply(s.records[i].reply)
	return reply, err == nil, err
}
