package quorum

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/storage"
)

// testDisk is a committer: it collects commits and writes them in one batch, each taking as long as a sync is told to.
type testDisk struct {
	engine *storage.Engine
	// mu guards the fields below.
	mu      sync.Mutex
	queue   []queuedCommit
	sync    time.Duration
	early   bool  // what is committed can be read before it is synced, as with the real committer
	refuse  error // Commit returns it
	drop    error // commits fail with it before they are filled
	fail    error // commits fail with it after they were filled, and are lost
	batches int
	filled  int
	wake    chan struct{}
}

type queuedCommit struct {
	fill    func(*storage.Batch)
	done    func(error)
	visible func() // nil: it is synced before anybody hears of it
}

func newTestDisk(e *storage.Engine) *testDisk {
	return &testDisk{engine: e, wake: make(chan struct{}, 1)}
}

func (d *testDisk) Commit(fill func(*storage.Batch), done func(error)) error {
	return d.commit(queuedCommit{fill: fill, done: done})
}

func (d *testDisk) CommitAsync(fill func(*storage.Batch), visible func(), done func(error)) error {
	return d.commit(queuedCommit{fill, done, visible})
}

func (d *testDisk) commit(q queuedCommit) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return d.refuse
	}
	d.queue = append(d.queue, q)
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return nil
}

// set changes the disk's behaviour.
func (d *testDisk) set(change func(*testDisk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *testDisk) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		}
		d.mu.Lock()
		queue, pause, drop, fail := d.queue, d.sync, d.drop, d.fail
		d.queue = nil
		d.mu.Unlock()
		d.write(queue, pause, drop, fail)
	}
}

func (d *testDisk) write(queue []queuedCommit, pause time.Duration, drop, fail error) {
	if drop != nil {
		for _, q := range queue {
			q.done(drop)
		}
		return
	}
	b := d.engine.NewBatch()
	for _, q := range queue {
		q.fill(b)
	}
	d.set(func(d *testDisk) { d.batches++; d.filled += len(queue) })
	err := fail
	if err == nil {
		err = d.apply(b, queue, pause)
	}
	b.Close()
	for _, q := range queue {
		q.done(err)
	}
}

// apply writes the batch. Where somebody does not wait for the disk, or with early set, it is there before its sync.
func (d *testDisk) apply(b *storage.Batch, queue []queuedCommit, pause time.Duration) error {
	d.mu.Lock()
	early := d.early
	d.mu.Unlock()
	if !early && !slices.ContainsFunc(queue, func(q queuedCommit) bool { return q.visible != nil }) {
		time.Sleep(pause)
		return d.engine.ApplySync(b)
	}
	if err := d.engine.ApplyNoSync(b); err != nil {
		return err
	}
	for _, q := range queue {
		if q.visible != nil {
			q.visible()
		}
	}
	time.Sleep(pause)
	mark := d.engine.NewBatch()
	defer mark.Close()
	if err := mark.Mark(); err != nil {
		return err
	}
	return d.engine.ApplySync(mark)
}
