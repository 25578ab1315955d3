package consensus

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// syncing is a batch on its way to the disk and what may happen once it is there.
type syncing struct {
	number    uint64
	responses []waitingResponses
}

// waitingResponses are messages of a group that promise what a batch, and those before it, hold.
type waitingResponses struct {
	group    *group
	messages []*pb.Message
}

// syncJob is what the waiter gets.
type syncJob struct {
	number  uint64
	batch   *storage.Batch
	dones   []func(error)
	bytes   int64 // counted in Store.fillBytes
	started time.Time
}

// awaitSyncs waits for each batch in order, tells the loop, then the eventual lane.
func (s *Store) awaitSyncs(jobs <-chan syncJob) {
	for j := range jobs {
		err := j.batch.SyncWait()
		j.batch.Close()
		s.metrics.syncSeconds.Observe(time.Since(j.started).Seconds())
		s.inbox.post(func(m *mail) bool {
			if err != nil && m.syncErr == nil {
				m.syncErr = fmt.Errorf("consensus: sync: %w", err)
			}
			m.synced = j.number
			return true
		})
		for _, done := range j.dones {
			done(err)
		}
		s.fillBytes.Add(-j.bytes)
	}
}

// answerAfter delivers responses once the batch with the number, and all before it, are durable.
func (l *loop) answerAfter(g *group, number uint64, responses []*pb.Message) {
	if len(responses) == 0 {
		return
	}
	if mutant.Planted == mutant.LeaderCountsItself {
		responses = slices.DeleteFunc(responses, func(m *pb.Message) bool {
			own := m.GetTo() == uint64(l.deps.Self)
			if own {
				l.deliver(g, []*pb.Message{m})
				l.again = true
			}
			return own
		})
	}
	if number <= l.durable {
		l.deliver(g, responses)
		return
	}
	at := &l.syncing[number-l.syncing[0].number]
	at.responses = append(at.responses, waitingResponses{group: g, messages: responses})
}

// completeSyncs delivers what waited for batches up to the number.
func (l *loop) completeSyncs(durable uint64, err error) {
	if err != nil {
		// Nothing says which rows are on disk, so nothing that waits for them may ever leave.
		l.fail(err)
		return
	}
	l.durable = durable
	n := 0
	for n < len(l.syncing) && l.syncing[n].number <= durable {
		for _, r := range l.syncing[n].responses {
			if r.group.stopped == nil {
				l.deliver(r.group, r.messages)
			}
		}
		n++
	}
	clear(l.syncing[:n])
	l.syncing = l.syncing[n:]
	l.metrics.syncsInFlight.Set(float64(len(l.syncing)))
	l.stepLocal()
}

// crowded reports whether storage has enough to do: batches are on their way to the disk, or Pebble is about to make writers
// wait, and this loop must never be one of those. What can wait then does, until a sync has completed or a tick finds room.
func (l *loop) crowded() bool {
	return len(l.syncing) >= l.cfg.SyncsAheadMax || math.Float64frombits(l.pressure.Load()) >= l.cfg.HoldPressure
}

// gauge looks at storage's pressure until ctx is done. The loop does not look itself: that may take one of Pebble's mutexes.
func (s *Store) gauge(ctx context.Context) {
	tick := time.NewTicker(s.cfg.TickInterval)
	defer tick.Stop()
	for {
		s.pressure.Store(math.Float64bits(s.deps.Engine.Pressure()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// persist puts what all groups and the eventual lane have to write into one batch and starts its sync.
func (l *loop) persist() {
	l.writeLate()
	if l.failure != nil || !l.mustPersist() {
		return
	}
	if len(l.syncing) >= l.cfg.SyncsMax {
		l.awaitRoom()
		if l.failure != nil {
			return
		}
	}
	b := l.deps.Engine.NewBatch()
	entries := 0
	for _, g := range l.readied {
		if g.ready.append {
			g.log.persist(b, g.ready.entries)
			l.check(g, g.rebase())
			entries += len(g.ready.entries)
		}
	}
	l.truncate(b)
	logBytes := b.Len()
	dones := l.takeFills(b)
	bytes := int64(b.Len() - logBytes)
	l.fillBytes.Add(bytes)
	l.metrics.syncEntries.Observe(float64(entries))
	if !l.startSync(b, dones, bytes) {
		return
	}
	for _, g := range l.readied {
		if g.ready.append {
			g.lastSync = l.batches
			l.answerAfter(g, l.batches, g.ready.responses)
		}
	}
}

// startSync applies the batch and starts its sync, which the writes that were answered before join. It returns false when storage failed.
func (l *loop) startSync(b *storage.Batch, dones []func(error), bytes int64) bool {
	started := time.Now()
	lateDones, lateBytes, err := l.joinLate(b)
	dones, bytes = append(dones, lateDones...), bytes+lateBytes
	if err == nil {
		err = l.deps.Engine.ApplyNoSyncWait(b)
	}
	if err != nil {
		b.Close()
		l.fillBytes.Add(-bytes)
		for _, done := range dones {
			done(err)
		}
		l.fail(fmt.Errorf("consensus: write: %w", err))
		return false
	}
	l.batches++
	l.syncing = append(l.syncing, syncing{number: l.batches})
	// The channel has a slot for every batch that may be syncing, so this never blocks.
	l.jobs <- syncJob{number: l.batches, batch: b, dones: dones, bytes: bytes, started: started}
	return true
}

// mustPersist reports whether there is anything to write that should not wait.
func (l *loop) mustPersist() bool {
	if l.late.overdue(l.cfg.LateMax) || len(l.fills) > 0 && !l.crowded() && len(l.late.fills) == 0 {
		return true
	}
	for _, g := range l.readied {
		if g.ready.append {
			return true
		}
	}
	return false
}

// takeFills lets waiting eventual writes add to the batch, as many as it should hold.
func (l *loop) takeFills(b *storage.Batch) []func(error) {
	// What came before must not be made durable after, which is what some wait for: an empty write to know that all before it is.
	if len(l.fills) == 0 || len(l.late.fills) > 0 {
		return nil
	}
	n := 0
	dones := make([]func(error), 0, len(l.fills))
	for n < len(l.fills) && (n == 0 || b.Len() < l.cfg.BatchBytesMax) {
		l.fills[n].write(b)
		dones = append(dones, l.fills[n].done)
		n++
	}
	rest := copy(l.fills, l.fills[n:])
	clear(l.fills[rest:])
	l.fills = l.fills[:rest]
	l.fillsQueued.Add(-int64(n))
	l.metrics.fills.Add(float64(n))
	l.again = l.again || rest > 0
	return dones
}

// awaitRoom waits until the disk has caught up by at least one batch. What it delivers leaves with the next flush.
func (l *loop) awaitRoom() {
	l.metrics.syncWaits.Inc()
	for l.failure == nil && len(l.syncing) >= l.cfg.SyncsMax {
		<-l.inbox.wake
		l.completeSyncs(l.inbox.syncs())
	}
	// The token taken may have announced other mail as well.
	l.again = true
}
