package consensus

import (
	"fmt"
	"math"
	"time"

	"github.com/caprockdb/caprock/pkg/storage"
)

// late are the eventual writes that do not wait for the disk (Store.CommitAsync). They are applied without a sync as soon as the loop sees
// them, also while other batches are being synced, and their sync is that of the next batch that has one, or one of their own. Raft's log
// never goes this way: an acknowledgement of an entry that is lost is unsound for everything else in its group.
type late struct {
	// fills are not applied yet.
	fills []fill
	// dones wait for the sync of what was applied, the oldest of it since began; bytes is counted in Store.fillBytes. due fires when the sync
	// has to be asked for at last.
	dones []func(error)
	bytes int64
	began time.Time
	due   <-chan time.Time
}

// empty reports whether nothing waits for a sync.
func (t *late) empty() bool { return len(t.dones) == 0 }

// overdue reports whether something has waited for so long that it is synced by itself.
func (t *late) overdue(limit time.Duration) bool { return !t.empty() && time.Since(t.began) >= limit }

// writeLate applies the writes that do not wait for the disk, and says that they can be read.
func (l *loop) writeLate() {
	t := &l.late
	if l.failure != nil || len(t.fills) == 0 || math.Float64frombits(l.pressure.Load()) >= l.cfg.HoldPressure {
		return
	}
	b := l.deps.Engine.NewBatch()
	defer b.Close()
	n := 0
	for n < len(t.fills) && (n == 0 || b.Len() < l.cfg.BatchBytesMax) {
		t.fills[n].write(b)
		n++
	}
	l.fillsQueued.Add(-int64(n))
	l.metrics.fills.Add(float64(n))
	bytes, err := int64(b.Len()), error(nil)
	if !b.Empty() {
		err = l.deps.Engine.ApplyNoSync(b)
	}
	if err == nil {
		if t.empty() {
			t.began, t.due = time.Now(), time.After(l.cfg.LateMax)
		}
		t.bytes += bytes
		l.fillBytes.Add(bytes)
	}
	for _, f := range t.fills[:n] {
		if err != nil {
			f.done(err)
			continue
		}
		t.dones = append(t.dones, f.done)
		f.visible()
	}
	rest := copy(t.fills, t.fills[n:])
	clear(t.fills[rest:])
	t.fills = t.fills[:rest]
	l.again = l.again || rest > 0
	if err != nil {
		l.fail(fmt.Errorf("consensus: write: %w", err))
	}
}

// joinLate has those who wait for a sync wait for the batch's, which makes durable what was applied before it. An empty batch would make
// nothing durable.
func (l *loop) joinLate(b *storage.Batch) (dones []func(error), bytes int64, err error) {
	t := &l.late
	if t.empty() {
		return nil, 0, nil
	}
	dones, bytes = t.dones, t.bytes
	t.dones, t.bytes, t.due = nil, 0, nil
	if b.Empty() {
		err = b.Mark()
	}
	return dones, bytes, err
}

// syncLate starts a sync for what was answered before the loop was told to end.
func (l *loop) syncLate() {
	if len(l.syncing) >= l.cfg.SyncsMax {
		l.awaitRoom()
	}
	if l.failure == nil {
		l.startSync(l.deps.Engine.NewBatch(), nil, 0)
	}
}
