package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// sweepEvery is how often operations under way are checked against their deadlines.
const sweepEvery = 20 * time.Millisecond

// janitor moves parked operations on when their pause is over or an endpoint is up again, and ends operations whose
// deadline has passed.
type janitor struct {
	client *Client
	wake   chan struct{} // one slot
	idle   atomic.Bool   // nothing was outstanding at the last look; the next operation wakes it

	mu      sync.Mutex // guards what follows
	waiting []*call    // parked operations; bounded by the client's limit on what is outstanding
	closed  bool
}

func newJanitor(c *Client) *janitor { return &janitor{client: c, wake: make(chan struct{}, 1)} }

// kick makes the janitor look at once.
func (j *janitor) kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// watch tells the janitor that there is an operation, if it does not know of any.
func (j *janitor) watch() {
	if j.idle.Load() && j.idle.CompareAndSwap(true, false) {
		j.kick()
	}
}

// park takes over an operation in state parked.
func (j *janitor) park(op *call) {
	j.mu.Lock()
	isClosed := j.closed
	if !isClosed {
		j.waiting = append(j.waiting, op)
	}
	j.mu.Unlock()
	if isClosed {
		op.abandon(closed())
		return
	}
	j.kick()
}

// close ends what is parked and whatever will be.
func (j *janitor) close() {
	j.mu.Lock()
	j.closed = true
	ended := j.waiting
	j.waiting = nil
	j.mu.Unlock()
	for _, op := range ended {
		op.abandon(closed())
	}
}

func (j *janitor) run(ctx context.Context) {
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	var sweepAt time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.wake:
		case <-timer.C:
		}
		now := time.Now()
		next, inFlight := j.dispatch(now), true
		if !now.Before(sweepAt) {
			sweepAt = now.Add(sweepEvery)
			inFlight = j.sweep(now)
		}
		if next.IsZero() && !inFlight {
			// An operation that is queued after this look finds idle set, one that was queued before is found by it.
			j.idle.Store(true)
			if !j.sweep(now) {
				continue
			}
			j.idle.Store(false)
		}
		if next.IsZero() || sweepAt.Before(next) {
			next = sweepAt
		}
		timer.Reset(max(next.Sub(now), 0))
	}
}

// dispatch moves on what is due, and returns when the next parked operation is, zero when none is parked.
func (j *janitor) dispatch(now time.Time) (next time.Time) {
	var due []*call
	anyUp := j.client.anyUp()
	j.mu.Lock()
	kept := j.waiting[:0]
	for _, op := range j.waiting {
		if op.state.Load() == done {
			continue // its waiter was told already
		}
		wakeAt := op.deadline
		if anyUp && op.notBefore.Before(wakeAt) {
			wakeAt = op.notBefore
		}
		if !wakeAt.After(now) {
			due = append(due, op)
			continue
		}
		kept = append(kept, op)
		if next.IsZero() || wakeAt.Before(next) {
			next = wakeAt
		}
	}
	clear(j.waiting[len(kept):])
	j.waiting = kept
	j.mu.Unlock()
	for _, op := range due {
		if op.deadline.After(now) {
			j.client.dispatch(op)
		} else {
			op.expire()
		}
	}
	return next
}

// sweep ends what has expired at every endpoint, and reports whether anything is left there.
func (j *janitor) sweep(now time.Time) (inFlight bool) {
	for _, conn := range j.client.conns {
		inFlight = conn.sweep(now) || inFlight
	}
	return inFlight
}
