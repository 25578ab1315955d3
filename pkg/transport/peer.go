package transport

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// linkState is what a peer's sender is doing.
type linkState uint8

const (
	// linkConnecting: no attempt has failed since the last link, so that it is worth queueing for the next one.
	linkConnecting linkState = iota
	linkUp
	// linkDown: the last attempt to connect failed. Requests are refused at once, which costs their callers less than
	// waiting for a node that is most likely dead.
	linkDown
)

// peer is one node that this one talks to: what waits to be sent to it, and which calls wait for its replies.
type peer struct {
	id kv.NodeID
	m  *Mux
	// bulk says that these are the links for snapshots; see bulk.go.
	bulk bool

	// wake tells the sender that there is something to send. retry tells it not to wait before the next attempt.
	wake, retry chan struct{}
	// gone is closed when the peer was forgotten.
	gone chan struct{}
	// down mirrors state == linkDown, for those who only look.
	down atomic.Bool
	// nudged is when traffic from the peer last cut a pause short, in nanoseconds since the mux was made.
	nudged atomic.Int64
	// warned is when a bad clock of the peer was last logged, in the same unit.
	warned atomic.Int64

	// mu guards the fields below. It is held while frames are encoded and nothing else that takes long.
	mu    sync.Mutex
	state linkState
	cause error // why the state is linkDown
	// idle says that the sender waits for wake.
	idle       bool
	closed     bool
	raft, data outbox
	// lastData says that the last batch held data frames only.
	lastData  bool
	calls     map[uint64]*call
	deadlines wheel
	lastID    uint64

	// arrivals guards window.
	arrivals sync.Mutex
	window   window
}

func newPeer(m *Mux, id kv.NodeID) *peer {
	return &peer{
		id: id, m: m, lastID: m.life,
		wake: make(chan struct{}, 1), retry: make(chan struct{}, 1), gone: make(chan struct{}),
		calls: make(map[uint64]*call),
	}
}

// poke fills a one-slot channel.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// rouse reports whether the sender must be woken, which the caller does after releasing mu. mu must be held.
func (p *peer) rouse() bool {
	was := p.idle
	p.idle = false
	return was
}

// encode appends a frame to the outbox, unless it is too large or the outbox would exceed the limit; then it says why.
// A frame larger than the whole limit passes an empty outbox, else it could never be sent. mu must be held.
func (p *peer) encode(o *outbox, limit int, k kind, id uint64, body func([]byte) []byte) (c *chunk, start int, reason string) {
	c = o.tail(p.m.cfg.BatchBytesMax)
	start = len(c.buf)
	c.buf = body(openFrame(c.buf, k, id))
	closeFrame(c.buf, start)
	size := len(c.buf) - start
	switch {
	case size > p.m.cfg.FrameBytesMax:
		reason = reasonTooLarge
	case o.bytes+size > limit && o.bytes > 0:
		reason = reasonFull
	default:
		o.bytes += size
		return c, start, ""
	}
	c.buf = c.buf[:start]
	return c, start, reason
}

// inject lets the fault injector deal with the frame that was just encoded: it may vanish, come twice, or be held back.
// It reports whether the frame is queued where it was, and only there, so that it can be taken back. mu must be held.
func (p *peer) inject(o *outbox, class Class, c *chunk, start int) (alone bool) {
	fate := p.m.faults.fate(p.id, DirectionOut, class)
	size := len(c.buf) - start
	switch {
	case fate.drop:
		p.m.metrics.dropped(class, reasonFault)
	case fate.delay > 0:
		p.m.delays.add(fate.delay, delayed{
			peer: p, class: class, out: true, twice: fate.duplicate, bytes: append([]byte(nil), c.buf[start:]...),
		})
	case fate.duplicate:
		c.buf = append(c.buf, c.buf[start:]...)
		o.bytes += size
		return false
	default:
		return true
	}
	c.buf = c.buf[:start]
	o.bytes -= size
	return false
}

// sendRaft queues a Raft frame. It returns false when the frame was dropped.
func (p *peer) sendRaft(f []byte) bool {
	p.mu.Lock()
	reason := ""
	switch {
	case p.closed:
		reason = reasonClosed
	case p.state == linkDown:
		reason = reasonDown
	default:
		var c *chunk
		var start int
		c, start, reason = p.encode(&p.raft, p.m.cfg.RaftOutboxBytesMax, kindRaft, 0, func(dst []byte) []byte {
			return append(dst, f...)
		})
		if reason == "" && p.m.faults != nil {
			p.inject(&p.raft, ClassRaft, c, start)
		}
	}
	wake := reason == "" && p.rouse()
	p.mu.Unlock()
	if reason != "" {
		p.m.metrics.dropped(ClassRaft, reason)
		return false
	}
	if wake {
		poke(p.wake)
	}
	return true
}

// request queues a request and enters its call into the table. When it returns an error the call is not entered.
func (p *peer) request(c *call, deadline time.Time, body func([]byte) []byte) error {
	p.mu.Lock()
	err := p.requestLocked(c, deadline, body)
	wake := err == nil && p.rouse()
	p.mu.Unlock()
	if err != nil {
		p.m.metrics.callFailed(callNotSent)
		return err
	}
	if wake {
		poke(p.wake)
	}
	return nil
}

func (p *peer) requestLocked(c *call, deadline time.Time, body func([]byte) []byte) error {
	switch {
	case p.closed:
		return notSent(kv.CodeNotReady, "this node is stopping")
	case p.state == linkDown:
		return notSent(kv.CodeNotReady, "node %d is unreachable (%v)", p.id, p.cause)
	case len(p.calls) >= p.m.cfg.CallsMax:
		return notSent(kv.CodeOverloaded, "%d requests wait for node %d", len(p.calls), p.id)
	}
	chunk, start, reason := p.encode(&p.data, p.m.cfg.DataOutboxBytesMax, c.kind, p.lastID+1, body)
	switch reason {
	case "":
	case reasonFull:
		return notSent(kv.CodeOverloaded, "%d bytes wait to be sent to node %d", p.data.bytes, p.id)
	default:
		return notSent(kv.CodeInternal, "a %s request to node %d exceeds %d bytes", c.kind, p.id, p.m.cfg.FrameBytesMax)
	}
	p.lastID++
	c.id, c.chunk, c.offset = p.lastID, chunk.number, start
	if p.m.faults != nil && !p.inject(&p.data, ClassData, chunk, start) {
		c.chunk = 0 // to its caller it is as good as sent: nobody can take it back
	}
	p.calls[c.id] = c
	p.deadlines.add(c, p.m.tickAfter(deadline))
	p.m.callStarted()
	return nil
}

// respond queues a reply. It is dropped when the outbox is full: better the caller's outcome is unknown than that this
// node's memory is without bound. It is queued although the link is down, because the peer was just heard of.
func (p *peer) respond(id uint64, body func([]byte) []byte) {
	k := kindReply
	if p.bulk {
		k = kindPullReply
	}
	p.mu.Lock()
	reason := reasonClosed
	if !p.closed {
		var c *chunk
		var start int
		c, start, reason = p.encode(&p.data, 2*p.m.cfg.DataOutboxBytesMax, k, id, body)
		if reason == reasonTooLarge {
			c, start, reason = p.encode(&p.data, 2*p.m.cfg.DataOutboxBytesMax, k, id, func(dst []byte) []byte {
				return appendReplyError(dst, kv.Errorf(kv.CodeInternal, "the reply exceeds %d bytes",
					p.m.cfg.FrameBytesMax).WithOutcome(kv.OutcomeUnknown))
			})
		}
		if reason == "" && p.m.faults != nil {
			p.inject(&p.data, ClassData, c, start)
		}
	}
	wake := reason == "" && p.rouse()
	p.mu.Unlock()
	if reason != "" {
		p.m.metrics.dropped(ClassData, reason)
	}
	if wake {
		poke(p.wake)
	}
}

// release queues a frame that the fault injector had held back.
func (p *peer) release(d *delayed) {
	p.mu.Lock()
	o, limit := &p.data, 2*p.m.cfg.DataOutboxBytesMax
	if d.class == ClassRaft {
		o, limit = &p.raft, p.m.cfg.RaftOutboxBytesMax
	}
	reason := ""
	switch {
	case p.closed:
		reason = reasonClosed
	case p.state == linkDown:
		reason = reasonDown
	case o.bytes+len(d.bytes) > limit:
		reason = reasonFull
	default:
		c := o.tail(p.m.cfg.BatchBytesMax)
		c.buf = append(c.buf, d.bytes...)
		o.bytes += len(d.bytes)
	}
	wake := reason == "" && p.rouse()
	p.mu.Unlock()
	if reason != "" {
		p.m.metrics.dropped(d.class, reason)
	}
	if wake {
		poke(p.wake)
	}
}

// finish takes the call out of the table, nil when it is not there.
func (p *peer) finish(id uint64) *call {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.calls[id]
	if c != nil {
		p.remove(c)
	}
	return c
}

// remove takes a call that is in the table out of it. mu must be held.
func (p *peer) remove(c *call) {
	delete(p.calls, c.id)
	p.deadlines.remove(c)
	p.m.callEnded()
}

// takeBack makes sure that a queued request will not be sent, and reports whether it was queued. mu must be held.
func (p *peer) takeBack(c *call) (queued bool) {
	queued = p.data.queued(c.chunk)
	if queued {
		p.data.void(c.chunk, c.offset)
	}
	return queued
}

// cancel gives the call up. It returns nil when the call has ended or is just about to; its callback then says how.
func (p *peer) cancel(c *call) error {
	p.mu.Lock()
	if p.calls[c.id] != c {
		p.mu.Unlock()
		return nil
	}
	p.remove(c)
	queued := p.takeBack(c)
	p.mu.Unlock()
	p.m.metrics.callFailed(callOverdue)
	return c.overdue(p.id, queued)
}

// ended is a call that has left the table and whose callback has not run.
type ended struct {
	call   *call
	queued bool
}

// expire ends the calls that are overdue at the tick.
func (p *peer) expire(tick uint64) {
	p.mu.Lock()
	overdue := p.deadlines.advance(tick, nil)
	if len(overdue) == 0 {
		p.mu.Unlock()
		return
	}
	out := make([]ended, len(overdue))
	for i, c := range overdue {
		delete(p.calls, c.id)
		p.m.callEnded()
		out[i] = ended{call: c, queued: p.takeBack(c)}
	}
	p.mu.Unlock()
	for _, e := range out {
		p.m.metrics.callFailed(callOverdue)
		e.call.fail(e.call.overdue(p.id, e.queued))
	}
}

// abandon changes the link's state and ends every call. Replies that are queued stay for the next link, unless the
// peer is down: then nobody waits for them.
func (p *peer) abandon(next linkState, cause error) {
	p.mu.Lock()
	p.state, p.cause = next, cause
	p.down.Store(next == linkDown)
	out := make([]ended, 0, len(p.calls))
	for _, c := range p.calls {
		p.remove(c)
		out = append(out, ended{call: c, queued: p.takeBack(c)})
	}
	if next == linkDown || p.closed {
		p.raft.reset()
		p.data.reset()
	}
	p.mu.Unlock()
	for _, e := range out {
		p.m.metrics.callFailed(callBroken)
		e.call.fail(e.call.broken(p.id, e.queued, cause))
	}
}

// close ends the peer for good.
func (p *peer) close(cause error) {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.abandon(linkDown, cause)
}
