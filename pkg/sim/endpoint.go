package sim

import (
	"container/heap"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// parcel is a batch under way.
type parcel struct {
	due   time.Time
	order uint64 // among those due at the same time
	link  *link
	batch []byte
}

// endpoint is a node's receiving end, for one life of the node.
type endpoint struct {
	deliver func(from kv.NodeID, batch []byte) error
	wake    chan struct{}
	stop    chan struct{} // closed to end run
	done    chan struct{} // closed when run has ended

	// The network's mu guards the fields below.
	queue parcels
	bytes int
	order uint64
}

// put queues a parcel, or drops it when there is no room. The network's mu must be held.
func (e *endpoint) put(n *Network, p parcel) {
	if len(e.queue) >= queueBatchesMax || e.bytes+len(p.batch) > queueBytesMax {
		n.stats.Overflowed++
		return
	}
	e.order++
	p.order = e.order
	e.bytes += len(p.batch)
	heap.Push(&e.queue, p)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// take returns the next parcel that is due, or how long that one has to wait, 0 when there is none. The network's mu
// must not be held.
func (e *endpoint) take(n *Network) (p parcel, wait time.Duration, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(e.queue) == 0 {
		return parcel{}, 0, false
	}
	due := e.queue[0].due
	if until := n.holds[e.queue[0].link.to]; until.After(due) {
		due = until // it was under way when the hold began
	}
	if wait := time.Until(due); wait > 0 {
		return parcel{}, wait, false
	}
	p = heap.Pop(&e.queue).(parcel)
	e.bytes -= len(p.batch)
	n.stats.Delivered++
	return p, 0, true
}

// run delivers parcels when they are due, until the endpoint is closed.
func (e *endpoint) run(n *Network) {
	defer close(e.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-e.stop:
			return
		default:
		}
		p, wait, ok := e.take(n)
		if ok {
			if err := e.deliver(p.link.wire.self, p.batch); err != nil {
				p.link.fail(err)
			}
			continue
		}
		// An idle endpoint holds no timer: in a bubble, time would jump to it when everything else waits.
		timer.Stop()
		if wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-e.stop:
			return
		case <-e.wake:
		case <-timer.C:
		}
	}
}

// close ends the endpoint and waits until nothing is being delivered. nil is closed already.
func (e *endpoint) close() {
	if e != nil {
		close(e.stop)
		<-e.done
	}
}

// parcels implements heap.Interface.
type parcels []parcel

func (h parcels) Len() int { return len(h) }

func (h parcels) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].order < h[j].order
}

func (h parcels) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h *parcels) Push(x any) { *h = append(*h, x.(parcel)) }

func (h *parcels) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = parcel{}
	*h = old[:len(old)-1]
	return last
}
