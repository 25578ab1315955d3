package quorum

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// readOp is one GET under way.
type readOp struct {
	c     *Coordinator
	call  *Call
	alive int
	// until is the context of the calls to other replicas.
	until callContext
	// wake has room for one signal: there is something new below.
	wake chan struct{}

	// mu guards the fields below.
	mu    sync.Mutex
	plan  readPlan
	heard []heard
	cause error
	stale *StaleEpochError
	// answered says that the request has its answer; merged is then what it was taken from.
	answered bool
	merged   versions
}

// heard is one replica's answer.
type heard struct {
	node  kv.NodeID
	reply ReadReply
}

// read coordinates a GET.
func (c *Coordinator) read(ctx context.Context, call *Call) (kv.Response, error) {
	if call.Request.Level == kv.LevelLocal {
		call.Quorum.N = 1
	}
	nodes, alive := c.participants(call)
	if alive < call.Quorum.R {
		return kv.Response{}, tooFewAlive(call.Quorum.R, alive, len(nodes))
	}
	if call.Quorum.R == 1 {
		reply, err := c.deps.Store.Read(call.readRequest())
		if err == nil {
			return c.answer(call, &versions{hasStrong: reply.HasStrong, strong: reply.Strong, set: reply.Set}, nodes[:1])
		}
		if len(nodes) == 1 {
			return kv.Response{}, err
		}
	}
	o := &readOp{
		c: c, call: call, alive: alive, until: c.callContext(ctx),
		wake: make(chan struct{}, 1),
		plan: newReadPlan(nodes, call.Quorum.R),
	}
	return o.run(ctx)
}

func (call *Call) readRequest() ReadRequest {
	return ReadRequest{Partition: call.Partition, Epoch: call.Epoch, Key: call.Request.Key}
}

func (o *readOp) run(ctx context.Context) (kv.Response, error) {
	o.ask(o.plan.start(o.call.Quorum.R))
	switch outcome, err := o.await(ctx); outcome {
	case Met:
		merged, nodes := o.merge()
		return o.c.answer(o.call, &merged, nodes)
	default:
		return kv.Response{}, o.failed(outcome, err)
	}
}

// ask sends to the nodes, this one last: it answers before ask returns, while the others are under way.
func (o *readOp) ask(nodes []kv.NodeID) {
	r := o.call.readRequest()
	self := false
	for _, node := range nodes {
		if node == o.c.deps.Self {
			self = true
			continue
		}
		if !o.c.calls.begin(node) {
			o.report(node, ReadReply{}, o.c.errNotCalled(node))
			continue
		}
		o.c.deps.Replicas.Read(o.until, node, r, func(reply ReadReply, err error) {
			o.c.calls.end(node)
			o.report(node, reply, err)
		})
	}
	if self {
		reply, err := o.c.deps.Store.Read(r)
		o.report(o.c.deps.Self, reply, err)
	}
}

// report takes one replica's answer. One that comes after the request was answered still shows who is behind.
func (o *readOp) report(node kv.NodeID, reply ReadReply, err error) {
	o.mu.Lock()
	if o.answered {
		var behind []repair
		if err == nil {
			behind = o.late(heard{node, reply})
		}
		o.mu.Unlock()
		o.c.sendRepairs(o.call, behind)
		return
	}
	if err != nil {
		o.plan.failed(node)
		o.cause = err
		if stale, ok := errors.AsType[*StaleEpochError](err); ok && (o.stale == nil || stale.Epoch > o.stale.Epoch) {
			o.stale = stale
		}
	} else {
		o.plan.answered(node)
		o.heard = append(o.heard, heard{node, reply})
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default: // it has not looked since the last signal
	}
}

// await waits until the read is decided or the deadline passes; then it returns Pending and the context's error.
func (o *readOp) await(ctx context.Context) (Outcome, error) {
	var hedge <-chan time.Time
	late := false
	for {
		outcome, more := o.look(late)
		switch {
		case outcome != Pending:
			return outcome, nil
		case len(more) > 0:
			o.c.metrics.hedges.Inc()
			o.ask(more)
			continue
		case hedge == nil && !late:
			timer := time.NewTimer(o.c.cfg.HedgeDelay)
			defer timer.Stop()
			hedge = timer.C
		}
		select {
		case <-o.wake:
		case <-hedge:
			late = true
		case <-ctx.Done():
			outcome, _ = o.look(false)
			return outcome, ctx.Err()
		}
	}
}

// look returns where the read stands and whom to ask now.
func (o *readOp) look(late bool) (Outcome, []kv.NodeID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if late || o.cause != nil {
		return o.plan.votes.Outcome(), o.plan.rest()
	}
	return o.plan.votes.Outcome(), nil
}

// merge makes the answer out of what was heard, and repairs in the background who lacked something of it.
func (o *readOp) merge() (versions, []kv.NodeID) {
	o.mu.Lock()
	for i := range o.heard {
		o.merged.add(&o.heard[i].reply)
	}
	keeps := o.call.Resolver.KeepsSiblings()
	o.merged.set = o.merged.surviving(o.merged.set, keeps)
	nodes := make([]kv.NodeID, len(o.heard))
	for i := range o.heard {
		nodes[i] = o.heard[i].node
	}
	behind := lacking(o.heard, &o.merged, keeps)
	o.answered = true
	merged := o.merged
	o.mu.Unlock()
	o.c.sendRepairs(o.call, behind)
	return merged, nodes
}

// failed is the failure of a read.
func (o *readOp) failed(outcome Outcome, deadline error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered = true
	acked, required := o.plan.votes.Acked(), o.call.Quorum.R
	var e *kv.Error
	switch {
	case outcome == Pending:
		e = kv.Errorf(kv.CodeDeadlineExceeded, "%d of the %d replicas needed answered before the deadline: %w", acked, required, deadline)
	case o.stale != nil:
		e = kv.Errorf(kv.CodeQuorumUnavailable, "%d of the %d replicas needed answered: %w", acked, required, o.stale)
	default:
		e = kv.Errorf(kv.CodeQuorumUnavailable, "%d of the %d replicas needed answered: %w", acked, required, o.cause)
	}
	e.Required, e.Alive, e.Acked = required, o.alive, acked
	return e
}

// answer makes the response to a read out of what the replicas hold.
func (c *Coordinator) answer(call *Call, v *versions, nodes []kv.NodeID) (kv.Response, error) {
	r := call.Request
	res := kv.Response{
		Level: r.Level, Acks: len(nodes), Replicas: nodes, Coordinator: c.deps.Self,
		Context: causal.EncodeContext(r.Key, v.set.Context),
	}
	err := v.resolve(&res, call.Resolver, r.Siblings)
	return res, err
}
