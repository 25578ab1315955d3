package quorum

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
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
	// failedRead says that the answer was an error: there is nothing to compare late answers with.
	failedRead bool
	// sampled says that everybody is asked at once. aside are then those whose answer does not count yet.
	sampled bool
	aside   []onlooker
	began   causal.HLC
	sample  *sample // set once answered
}

// onlooker is the answer of a replica that a sampled read asked beside those that count.
type onlooker struct {
	heard
	err error
}

// heard is one replica's answer.
type heard struct {
	node  kv.NodeID
	reply ReadReply
}

// read coordinates a GET.
func (c *Coordinator) read(ctx context.Context, call *Call) (kv.Response, error) {
	o, res, err := c.newRead(ctx, call)
	if o == nil {
		return res, err
	}
	return o.run(ctx)
}

const (
	// lagTries is how often a read asks all replicas alive when those it asked lag behind the log, lagPause the time between.
	lagTries = 5
	lagPause = 10 * time.Millisecond
)

// readLagging reads a key again of which the replicas that were asked hold no version any more because the strong lane took it in, in
// a state that none of them has applied yet: a repair told them. One of all replicas has applied it.
func (c *Coordinator) readLagging(ctx context.Context, call *Call) (kv.Response, error) {
	for range lagTries {
		c.metrics.lagging.Inc()
		select {
		case <-ctx.Done():
			return kv.Response{}, kv.Errorf(kv.CodeDeadlineExceeded, "%w: %w", errLags, ctx.Err())
		case <-time.After(lagPause):
		}
		again := *call
		if _, alive := c.participants(call); alive > again.Quorum.R {
			again.Quorum.R = alive
		}
		o, res, err := c.newRead(ctx, &again)
		if o == nil {
			return res, err
		}
		o.ask(o.first())
		if outcome, err := o.await(ctx); outcome != Met {
			if err = o.failed(outcome, err); ctx.Err() != nil {
				return kv.Response{}, err
			}
			continue
		}
		if merged, nodes := o.merge(); !merged.lags(merged.set) {
			return c.answer(call, &merged, nodes)
		}
	}
	return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "%w", errLags)
}

var errLags = errors.New("the replicas that were asked have yet to apply a strong write that replaced what they held")

// newRead answers a read that this node can answer alone, and otherwise returns what asks the others.
func (c *Coordinator) newRead(ctx context.Context, call *Call) (*readOp, kv.Response, error) {
	// A bounded read takes this replica's answer, or a majority's with it, for a proof; more would not be one.
	sampled := call.Request.Level != kv.LevelBounded && c.reads.take() && len(call.Owners) > 1
	if call.Request.Level == kv.LevelLocal && !sampled {
		call.Quorum.N = 1
	}
	nodes, alive := c.participants(call)
	if alive < call.Quorum.R {
		return nil, kv.Response{}, tooFewAlive(call.Quorum.R, alive, len(nodes))
	}
	if call.Quorum.R == 1 && !sampled {
		reply, err := c.deps.Store.Read(call.readRequest())
		if err == nil && reply.Healing && !call.takesHealing() {
			err = errUncounted(call.Partition, c.deps.Self)
		}
		if err == nil {
			res, err := c.answer(call, &versions{hasStrong: reply.HasStrong, strong: reply.Strong, set: reply.Set}, nodes[:1])
			return nil, res, err
		}
		if len(nodes) == 1 {
			return nil, kv.Response{}, err
		}
	}
	o := &readOp{
		c: c, call: call, alive: alive, until: c.callContext(ctx), sampled: sampled,
		wake: make(chan struct{}, 1),
		plan: newReadPlan(nodes, call.Quorum.R),
	}
	if sampled {
		var err error
		if o.began, err = c.deps.Clock.Now(); err != nil {
			return nil, kv.Response{}, unread(err)
		}
	}
	return o, kv.Response{}, nil
}

// takesHealing reports whether the answer of a replica that has lost rows will do: at level local, which asks for what this
// replica has.
func (call *Call) takesHealing() bool {
	return call.Request.Level == kv.LevelLocal || mutant.Planted == mutant.HealingCounted
}

func (call *Call) readRequest() ReadRequest {
	return ReadRequest{Partition: call.Partition, Epoch: call.Epoch, Key: call.Request.Key}
}

func (o *readOp) run(ctx context.Context) (kv.Response, error) {
	o.ask(o.first())
	outcome, err := o.await(ctx)
	return o.conclude(ctx, outcome, err)
}

// first returns who is asked at once.
func (o *readOp) first() []kv.NodeID {
	first := o.plan.start(o.call.Quorum.R)
	if o.sampled {
		first = o.plan.order
	}
	return first
}

// conclude answers a read that was decided.
func (o *readOp) conclude(ctx context.Context, outcome Outcome, err error) (kv.Response, error) {
	if outcome != Met {
		return kv.Response{}, o.failed(outcome, err)
	}
	merged, nodes := o.merge()
	if o.call.Quorum.R > 1 && merged.lags(merged.set) {
		return o.c.readLagging(ctx, o.call)
	}
	if o.call.Repair == RepairBlocking {
		if err := o.writeBack(ctx, &merged); err != nil {
			return kv.Response{}, err
		}
	}
	return o.c.answer(o.call, &merged, nodes)
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
		o.c.askReplica(o.until, node, r, o.report)
	}
	if self {
		reply, err := o.c.deps.Store.Read(r)
		o.report(o.c.deps.Self, reply, err)
	}
}

// askReplica asks another node, and notes how long it takes.
func (c *Coordinator) askReplica(until callContext, node kv.NodeID, r ReadRequest, report func(kv.NodeID, ReadReply, error)) {
	if !c.calls.begin(node) {
		report(node, ReadReply{}, c.errNotCalled(node))
		return
	}
	c.deps.Replicas.Read(until, node, r, func(reply ReadReply, err error) {
		c.calls.end(node)
		took := time.Since(until.made)
		if err != nil {
			took = max(took, latencyFailed)
		}
		c.latencies.observe(node, took)
		report(node, reply, err)
	})
}

// latencyFailed is how long a replica is taken to need that failed, however quickly it did.
const latencyFailed = 50 * time.Millisecond

// report takes one replica's answer.
func (o *readOp) report(node kv.NodeID, reply ReadReply, err error) {
	if err == nil && reply.Healing && !o.call.takesHealing() {
		err = errUncounted(o.call.Partition, node)
	}
	o.mu.Lock()
	switch {
	case o.answered:
		behind := o.after(onlooker{heard{node, reply}, err})
		o.mu.Unlock()
		o.c.sendRepairs(o.call, behind)
		return
	case o.sampled && !o.plan.counts(node):
		o.aside = append(o.aside, onlooker{heard{node, reply}, err})
	default:
		o.count(node, reply, err)
	}
	counted := o.cause == nil && o.plan.votes.Outcome() == Pending
	o.mu.Unlock()
	if counted {
		return // it sleeps on until an answer decides
	}
	select {
	case o.wake <- struct{}{}:
	default: // it has not looked since the last signal
	}
}

// count counts one replica's answer. o.mu must be held.
func (o *readOp) count(node kv.NodeID, reply ReadReply, err error) {
	if err == nil {
		o.plan.answered(node)
		o.heard = append(o.heard, heard{node, reply})
		return
	}
	o.plan.failed(node)
	o.cause = clearest(o.cause, err)
	if stale, ok := errors.AsType[*StaleEpochError](err); ok && (o.stale == nil || stale.Epoch > o.stale.Epoch) {
		o.stale = stale
	}
}

// after takes an answer that the request was not answered from. It still shows who is behind, and how old the answer
// was. o.mu must be held.
func (o *readOp) after(l onlooker) []repair {
	if o.sample != nil {
		if l.err == nil {
			o.sample.see(&l.reply)
		} else {
			o.sample.lost()
		}
		o.measure()
	}
	if l.err != nil || o.failedRead {
		return nil
	}
	return o.late(l.heard)
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
			timer := time.NewTimer(o.c.hedgeDelay(o.plan.order[1:o.call.Quorum.R]))
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

// hedgeDelay is how long a read waits for the nodes before it asks others: several times what they took lately, so that
// a cluster under load does not ask everybody for everything and make it worse.
func (c *Coordinator) hedgeDelay(nodes []kv.NodeID) time.Duration {
	delay := c.cfg.HedgeDelay
	for _, node := range nodes {
		delay = max(delay, hedgeFactor*time.Duration(c.latencies.of(node).Load()))
	}
	return min(delay, hedgeFactorMax*c.cfg.HedgeDelay)
}

const (
	hedgeFactor    = 3
	hedgeFactorMax = 10
)

// look returns where the read stands and whom to ask now.
func (o *readOp) look(late bool) (Outcome, []kv.NodeID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !late && o.cause == nil {
		return o.plan.votes.Outcome(), nil
	}
	more := o.plan.rest()
	if !o.sampled || len(more) == 0 {
		return o.plan.votes.Outcome(), more
	}
	// They were asked at the start: who has answered by now counts.
	o.c.metrics.hedges.Inc()
	for _, l := range o.aside {
		o.count(l.node, l.reply, l.err)
	}
	o.aside = nil
	return o.plan.votes.Outcome(), nil
}

// merge makes the answer out of what was heard, and repairs in the background who lacked something of it.
func (o *readOp) merge() (versions, []kv.NodeID) {
	o.mu.Lock()
	for i := range o.heard {
		o.merged.add(&o.heard[i].reply)
		if mutant.Planted == mutant.FirstAnswerWins {
			break
		}
	}
	keeps := o.call.Resolver.KeepsSiblings()
	o.merged.set = o.merged.surviving(o.merged.set, keeps)
	nodes := make([]kv.NodeID, len(o.heard))
	for i := range o.heard {
		nodes[i] = o.heard[i].node
	}
	var behind []repair
	if o.call.Repair == RepairBackground {
		behind = lacking(o.heard, &o.merged, keeps)
	}
	o.answered = true
	merged := o.merged
	if o.sampled {
		o.sample = &sample{answer: merged, keeps: keeps, began: o.began, waiting: len(o.plan.order) - o.plan.votes.Voted()}
		o.measure()
	}
	for _, l := range o.aside {
		behind = append(behind, o.after(l)...)
	}
	o.aside = nil
	o.mu.Unlock()
	o.c.sendRepairs(o.call, behind)
	return merged, nodes
}

// failed is the failure of a read.
func (o *readOp) failed(outcome Outcome, deadline error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered, o.failedRead = true, true
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
		Context: causal.EncodeContext(r.Key, v.context(call.Resolver.KeepsSiblings())),
	}
	if v.expires() {
		var err error
		if v.now, err = c.deps.Clock.Now(); err != nil {
			return kv.Response{}, kv.Errorf(kv.CodeInternal, "it could not be told what has expired: %w", err)
		}
	}
	err := v.resolve(&res, call.Resolver, r.Siblings)
	return res, err
}
