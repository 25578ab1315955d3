package quorum

import (
	"context"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// writeOp is one PUT or DELETE under way. The goroutine that asked for it waits in await; replicas report from
// wherever they are.
type writeOp struct {
	c     *Coordinator
	call  *Call
	nodes []kv.NodeID // who takes part, this node first
	alive int
	// fallbacks are the live nodes that may keep hints of a sloppy write, next ones first.
	fallbacks []kv.NodeID
	// wake has room for one signal: there is something new in vote.
	wake chan struct{}
	// draft is the write, found what a reader would have found before its first attempt, attemptsMax how many it has. They
	// belong to the goroutine that makes the attempts.
	draft       *draft
	found       bool
	attemptsMax int
	// own receives what became of this node's own copy of the present attempt, where that is waited for before it is sent; else nil.
	own chan error

	// first and mounted are the dots of the first and the last attempt that were placed here, applied and result how the write
	// ended; rides guards them. ended is closed then.
	first, mounted causal.Dot
	applied        bool
	result         kv.Response
	ended          chan struct{}

	// mu guards the fields below.
	mu       sync.Mutex
	vote     writeVote
	answered bool
	// acked is when a write that is measured was answered.
	acked time.Time
	// set and dot are the present attempt: what a replica that does not take it lacks.
	set causal.SiblingSet
	dot causal.Dot
	// until is the context of the calls made for the present attempt.
	until callContext
	// diverted are the replicas for which others were asked to keep the present attempt, fallen how many of fallbacks were.
	diverted []kv.NodeID
	fallen   int
}

// write coordinates a PUT or DELETE.
func (c *Coordinator) write(ctx context.Context, call *Call) (kv.Response, error) {
	o, err := c.newWrite(call)
	if err != nil {
		return kv.Response{}, err
	}
	// A write that this node alone may acknowledge is refused by nobody, and must not wait for anybody.
	if call.Quorum.W > 1 && c.hot.has(call.Request.Key) {
		if res, done, err := c.handOver(ctx, call, nil); done {
			return res, err
		}
	}
	if seen := &o.draft.context; len(seen.Dots) > 0 || seen.Vector.Log() > 0 {
		c.catchUp(ctx, call, seen)
	}
	return o.run(ctx)
}

// newWrite checks the request, and that enough replicas are alive for it.
func (c *Coordinator) newWrite(call *Call) (*writeOp, error) {
	r := call.Request
	read, err := c.writerRead(r)
	if err != nil {
		return nil, err
	}
	blind := len(r.Context) == 0
	if f, ok := call.Resolver.(Folder); ok && r.Op == kv.OpPut {
		if err := f.Check(r.Value, !blind); err != nil {
			return nil, err
		}
	}
	nodes, alive := c.participants(call)
	fallbacks := c.fallbacksOf(call)
	if alive+len(fallbacks) < call.Quorum.W {
		return nil, tooFewAlive(call.Quorum.W, alive, len(nodes))
	}
	o := &writeOp{
		c: c, call: call, nodes: nodes, alive: alive, fallbacks: fallbacks,
		wake:        make(chan struct{}, 1),
		vote:        newWriteVote(c.deps.Self, call.Quorum.W, len(nodes)),
		draft:       &draft{context: read, blind: blind, deleted: r.Op == kv.OpDelete, value: r.Value, ttl: r.TTL},
		attemptsMax: c.cfg.AttemptsMax,
	}
	if len(r.Resume) > 0 || c.leads(call) {
		// There is nobody to hand the write to that could do better.
		o.attemptsMax = c.cfg.LeaderAttemptsMax
	}
	if len(r.Resume) > 0 {
		if o.found, err = decodeResume(r.Resume, o.draft); err != nil {
			return nil, err
		}
		o.vote.above, o.vote.base = o.draft.above, o.draft.base
	}
	if a := call.after; a != nil && a.above.After(o.vote.above) {
		o.vote.above = a.above // its base was appended where it was read
	}
	return o, nil
}

// writerRead returns what the writer had read. An entry ahead of every clock would silently cover writes yet to be made,
// so that the clock has to see it first.
func (c *Coordinator) writerRead(r *kv.Request) (causal.Seen, error) {
	if len(r.Context) == 0 {
		return causal.Seen{}, nil
	}
	read, err := causal.DecodeContext(r.Key, r.Context)
	if err == nil {
		err = c.deps.Clock.Observe(read.Latest())
	}
	if err != nil {
		return causal.Seen{}, kv.Errorf(kv.CodeBadRequest, "the context cannot be used: %w", err)
	}
	return read, nil
}

// run makes attempts until one is decided.
func (o *writeOp) run(ctx context.Context) (kv.Response, error) {
	res, err := o.attempts(ctx)
	o.c.rides.dismount(o, res, err)
	return res, err
}

func (o *writeOp) attempts(ctx context.Context) (kv.Response, error) {
	for {
		attempt := o.begin()
		p, err := o.c.deps.Store.place(ctx, o.c.deps.Self, o.call.Partition, o.call.Request.Key, o.draft, o.call.Resolver, o.ownCopy(attempt))
		if err != nil {
			return kv.Response{}, o.notPlaced(err)
		}
		if p.covered {
			return o.settled(), nil
		}
		o.c.rides.mount(o, p)
		o.send(ctx, attempt, p)
		if res, done, err := o.conclude(ctx, attempt, p); done {
			return res, err
		}
	}
}

// goOn is run for a write whose present attempt was placed and sent before.
func (o *writeOp) goOn(ctx context.Context, attempt int, p placed) (kv.Response, error) {
	o.c.rides.mount(o, p)
	res, done, err := o.conclude(ctx, attempt, p)
	if !done {
		res, err = o.attempts(ctx)
	}
	o.c.rides.dismount(o, res, err)
	return res, err
}

// ownCopy reports what becomes of this node's own copy of the attempt.
func (o *writeOp) ownCopy(attempt int) func(WriteReply, error) {
	if !o.keptFirst() {
		return func(r WriteReply, err error) { o.report(attempt, o.c.deps.Self, r, err) }
	}
	own := make(chan error, 1)
	o.own = own
	return func(r WriteReply, err error) {
		o.report(attempt, o.c.deps.Self, r, err)
		own <- err
	}
}

// keptFirst reports whether nothing of an attempt may be sent before this node's own copy is durable. Where versions are kept, what the
// others drop for an attempt would be gone with it: its coordinator, which has lost it with its power, covers it with its next dot.
func (o *writeOp) keptFirst() bool {
	return o.call.Resolver.KeepsSiblings() && mutant.Planted != mutant.SentBeforeKept
}

// safeHere waits until the attempt may be sent. It returns false when it may not.
func (o *writeOp) safeHere(ctx context.Context) bool {
	if o.own == nil {
		return true
	}
	select {
	case err := <-o.own:
		return err == nil
	case <-ctx.Done():
		return false
	}
}

// conclude waits until the attempt is decided. It returns false when there has to be another.
func (o *writeOp) conclude(ctx context.Context, attempt int, p placed) (kv.Response, bool, error) {
	what, err := o.await(ctx)
	if what == stepRestamp {
		if ridden, ok := o.ride(ctx); ok {
			return o.carried(p, ridden), true, nil
		}
		if ctx.Err() != nil {
			return kv.Response{}, true, o.failed(stepWait, ctx.Err())
		}
	}
	switch {
	case what == stepApplied:
		return o.answer(p), true, nil
	case what == stepRestamp && attempt >= attemptsBeforeLeader:
		if res, done, err := o.lead(ctx); done {
			return res, true, err
		}
		if attempt >= o.attemptsMax {
			return kv.Response{}, true, o.failed(what, err)
		}
	case what == stepRestamp && attempt < o.attemptsMax:
	default:
		return kv.Response{}, true, o.failed(what, err)
	}
	o.c.metrics.restamps.Inc()
	return kv.Response{}, false, nil
}

// begin opens the next attempt's vote and tells the draft what the last one was refused with.
func (o *writeOp) begin() (attempt int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.vote.begin()
	o.set, o.diverted, o.fallen = causal.SiblingSet{}, nil, 0
	o.draft.above, o.draft.base = o.vote.above, o.vote.base
	return o.vote.attempt
}

// send hands the attempt to all other replicas at once.
func (o *writeOp) send(ctx context.Context, attempt int, p placed) {
	until := o.c.callContext(ctx)
	w := o.open(p, until)
	if !o.safeHere(ctx) {
		return
	}
	for _, node := range o.nodes[1:] {
		if !o.c.calls.begin(node) {
			o.report(attempt, node, WriteReply{}, o.c.errNotCalled(node))
			continue
		}
		o.c.deps.Replicas.Write(until, node, w, func(r WriteReply, err error) {
			o.c.calls.end(node)
			o.report(attempt, node, r, err)
		})
	}
	o.divertLate(o.nodes[o.alive:])
}

// open makes what was placed the present attempt and returns what the other replicas are sent of it.
func (o *writeOp) open(p placed, until callContext) WriteRequest {
	if o.draft.id.IsZero() {
		// What a reader would have found is what lay there before the write's first attempt.
		o.draft.id, o.found = p.dot, p.found
	}
	o.mu.Lock()
	o.set, o.dot, o.until = p.set, p.dot, until
	o.mu.Unlock()
	return WriteRequest{
		Partition: o.call.Partition, Epoch: o.call.Epoch, Key: o.call.Request.Key, Set: p.set, New: p.dot,
	}
}

// lead hands a write that was refused again and again to the leader of the partition, which cannot be outrun by its own log
// and puts the writes that are handed to it in one order. It returns false when the leader did nothing, or there is none.
func (o *writeOp) lead(ctx context.Context) (kv.Response, bool, error) {
	o.mu.Lock()
	o.draft.above, o.draft.base = o.vote.above, o.vote.base
	// The leader's attempts are above this one, as further ones of this node were: a refusal because of a promise alone may name a lower
	// stamp, and a copy of a higher one that is left somewhere would overtake what comes between.
	if last, ok := o.set.Holds(o.dot); ok {
		if last.Stamp.After(o.draft.above) {
			o.draft.above = last.Stamp
		}
		if last.Stamp.Base.Compare(o.draft.base) > 0 {
			o.draft.base = last.Stamp.Base
		}
	}
	o.mu.Unlock()
	res, done, err := o.c.handOver(ctx, o.call, appendResume(nil, o.draft, o.found))
	if !done {
		return kv.Response{}, false, nil
	}
	o.mu.Lock()
	o.answered = true
	o.mu.Unlock()
	return res, true, err
}

// report takes what became of the attempt at one replica.
func (o *writeOp) report(attempt int, node kv.NodeID, r WriteReply, err error) {
	o.mu.Lock()
	late := o.answered
	var h handoff
	switch {
	case err != nil:
		o.vote.failure(attempt, node, err)
		h = o.missed(attempt, node)
	case r.Accepted && r.Healing && mutant.Planted != mutant.HealingCounted:
		o.vote.stored(attempt, node, errUncounted(o.call.Partition, node))
		h = o.spare(attempt, node)
	case r.Accepted:
		o.vote.acked(attempt, node)
	default:
		o.vote.refused(attempt, node, r)
	}
	if late {
		o.measureLag()
	}
	// Waking the request's goroutine costs more than the rest of this, so that it sleeps on until an acknowledgement decides.
	counted := err == nil && r.Accepted && !r.Healing && o.vote.refusals == 0 && o.vote.next(false) == stepWait
	o.mu.Unlock()
	o.handOff(h)
	switch {
	case !late && counted:
	case !late:
		o.poke()
	case err == nil && r.Accepted:
		o.c.metrics.lateAcks.Inc()
	default:
		o.c.metrics.lateFailures.Inc()
	}
}

// await waits until the attempt is decided or the deadline passes; then it returns stepWait and the context's error.
func (o *writeOp) await(ctx context.Context) (step, error) {
	var timer *time.Timer
	var hedge <-chan time.Time
	late := false
	var turn <-chan time.Time
	if len(o.fallbacks) > 0 {
		t := time.NewTimer(o.c.cfg.FallbackDelay)
		defer t.Stop()
		turn = t.C
	}
	for {
		what, refused := o.look(late)
		if what != stepWait {
			return what, nil
		}
		if refused && timer == nil {
			timer = time.NewTimer(o.c.cfg.HedgeDelay)
			defer timer.Stop()
			hedge = timer.C
		}
		select {
		case <-o.wake:
		case <-hedge:
			late = true
		case <-turn:
			o.divertLate(o.nodes)
		case <-ctx.Done():
			what, _ = o.look(late)
			return what, ctx.Err()
		}
	}
}

func (o *writeOp) look(late bool) (what step, refused bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.vote.next(late), o.vote.refusals > 0
}

// answer answers a write that W replicas hold.
func (o *writeOp) answer(p placed) kv.Response {
	o.mu.Lock()
	o.answered = true
	o.call.after.written(p)
	acked := o.vote.votes.AckedNodes(make([]kv.NodeID, 0, len(o.nodes)))
	if o.c.writes.take() {
		o.acked = time.Now()
		o.measureLag()
	}
	hinted := o.vote.hintedAcks()
	o.mu.Unlock()
	if hinted > 0 {
		o.c.metrics.hintedWrites.Add(float64(hinted))
	}
	return kv.Response{
		Found: o.found, Level: o.call.Request.Level, Outcome: kv.OutcomeApplied, Acks: len(acked) + hinted, Hinted: hinted,
		Context:   causal.EncodeSeen(o.call.Request.Key, o.draft.writerContext(p.set, p.dot, o.call.Resolver.KeepsSiblings())),
		Timestamp: p.dot.Time.Time(), Coordinator: o.c.deps.Self, Replicas: acked,
	}
}

// carried answers a write that took effect just before a later one of this coordinator.
func (o *writeOp) carried(p placed, by kv.Response) kv.Response {
	o.mu.Lock()
	o.answered = true
	o.call.after.written(p) // what carried it lies above it and covers it
	o.mu.Unlock()
	o.c.metrics.carried.Inc()
	return kv.Response{
		Found: o.found, Level: o.call.Request.Level, Outcome: kv.OutcomeApplied, Acks: by.Acks, Hinted: by.Hinted,
		Context:   causal.EncodeSeen(o.call.Request.Key, o.draft.writerContext(p.set, p.dot, false)),
		Timestamp: p.dot.Time.Time(), Coordinator: o.c.deps.Self, Replicas: by.Replicas,
	}
}

// measureLag notes, for a write that is measured, how long after its answer the last replica acknowledged it. One that
// some replica never acknowledged is not measured: lateFailures counts it. o.mu must be held.
func (o *writeOp) measureLag() {
	if !o.acked.IsZero() && o.vote.votes.Acked() == len(o.nodes) {
		o.c.metrics.lag[o.call.Request.Level].Observe(time.Since(o.acked).Seconds())
		o.acked = time.Time{}
	}
}

// settled answers a write that the strong lane took in while it was refused: its log holds the write, so that a majority
// of all replicas does.
func (o *writeOp) settled() kv.Response {
	o.mu.Lock()
	o.answered = true
	o.mu.Unlock()
	return kv.Response{
		Found: o.found, Settled: true, Level: o.call.Request.Level, Outcome: kv.OutcomeApplied,
		Acks: kv.Majority(len(o.call.Owners)), Context: causal.EncodeSeen(o.call.Request.Key, o.draft.context),
		Timestamp: o.draft.id.Time.Time(), Coordinator: o.c.deps.Self, Replicas: []kv.NodeID{o.c.deps.Self},
	}
}

// notPlaced is the failure of a write whose attempt this node itself did not take. Nothing of this attempt was sent.
func (o *writeOp) notPlaced(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered = true
	e := kv.AsError(err)
	if o.vote.heldBefore {
		return e.WithOutcome(kv.OutcomeUnknown)
	}
	return e.WithOutcome(kv.OutcomeNotApplied)
}

// failed is the failure of a write that was sent.
func (o *writeOp) failed(what step, deadline error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered = true
	v := &o.vote
	acked := v.acks()
	var e *kv.Error
	switch {
	case deadline != nil && what == stepWait:
		e = kv.Errorf(kv.CodeDeadlineExceeded, "%d of the %d replicas needed acknowledged before the deadline: %w", acked, v.required, deadline)
	case what == stepRestamp:
		e = kv.Errorf(kv.CodeQuorumUnavailable, "the write was overtaken by others on each of %d attempts", v.attempt)
	case v.stale != nil:
		e = kv.Errorf(kv.CodeQuorumUnavailable, "%d of the %d replicas needed acknowledged: %w", acked, v.required, v.stale)
	case kv.CodeOf(v.cause) == kv.CodeLevelFenced:
		e = kv.Errorf(kv.CodeLevelFenced, "%d of the %d replicas needed acknowledged: %w", acked, v.required, v.cause)
	case v.failed:
		// This node's own storage: say what it said.
		e = kv.Errorf(kv.AsError(v.cause).Code, "the coordinator could not keep the write: %w", v.cause)
	default:
		e = kv.Errorf(kv.CodeQuorumUnavailable, "%d of the %d replicas needed acknowledged: %w", acked, v.required, v.cause)
	}
	e.Outcome = v.outcome()
	e.Required, e.Alive, e.Acked = v.required, o.alive, acked
	return e
}
