package quorum

import (
	"cmp"
	"context"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// lagPoll is how often a replica whose strong lane lags behind the answer is asked again.
const lagPoll = 2 * time.Millisecond

// writeBack holds a read's answer back until R replicas hold all of it. What the eventual lane lacks is sent; what the
// strong lane lacks the log will bring, and is waited for.
type writeBack struct {
	o      *readOp
	ctx    context.Context //nolint:containedctx // it lives as long as one call of readOp.writeBack
	merged *versions
	keeps  bool
	// events has room for one step of each node, so that nobody blocks who reports after the wait is over.
	events  chan writeBackEvent
	holders int
	// steps is how many are under way.
	steps   int
	started map[kv.NodeID]bool
	// repaired are those that took what was sent. They need not show it afterwards: what is below their repair watermark
	// they have had, and collected, before.
	repaired map[kv.NodeID]bool
	lagging  []kv.NodeID
	cause    error
}

// writeBackEvent is the end of one step: a repair, or when reply is set another read.
type writeBackEvent struct {
	node  kv.NodeID
	reply *ReadReply
	err   error
}

// writeBack returns once R replicas hold what was merged. Its error means that the read must not be answered: another
// that is made after it might be answered with less.
func (o *readOp) writeBack(ctx context.Context, merged *versions) error {
	if mutant.Planted == mutant.RepairAfterAnswer {
		o.mu.Lock()
		behind := lacking(o.heard, merged, o.call.Resolver.KeepsSiblings())
		o.mu.Unlock()
		o.c.sendRepairs(o.call, behind)
		return nil
	}
	o.mu.Lock()
	all := append([]heard(nil), o.heard...)
	o.mu.Unlock()
	w := &writeBack{
		o: o, ctx: ctx, merged: merged, keeps: o.call.Resolver.KeepsSiblings(),
		events: make(chan writeBackEvent, len(o.plan.order)), started: make(map[kv.NodeID]bool, len(o.plan.order)),
		repaired: make(map[kv.NodeID]bool),
	}
	for i := range all {
		w.started[all[i].node] = true
		w.judge(all[i].node, &all[i].reply)
	}
	return w.wait()
}

// judge looks at what a replica holds and takes the next step with it.
func (w *writeBack) judge(node kv.NodeID, r *ReadReply) {
	switch {
	case !w.repaired[node] && !w.merged.heldIn(r, w.keeps):
		w.repair(node)
	case w.merged.hasStrong && (!r.HasStrong || r.Strong.Revision < w.merged.strong.Revision):
		w.lagging = append(w.lagging, node)
	default:
		w.holders++
	}
}

// heldIn reports whether the replica holds all of v's siblings, or what superseded them meanwhile.
func (v *versions) heldIn(r *ReadReply, keeps bool) bool {
	theirs := versions{hasStrong: r.HasStrong, strong: r.Strong, set: r.Set}
	for i := range v.set.Siblings {
		if s := &v.set.Siblings[i]; !r.Set.Covers(s.Dot) && !theirs.covers(s, keeps) {
			return false
		}
	}
	return true
}

func (w *writeBack) repair(node kv.NodeID) {
	c := w.o.c
	w.steps++
	if !c.calls.begin(node) {
		w.events <- writeBackEvent{node: node, err: c.errNotCalled(node)}
		return
	}
	c.metrics.repairs.Inc()
	c.writeRepair(w.o.call, repair{node, w.merged.set}, func(err error) { w.events <- writeBackEvent{node: node, err: err} })
}

func (w *writeBack) read(node kv.NodeID) {
	w.steps++
	c, r := w.o.c, w.o.call.readRequest()
	report := func(node kv.NodeID, reply ReadReply, err error) {
		w.events <- writeBackEvent{node: node, reply: &reply, err: err}
	}
	if node == c.deps.Self {
		reply, err := c.deps.Store.Read(r)
		report(node, reply, err)
		return
	}
	c.askReplica(c.callContext(w.ctx), node, r, report)
}

// others brings in the replicas that the read did not hear, because those that it did are late or have failed.
func (w *writeBack) others() {
	for _, node := range w.o.plan.order {
		if !w.started[node] {
			w.started[node] = true
			w.read(node)
		}
	}
}

func (w *writeBack) wait() error {
	if w.holders >= w.o.call.Quorum.R {
		return nil
	}
	hedge := time.NewTimer(w.o.c.cfg.HedgeDelay)
	defer hedge.Stop()
	poll := time.NewTicker(lagPoll)
	defer poll.Stop()
	for w.holders < w.o.call.Quorum.R {
		if w.steps == 0 && len(w.lagging) == 0 {
			return w.failed(kv.CodeQuorumUnavailable)
		}
		select {
		case e := <-w.events:
			w.steps--
			w.took(e)
		case <-hedge.C:
			w.others()
		case <-poll.C:
			again := w.lagging
			w.lagging = nil
			for _, node := range again {
				w.read(node)
			}
		case <-w.ctx.Done():
			return w.failed(kv.CodeDeadlineExceeded)
		}
	}
	return nil
}

// took takes the end of a step.
func (w *writeBack) took(e writeBackEvent) {
	switch {
	case e.err != nil:
		w.cause = e.err
		w.others()
	case e.reply != nil:
		w.judge(e.node, e.reply)
	case w.merged.hasStrong:
		w.repaired[e.node] = true
		w.read(e.node) // its strong lane has to be as far, too
	default:
		w.holders++
	}
}

// failed is the failure of a read whose answer too few replicas could be brought to hold.
func (w *writeBack) failed(code kv.Code) error {
	err := cmp.Or(w.cause, w.ctx.Err())
	e := kv.Errorf(code, "%d of the %d replicas needed hold what was read, which read_repair=blocking waits for: %w",
		w.holders, w.o.call.Quorum.R, err)
	e.Outcome = kv.OutcomeNotApplied
	e.Required, e.Alive, e.Acked = w.o.call.Quorum.R, w.o.alive, w.holders
	return e
}
