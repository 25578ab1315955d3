package quorum

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Run looks after the targets until ctx is done: it hands over to those that are back, and drops what nobody is to get any
// more. Each target has a goroutine of its own while there is something to do, so that one that swallows everything holds
// up nobody else's.
func (s *Hints) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for {
		for _, id := range s.idle() {
			all.Go(func() {
				defer s.rest(id)
				s.tend(ctx, id)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// idle returns the targets with hints that nobody looks after, and notes that somebody does now.
func (s *Hints) idle() []kv.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []kv.NodeID
	for id, t := range s.targets {
		if t.hints > 0 && !t.tending {
			t.tending = true
			out = append(out, id)
		}
	}
	return out
}

func (s *Hints) rest(id kv.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets[id].tending = false
}

// tend looks after one target once.
func (s *Hints) tend(ctx context.Context, id kv.NodeID) {
	now, err := s.deps.Clock.Now()
	if err != nil {
		s.deps.Logger.Warn("hints are not looked after: the clock cannot be read", "error", err)
		return
	}
	cutoff := causal.MakeHLC(now.Millis()-s.cfg.AgeMax.Milliseconds(), 0)
	for _, p := range s.partitions(id) {
		_, standing := s.deps.Target(p, id)
		switch standing {
		case StandingLeft:
			err = s.drop(ctx, id, p, ^causal.HLC(0), dropLeft)
		case StandingMoved:
			err = s.drop(ctx, id, p, ^causal.HLC(0), dropMoved)
		case StandingOwner, StandingUnknown:
			if s.oldest(id, p) < cutoff {
				err = s.drop(ctx, id, p, cutoff, dropAge)
			}
		}
		if err == nil && standing == StandingOwner && s.due(id) {
			err = s.replay(ctx, id, p)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.deps.Logger.Warn("hints could not be read or removed", "target", s.deps.Name(id), "error", err)
			}
			return
		}
	}
}

// partitions returns the partitions that anything is kept of for the target, in order, and looks up anew what is oldest
// where that has changed.
func (s *Hints) partitions(id kv.NodeID) []kv.PartitionID {
	s.mu.Lock()
	t := s.targets[id]
	out := slices.Sorted(maps.Keys(t.queues))
	var stale []kv.PartitionID
	for _, p := range out {
		if q := t.queues[p]; q.stale {
			q.stale = false
			stale = append(stale, p)
		}
	}
	s.mu.Unlock()
	for _, p := range stale {
		first := causal.HLC(0)
		err := s.deps.State.ScanHints(storage.HintID{Target: id, Partition: p}, func(h storage.Hint, _ error) bool {
			first = h.ID.Seq
			return false
		})
		s.mu.Lock()
		if q := t.queues[p]; err == nil && q != nil && first > q.oldest {
			q.oldest = first
		}
		s.mu.Unlock()
	}
	return out
}

func (s *Hints) oldest(id kv.NodeID, p kv.PartitionID) causal.HLC {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.targets[id].queues[p]; q != nil {
		return q.oldest
	}
	return ^causal.HLC(0)
}

// due reports whether the target is believed alive and did not fail a moment ago.
func (s *Hints) due(id kv.NodeID) bool {
	if !s.deps.Alive(id) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !time.Now().Before(s.targets[id].retryAt)
}

// page reads hints from a place on, up to a time, and takes hold of them: until release or remove nobody else removes them.
func (s *Hints) page(from storage.HintID, upTo causal.HLC, hintsMax int) (hints, damaged []storage.Hint, err error) {
	s.mu.Lock()
	t := s.targets[from.Target]
	t.reading = true
	s.mu.Unlock()
	bytes := 0
	err = s.deps.State.ScanHints(from, func(h storage.Hint, bad error) bool {
		if h.ID.Seq >= upTo {
			return false
		}
		if bytes += h.Bytes; bad != nil {
			damaged = append(damaged, h)
		} else {
			hints = append(hints, h)
		}
		return len(hints)+len(damaged) < hintsMax && bytes < s.cfg.PageBytesMax
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	t.reading = false
	taken := func(h storage.Hint) bool {
		_, superseded := t.superseded[h.ID]
		return superseded
	}
	hints, damaged = slices.DeleteFunc(hints, taken), slices.DeleteFunc(damaged, taken)
	for _, h := range slices.Concat(hints, damaged) {
		t.flying[h.ID] = struct{}{}
	}
	maps.DeleteFunc(t.superseded, func(_ storage.HintID, gone bool) bool { return gone })
	return hints, damaged, err
}

// release lets go of hints that stay.
func (s *Hints) release(hints []storage.Hint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range hints {
		delete(s.targets[h.ID.Target].flying, h.ID)
	}
}

// remove removes hints that page took hold of, and lets go of them.
func (s *Hints) remove(ctx context.Context, hints []storage.Hint) error {
	if len(hints) == 0 {
		return nil
	}
	done := make(chan error, 1)
	finish := func(err error) {
		s.mu.Lock()
		for _, h := range hints {
			t := s.targets[h.ID.Target]
			delete(t.flying, h.ID)
			if err == nil {
				t.unaccount(h.ID, h.Bytes)
			}
			k := hintKey{h.ID.Target, h.ID.Partition, string(h.Key)}
			if r := s.recent[k]; err == nil && r != nil && r.id == h.ID {
				delete(s.recent, k)
			}
		}
		s.mu.Unlock()
		done <- err
	}
	err := s.deps.Committer.Commit(func(b *storage.Batch) {
		for _, h := range hints {
			b.DeleteHint(h.ID)
		}
	}, finish)
	if err != nil {
		s.release(hints)
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dropPageHintsMax bounds the hints that are dropped in one commit.
const dropPageHintsMax = 1024

// drop gives up the target's hints of a partition up to a time.
func (s *Hints) drop(ctx context.Context, id kv.NodeID, p kv.PartitionID, upTo causal.HLC, reason string) error {
	from := storage.HintID{Target: id, Partition: p}
	for ctx.Err() == nil {
		hints, damaged, err := s.page(from, upTo, dropPageHintsMax)
		all := append(hints, damaged...)
		if err != nil || len(all) == 0 {
			s.release(all)
			return err
		}
		if err := s.remove(ctx, all); err != nil {
			return err
		}
		s.metrics.drop(reason, len(all))
		s.deps.Logger.Info("hints were dropped", "target", s.deps.Name(id), "partition", p, "hints", len(all), "reason", reason)
	}
	return ctx.Err()
}

// replay hands the target what is kept of a partition, in order, page by page, no faster than the rate. It ends when the
// target fails to acknowledge a hint; only what it acknowledged is removed.
func (s *Hints) replay(ctx context.Context, id kv.NodeID, p kv.PartitionID) error {
	from := storage.HintID{Target: id, Partition: p}
	for ctx.Err() == nil && s.due(id) {
		// After a failure one hint is enough to see whether the target is back.
		n := s.cfg.PageHintsMax
		if s.failing(id) {
			n = 1
		}
		hints, damaged, err := s.page(from, ^causal.HLC(0), n)
		if err != nil || len(hints)+len(damaged) == 0 {
			s.release(slices.Concat(hints, damaged))
			return err
		}
		last := causal.HLC(0)
		for _, h := range slices.Concat(hints, damaged) {
			last = max(last, h.ID.Seq)
		}
		acked, failed := s.send(ctx, id, hints)
		s.release(failed)
		if err := s.remove(ctx, slices.Concat(acked, damaged)); err != nil {
			return err
		}
		s.metrics.replayed.Add(float64(len(acked)))
		s.metrics.drop(dropDamaged, len(damaged))
		if !s.answered(id, len(failed)) {
			return nil
		}
		bytes := 0
		for _, h := range hints {
			bytes += h.Bytes
		}
		from.Seq = last + 1
		if err := pause(ctx, time.Duration(bytes)*time.Second/time.Duration(s.cfg.RateBytes)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Hints) failing(id kv.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.targets[id].failures > 0
}

// answered notes how a page went, and reports whether the target takes more.
func (s *Hints) answered(id kv.NodeID, failed int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.targets[id]
	if failed == 0 {
		t.failures = 0
		return true
	}
	t.retryAt = time.Now().Add(min(s.cfg.Interval<<min(t.failures, 10), s.cfg.BackoffMax))
	t.failures++
	s.metrics.failed.Add(float64(failed))
	return false
}

// send hands hints to the target and waits until it has acknowledged or failed each of them.
func (s *Hints) send(ctx context.Context, id kv.NodeID, hints []storage.Hint) (acked, failed []storage.Hint) {
	type answer struct {
		at int
		ok bool
	}
	answers := make(chan answer, len(hints)) // has room for those that nobody waits for any more
	until := callContext{Context: ctx, deadline: time.Now().Add(s.cfg.CallTimeout)}
	for i, h := range hints {
		epoch, _ := s.deps.Target(h.ID.Partition, id)
		w := WriteRequest{Partition: h.ID.Partition, Epoch: epoch, Key: h.Key, Set: h.Set, HandOver: true}
		s.deps.Replicas.Write(until, id, w, func(r WriteReply, err error) {
			answers <- answer{i, err == nil && r.Accepted || mutant.Planted == mutant.HintDroppedEarly}
		})
	}
	ok := make([]bool, len(hints))
	for range hints {
		select {
		case a := <-answers:
			ok[a.at] = a.ok
			continue
		case <-ctx.Done():
		}
		break
	}
	for i, h := range hints {
		if ok[i] {
			acked = append(acked, h)
		} else {
			failed = append(failed, h)
		}
	}
	return acked, failed
}
