package client

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// state is where an operation is on its way. Every change is a compare-and-swap, and who makes it owns what follows from
// it; so an answer, a deadline and a broken stream that arrive together end the operation once.
type state = uint32

const (
	// parked: waiting for an endpoint, or for a pause to pass. Nothing was sent, or what was sent was certainly not applied.
	parked state = iota
	// queued: in an endpoint's queue. As certain not to be applied.
	queued
	// sent: handed to a stream. Until an answer comes, nobody knows.
	sent
	// done: answered.
	done
)

// timerBelow is how near a deadline must be for a timer of its own.
const timerBelow = 20 * sweepEvery

// call is one operation, from its start to its answer.
type call struct {
	client   *Client
	op       kvwire.Operation // never changes; the sender encodes a copy with id and timeout
	deadline time.Time
	weight   int64 // of the client's limit on what is outstanding
	state    atomic.Uint32
	finished chan struct{} // closed once result and err are set

	// Set by the winner of the change to done, read by others only after finished was closed.
	result Result
	err    *kv.Error

	// refusal is why an endpoint refused the operation last; nil when none did.
	refusal atomic.Pointer[kv.Error]
	// unsure is set once an attempt of a write ended without a word of whether it was applied.
	unsure  atomic.Bool
	session *session // of the operation's id; nil for none, or the caller's own

	// endpoint is the index of the one that the operation was sent to last.
	endpoint atomic.Int32

	// What follows belongs to whoever moves the operation along: one of dispatcher, sender, receiver or janitor at a time.
	attempts  int
	tried     uint64    // endpoints that failed the operation, as bits by index
	notBefore time.Time // when a parked operation may go on
	sentAt    time.Time
}

func (c *call) write() bool { return c.op.Request.Op.IsWrite() }

// move changes the state, unless the operation has left from.
func (c *call) move(from, to state) bool { return c.state.CompareAndSwap(from, to) }

// end claims the operation's end from whatever state it is in, which it returns. false: it has ended already.
func (c *call) end() (from state, ok bool) {
	for {
		from = c.state.Load()
		if from == done {
			return from, false
		}
		if c.state.CompareAndSwap(from, done) {
			return from, true
		}
	}
}

// publish makes the answer known. Only who claimed the end may call it.
func (c *call) publish(err *kv.Error) {
	c.err = err
	if c.session != nil {
		c.session.end(c.op.Request.ID.Sequence)
	}
	c.client.outstanding.Release(c.weight)
	close(c.finished)
}

// abandon ends the operation with the error, whose outcome it sets to what is known about the operation here.
func (c *call) abandon(err *kv.Error) {
	from, ok := c.end()
	if !ok {
		return
	}
	outcome := kv.OutcomeNotApplied
	if c.write() && (from == sent || c.unsure.Load()) {
		outcome = kv.OutcomeUnknown
	}
	c.publish(err.WithOutcome(outcome))
}

// verdict is what the operation ends with when its last attempt failed with err. After an attempt whose outcome is unknown,
// a refusal says only that the last one changed nothing; but a missed condition is what the group decided about the
// operation, whichever attempt reached it.
func (c *call) verdict(err *kv.Error) *kv.Error {
	if !c.unsure.Load() || err.Code == kv.CodeVersionMismatch {
		return err
	}
	if before := c.refusal.Load(); before != nil && err.Code == kv.CodeBadRequest {
		err = before // the level turned out not to recognise repetitions; that is no news to the caller
	}
	return err.WithOutcome(kv.OutcomeUnknown)
}

// expire ends the operation because its deadline has passed. Where an endpoint refused it, and the refusal still stands, the
// refusal says more than the deadline.
func (c *call) expire() {
	refusal := c.refusal.Load()
	switch c.state.Load() {
	case parked:
		if refusal == nil {
			refusal = c.client.unreachable()
		}
		c.abandon(refusal)
	case queued:
		c.abandon(kv.Errorf(kv.CodeDeadlineExceeded, "the operation could not be sent before its deadline"))
	default:
		c.client.routes.failed(int(c.endpoint.Load()), &c.op.Request)
		c.abandon(kv.Errorf(kv.CodeDeadlineExceeded, "no answer before the deadline"))
	}
}

// wait returns once the operation was answered or its deadline has passed, or with false when ctx was done before.
//
// Only a near deadline gets a timer: setting and removing one costs as much as everything else that an operation does here,
// and the janitor ends the others, late by sweepEvery at most.
func (c *call) wait(ctx context.Context) bool {
	select {
	case <-c.finished:
		return true
	default:
	}
	var deadline <-chan time.Time
	if left := time.Until(c.deadline); left < timerBelow {
		timer := time.NewTimer(left)
		defer timer.Stop()
		deadline = timer.C
	}
	select {
	case <-c.finished:
	case <-ctx.Done():
		return false
	case <-deadline:
		c.expire()
		<-c.finished // whoever claimed the end publishes at once
	}
	return true
}

// answer returns what the operation ended with. A failed one has a result too where a read found nothing: its context.
func (c *call) answer() (Result, error) {
	if c.err != nil {
		return c.result, c.err
	}
	return c.result, nil
}

// abandoned is the error of an operation whose caller gave up.
func abandoned(ctx context.Context) *kv.Error {
	return kv.Errorf(kv.CodeDeadlineExceeded, "the caller gave up: %w", context.Cause(ctx))
}
