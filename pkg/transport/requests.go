package transport

import (
	"context"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// What else the Mux implements is checked where the two sides meet, in pkg/node.
var _ quorum.Replica = (*Mux)(nil)

// Write implements quorum.Replica. A write that the peer is to keep for another node travels as a frame of its own kind, and
// one that was kept for the peer by the bulk link. ctx gives the deadline; its end before that is not noticed, so that a call
// needs no goroutine. done runs once: before Write returns when the request was not sent, or on the goroutine that delivers
// the reply, ends the link or looks for overdue calls. It must not block.
func (m *Mux) Write(ctx context.Context, to kv.NodeID, w quorum.WriteRequest, done func(quorum.WriteReply, error)) {
	if to == m.self {
		m.handler.HandleWrite(to, w, done)
		return
	}
	c := &call{kind: kindWrite, changes: true, onWrite: done}
	switch {
	case w.HintFor != kv.NoNode:
		c.kind = kindHint
	case w.HandOver:
		c.kind = kindHandOver
	}
	if _, err := m.request(ctx, to, c, w.Epoch, func(dst []byte) []byte { return appendWriteOf(c.kind, dst, &w) }); err != nil {
		done(quorum.WriteReply{}, err)
	}
}

// Read implements quorum.Replica, like Write. The error of a read always says that nothing was applied.
func (m *Mux) Read(ctx context.Context, to kv.NodeID, r quorum.ReadRequest, done func(quorum.ReadReply, error)) {
	if to == m.self {
		m.handler.HandleRead(to, r, done)
		return
	}
	c := &call{kind: kindRead, onRead: done}
	if _, err := m.request(ctx, to, c, r.Epoch, func(dst []byte) []byte { return appendRead(dst, &r) }); err != nil {
		done(quorum.ReadReply{}, err)
	}
}

// Forward has the peer execute the request and waits for its response. An error that is no *kv.Error of the peer's own
// says what is known about the request: see ErrNotSent.
func (m *Mux) Forward(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error) {
	if to == m.self {
		deadline := m.deadline(ctx, time.Now())
		return wait(ctx, deadline, r.Op.IsWrite(), func(reply func(kv.Response, error)) {
			m.handler.HandleForward(to, *r, deadline, reply)
		})
	}
	body, err := m.await(ctx, to, kindForward, r.Op.IsWrite(), func(dst []byte) []byte { return kv.AppendRequest(dst, r) })
	if err != nil {
		return kv.Response{}, err
	}
	resp, err := kv.DecodeResponse(body)
	if err != nil {
		e := kv.Errorf(kv.CodeInternal, "unreadable response of node %d: %w", to, err)
		if r.Op.IsWrite() {
			e = e.WithOutcome(kv.OutcomeUnknown)
		}
		return kv.Response{}, e
	}
	return resp, nil
}

// Exchange hands an anti-entropy message to the peer and waits for the answer, which is the caller's to keep.
func (m *Mux) Exchange(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	if to == m.self {
		return wait(ctx, m.deadline(ctx, time.Now()), true, func(reply func([]byte, error)) { m.handler.HandleExchange(to, payload, reply) })
	}
	return m.await(ctx, to, kindExchange, true, func(dst []byte) []byte { return append(dst, payload...) })
}

// Meta hands a command for group 0 to the peer and waits for the answer, which is the caller's to keep.
func (m *Mux) Meta(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	if to == m.self {
		return wait(ctx, m.deadline(ctx, time.Now()), true, func(reply func([]byte, error)) { m.handler.HandleMeta(to, payload, reply) })
	}
	return m.await(ctx, to, kindMeta, true, func(dst []byte) []byte { return append(dst, payload...) })
}

// answer is what a call ends with.
type answer[T any] struct {
	value T
	err   error
}

// wait runs a handler's method for the node itself and waits for its reply, until the deadline or the end of ctx.
func wait[T any](ctx context.Context, deadline time.Time, changes bool, start func(reply func(T, error))) (T, error) {
	done := make(chan answer[T], 1)
	start(func(v T, err error) { done <- answer[T]{v, err} })
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, (&call{changes: changes}).lost(kv.CodeDeadlineExceeded, errOverdue)
	}
}

// await makes a call and waits for its reply.
func (m *Mux) await(ctx context.Context, to kv.NodeID, k kind, changes bool, body func([]byte) []byte) ([]byte, error) {
	done := make(chan answer[[]byte], 1)
	c := &call{kind: k, changes: changes, onBytes: func(b []byte, err error) { done <- answer[[]byte]{b, err} }}
	p, err := m.request(ctx, to, c, m.epoch(), body)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
	}
	if err := p.cancel(c); err != nil {
		return nil, err
	}
	a := <-done // it ended by itself at that moment, and its callback is about to run
	return a.value, a.err
}

// request sends a request. Its error says that nothing was sent, and then the call's callback does not run.
func (m *Mux) request(ctx context.Context, to kv.NodeID, c *call, epoch kv.Epoch, body func([]byte) []byte) (*peer, error) {
	if err := ctx.Err(); err != nil {
		m.metrics.callFailed(callNotSent)
		return nil, notSent(kv.CodeDeadlineExceeded, "the request to node %d came too late", to)
	}
	in := &m.peers
	if c.kind.isBulk() {
		in = &m.bulk
	}
	p, err := m.peerIn(in, to)
	if err != nil {
		m.metrics.callFailed(callNotSent)
		return nil, notSent(kv.CodeNotReady, "node %d cannot be sent to (%v)", to, err)
	}
	now := time.Now()
	deadline := m.deadline(ctx, now)
	err = p.request(c, deadline, func(dst []byte) []byte {
		return body(appendRequestPrefix(dst, epoch, deadline.Sub(now)))
	})
	return p, err
}

// deadline is when a call is overdue that is made now.
func (m *Mux) deadline(ctx context.Context, now time.Time) time.Time {
	if d, ok := ctx.Deadline(); ok {
		if latest := now.Add(m.cfg.CallTimeoutMax); d.After(latest) {
			return latest
		}
		return d
	}
	return now.Add(m.cfg.CallTimeout)
}
