package quorum

import (
	"context"
	"sync"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A write that is refused because a later one is held already need not be stamped anew when that later one is of the same
// coordinator: it was put on top of the earlier one here, in one order, and its set covers it. If the later write takes effect, the earlier one
// did so just before it, and was overwritten at once. So it rides along and ends as that one does; otherwise the writes of a hot
// key, whose messages overtake one another, would refuse each other for ever. Where versions are kept beside one another
// nothing is refused for being lower, and nobody rides.
//
// The strong lane may take in any attempt of the later write, so that the first of them has to lie on top already: had it come before the
// earlier write's, the state would be below that one, of which a copy may be left somewhere that a later strong operation finds.

// rides are the writes under way of which a later one may come, by key.
type rides struct {
	mu sync.Mutex // guards the map, and mounted, applied and result of the writes in it
	// latest is the write whose first attempt was placed last, on top of all others.
	latest map[entryKey]*writeOp
}

// mount notes that the write was placed on top of all others of its key at this coordinator. One that another coordinator began
// carries nobody: it was attempted there before.
func (r *rides) mount(o *writeOp, p placed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.ended == nil {
		o.ended = make(chan struct{})
	}
	if o.mounted.IsZero() {
		o.first = p.dot
	}
	o.mounted = p.dot
	if len(o.call.Request.Resume) > 0 {
		return
	}
	id := o.rideKey()
	if held := r.latest[id]; held == nil || held.first.Time < o.first.Time {
		r.latest[id] = o
	}
}

// dismount says how the write ended.
func (r *rides) dismount(o *writeOp, res kv.Response, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.ended == nil {
		return
	}
	if id := o.rideKey(); r.latest[id] == o {
		delete(r.latest, id)
	}
	o.applied, o.result = err == nil, res
	close(o.ended)
}

// over returns the write all of whose attempts were placed on top of this one; nil if there is none.
func (r *rides) over(o *writeOp) *writeOp {
	r.mu.Lock()
	defer r.mu.Unlock()
	if top := r.latest[o.rideKey()]; top != nil && top != o && top.first.Time > o.mounted.Time {
		return top
	}
	return nil
}

func (o *writeOp) rideKey() entryKey {
	return entryKey{o.call.Partition, string(o.call.Request.Key)}
}

// ride waits for a later write of this coordinator that lies on top of this one. It returns false when there is none, or it did not
// take effect: then this write goes on by itself.
func (o *writeOp) ride(ctx context.Context) (kv.Response, bool) {
	if o.call.Resolver.KeepsSiblings() {
		return kv.Response{}, false
	}
	top := o.c.rides.over(o)
	if top == nil || top.call.Quorum.W < o.call.Quorum.W || top.call.Request.Level != o.call.Request.Level {
		return kv.Response{}, false
	}
	if top.call.Request.Sloppy && !o.call.Request.Sloppy {
		return kv.Response{}, false // hints that count for it do not count for this one
	}
	select {
	case <-top.ended:
		return top.result, top.applied
	case <-ctx.Done():
		return kv.Response{}, false
	}
}
