package antientropy

import (
	"context"
	"errors"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// scrubPageRows is how many rows are looked at from one view of the storage.
	scrubPageRows = 512
	// scrubPoll is how often the scrub looks for a partition whose turn it is.
	scrubPoll = time.Minute
	// busyTriesMax bounds how often a node that is being written to is looked at again.
	busyTriesMax = 20
	busyPause    = 50 * time.Millisecond
	// suspectPause is the least time between two scrubs of a partition, whoever suspects it.
	suspectPause = 2 * time.Minute
)

// scrub checks the rows of every partition against its tree: all partitions in turn, and at once those that are suspected.
func (s *Service) scrub(ctx context.Context) error {
	for _, o := range s.deps.Owned() { // what an earlier life left half done
		s.resume(ctx, o)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(scrubPoll):
		case <-s.suspects.wake:
		}
		suspected := s.suspects.take()
		for _, o := range s.deps.Owned() {
			if !s.scrubDue(o.Partition, suspected[o.Partition]) {
				continue
			}
			if err := s.Scrub(ctx, o); err != nil && ctx.Err() == nil {
				s.deps.Logger.Warn("a scrub of the eventual lane's rows ended early; a later one tries again",
					"partition", o.Partition, "error", err)
			}
		}
	}
}

// scrubDue reports whether it is the partition's turn. A suspicion that comes too soon after a scrub is kept for later.
func (s *Service) scrubDue(p kv.PartitionID, suspected bool) bool {
	s.mu.Lock()
	g := s.of(p)
	last := g.scrubbed
	if last.IsZero() && !suspected {
		last = g.began
	}
	s.mu.Unlock()
	pause := s.cfg.ScrubInterval
	if suspected {
		pause = min(pause, suspectPause)
	}
	if time.Since(last) >= pause {
		return true
	}
	if suspected {
		s.suspects.add(p)
	}
	return false
}

// Scrub checks all rows of a partition against its tree, and repairs what can be repaired here. What is lost the other
// replicas are asked for: the partition heals until they were.
func (s *Service) Scrub(ctx context.Context, o Owned) error {
	p := o.Partition
	defer func() {
		s.mu.Lock()
		s.of(p).scrubbed = time.Now()
		s.mu.Unlock()
	}()
	digests, err := s.deps.Engine.Digests(ctx, p)
	if errors.Is(err, storage.ErrCorruption) {
		s.damaged(p, 1, "a block cannot be read")
		return s.replace(ctx, o)
	}
	if err != nil {
		return err
	}
	var after []byte
	for {
		began := time.Now()
		c, err := s.deps.Engine.CheckRows(p, after, scrubPageRows)
		if err == nil {
			err = s.handle(ctx, o, &c)
		}
		if err != nil {
			return err
		}
		if after = c.Next; after == nil || c.BlockDamaged {
			break
		}
		if err := s.idle(ctx, began); err != nil {
			return err
		}
	}
	for node := range storage.TreeNodes {
		if digests[node].Rows == 0 {
			continue
		}
		began := time.Now()
		if err := s.scrubNode(ctx, o, node); err != nil {
			return err
		}
		if err := s.idle(ctx, began); err != nil {
			return err
		}
	}
	return nil
}

// idle pauses after a piece of work.
func (s *Service) idle(ctx context.Context, began time.Time) error {
	return sleep(ctx, time.Duration(s.cfg.IdleFactor)*time.Since(began))
}

// scrubNode checks one node of the tree. One that is written to all the time is left to the next scrub.
func (s *Service) scrubNode(ctx context.Context, o Owned, node int) error {
	for range busyTriesMax {
		c, err := s.deps.Engine.CheckNode(ctx, o.Partition, node)
		if err != nil || !c.Busy {
			if err == nil {
				err = s.handle(ctx, o, &c)
			}
			return err
		}
		if err := sleep(ctx, busyPause); err != nil {
			return err
		}
		if _, err := s.deps.Engine.Digests(ctx, o.Partition); err != nil {
			return err
		}
	}
	return nil
}

// damaged counts and logs rows that are not what was written.
func (s *Service) damaged(p kv.PartitionID, rows int, what string) {
	s.deps.Violated(rows)
	s.metrics.damaged.Add(float64(rows))
	s.deps.Logger.Error("rows of the eventual lane are damaged; the other replicas are asked for them",
		"partition", p, "rows", rows, "what", what)
}

// handle repairs what a check found.
func (s *Service) handle(ctx context.Context, o Owned, c *storage.SiblingsCheck) error {
	s.metrics.scrubbed.Add(float64(c.Rows))
	if c.Sound() {
		return nil
	}
	p := o.Partition
	if c.BlockDamaged {
		s.damaged(p, max(1, len(c.Lost)), "a block cannot be read")
		return s.replace(ctx, o)
	}
	rewrite := func() error {
		if c.TreeDamaged {
			if err := s.deps.Engine.RefoldTree(p); err != nil {
				return err
			}
		}
		keys := append(c.Lost, c.Unindexed...)
		return s.forAll(len(keys), func(i int) error { return s.deps.Replica.Rewrite(ctx, p, keys[i]) })
	}
	if len(c.Lost) == 0 && !c.TreeDamaged {
		return rewrite()
	}
	s.damaged(p, max(1, len(c.Lost)), "rows are missing or are others than were written")
	return s.mend(p, rewrite)
}

// replace takes all rows of a partition away and puts back those that can be read: the damaged block lies below them, and
// no scan gets past it. Meanwhile the replica answers nobody.
func (s *Service) replace(ctx context.Context, o Owned) error {
	p, e := o.Partition, s.deps.Engine
	if err := s.Heal(p); err != nil {
		return err
	}
	if err := e.ChangeRepair(p, func(r *storage.RepairState) { r.Quarantined = true }); err != nil {
		return err
	}
	if err := s.deps.Replica.Flush(ctx, p); err != nil {
		return err
	}
	if err := e.ReplaceSiblings(ctx, p); err != nil {
		return err
	}
	if err := s.Heal(p); err != nil { // what was compared before the rows were taken away says nothing
		return err
	}
	if err := e.ChangeRepair(p, func(r *storage.RepairState) { r.Quarantined = false }); err != nil {
		return err
	}
	return s.restore(ctx, o)
}

// restore merges the copies that a replacement left.
func (s *Service) restore(ctx context.Context, o Owned) error {
	for {
		var page []keySet
		err := s.deps.Engine.State().ScanCopies(o.Partition, func(key []byte, set causal.SiblingSet) (bool, error) {
			page = append(page, keySet{key: key, set: set})
			return len(page) < scrubPageRows, nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		if err := s.forAll(len(page), func(i int) error {
			return s.deps.Replica.Merge(ctx, o.Partition, o.Epoch, page[i].key, page[i].set, true)
		}); err != nil {
			return err
		}
		b := s.deps.Engine.NewBatch()
		for _, k := range page {
			b.DeleteCopy(o.Partition, k.key)
		}
		err = s.deps.Engine.ApplyNoSync(b)
		b.Close()
		if err != nil {
			return err
		}
	}
}

// resume finishes what a crash interrupted.
func (s *Service) resume(ctx context.Context, o Owned) {
	r := s.deps.Engine.State().Repair(o.Partition)
	var err error
	switch {
	case r.Quarantined:
		err = s.replace(ctx, o)
	case r.Healing:
		err = s.restore(ctx, o)
	}
	if err != nil && ctx.Err() == nil {
		s.deps.Logger.Warn("the repair of damaged rows could not be resumed", "partition", o.Partition, "error", err)
		s.Suspect(o.Partition)
	}
}
