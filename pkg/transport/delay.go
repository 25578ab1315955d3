package transport

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// delayed is a frame that the fault injector holds back.
type delayed struct {
	due time.Time
	// order keeps frames that are due at the same time in the order in which they came.
	order uint64

	peer  *peer
	class Class
	twice bool
	// out says that bytes is a whole frame to be queued; otherwise it is the payload of one that arrived, described by
	// the rest.
	out   bool
	bytes []byte
	life  uint64
	kind  kind
	id    uint64
}

// delayLine holds frames back, all of them with one goroutine and one timer.
type delayLine struct {
	bytesMax int
	// release lets a frame go, full is told of one for which there was no room.
	release, full func(*delayed)
	wake          chan struct{}

	mu    sync.Mutex // guards the fields below
	queue delayHeap
	bytes int
	order uint64
}

func newDelayLine(bytesMax int, release, full func(*delayed)) *delayLine {
	return &delayLine{bytesMax: bytesMax, release: release, full: full, wake: make(chan struct{}, 1)}
}

// add holds a frame back for the time. One for which there is no room is lost, as in any network.
func (l *delayLine) add(delay time.Duration, d delayed) {
	d.due = time.Now().Add(delay)
	l.mu.Lock()
	fits := l.bytes+len(d.bytes)+frameBytes <= l.bytesMax
	if fits {
		l.order++
		d.order = l.order
		l.bytes += len(d.bytes) + frameBytes
		heap.Push(&l.queue, &d)
	}
	l.mu.Unlock()
	if !fits {
		l.full(&d)
		return
	}
	poke(l.wake)
}

// run lets frames go when they are due, until ctx is done.
func (l *delayLine) run(ctx context.Context) {
	timer := time.NewTimer(delayMax)
	defer timer.Stop()
	for {
		next := l.releaseDue(time.Now())
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// releaseDue lets go what is due and returns how long the next frame has to wait.
func (l *delayLine) releaseDue(now time.Time) time.Duration {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.mu.Unlock()
			return delayMax
		}
		if wait := l.queue[0].due.Sub(now); wait > 0 {
			l.mu.Unlock()
			return wait
		}
		d := heap.Pop(&l.queue).(*delayed)
		l.bytes -= len(d.bytes) + frameBytes
		l.mu.Unlock()
		l.release(d)
	}
}

// delayHeap implements heap.Interface.
type delayHeap []*delayed

func (h delayHeap) Len() int { return len(h) }

func (h delayHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].order < h[j].order
}

func (h delayHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h *delayHeap) Push(x any) { *h = append(*h, x.(*delayed)) }

func (h *delayHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
