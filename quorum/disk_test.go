package quorum

import (
	"context"
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
	refuse  error // Commit returns it
	drop    error // commits fail with it before they are filled
	fail    error // commits fail with it after they were filled, and are lost
	batches int
	filled  int
	wake    chan struct{}
}

type queuedCommit struct {
	fill func(*storage.Batch)
	done func(error)
}

func newTestDisk(e *storage.Engine) *testDisk {
	return &testDisk{engine: e, wake: make(chan struct{}, 1)}
}

func (d *testDisk) Commit(fill func(*storage.Batch), done func(error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return d.refuse
	}
	d.queue = append(d.queue, queuedCommit{fill, done})
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
	time.Sleep(pause)
	err := fail
	if err == nil {
		err = d.engine.ApplySync(b)
	}
	b.Close()
	for _, q := range queue {
		q.done(err)
	}
}
