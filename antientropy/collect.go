package antientropy

import (
	"context"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// collectPage is how many dead rows are looked at at once.
const collectPage = 256

// collect removes the rows without a value that are behind the watermark, once for each watermark.
func (s *Service) collect(ctx context.Context, o Owned) {
	r := s.deps.Engine.State().Repair(o.Partition)
	s.mu.Lock()
	done := s.of(o.Partition).collected
	s.mu.Unlock()
	if collectUpTo(r) <= done || r.Healing || r.Quarantined {
		return
	}
	if err := s.collectAll(ctx, o, r); err != nil {
		if ctx.Err() == nil {
			s.deps.Logger.Debug("dead rows stay until the next look", "partition", o.Partition, "error", err)
		}
		return
	}
	s.mu.Lock()
	s.of(o.Partition).collected = r.Committed
	s.mu.Unlock()
}

func (s *Service) collectAll(ctx context.Context, o Owned, r storage.RepairState) error {
	var after *storage.DeadNote
	for {
		applied := s.deps.Applied(o.Partition)
		var page []storage.DeadNote
		err := s.deps.Engine.State().ScanDead(o.Partition, after, collectUpTo(r), func(n storage.DeadNote) (bool, error) {
			page = append(page, n)
			return len(page) < collectPage, nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		stale := make([]bool, len(page))
		if err := s.forAll(len(page), func(i int) (err error) {
			stale[i], err = s.collectRow(ctx, o, page[i], applied)
			return err
		}); err != nil {
			return err
		}
		b := s.deps.Engine.NewBatch()
		for i, n := range page {
			if stale[i] {
				b.DeleteDead(o.Partition, n.At, n.Key)
			}
		}
		err = s.deps.Engine.ApplyNoSync(b)
		b.Close()
		if err != nil {
			return err
		}
		after = &page[len(page)-1]
		if err := sleep(ctx, s.cfg.Interval/collectPage); err != nil {
			return err
		}
	}
}

// collectRow removes the row that the note is about, if it may go, and reports whether the note is of no use any more. The note of
// a row that was removed stays until the next time: after a crash it says that the row was not lost (storage).
func (s *Service) collectRow(ctx context.Context, o Owned, n storage.DeadNote, applied uint64) (stale bool, err error) {
	set, found, err := s.deps.Engine.State().Siblings(o.Partition, n.Key)
	if err != nil {
		return false, s.unread(o.Partition, err)
	}
	if at, dead := storage.DeadSince(set); !found || !dead || at != n.At {
		return true, nil
	}
	_, err = s.deps.Replica.Collect(ctx, o.Partition, n.Key, applied)
	return false, err
}

// collectUpTo returns the time behind which rows may go.
func collectUpTo(r storage.RepairState) causal.HLC {
	if mutant.Planted == mutant.TombstoneCollectedEarly {
		return ^causal.HLC(0)
	}
	return r.Committed
}
