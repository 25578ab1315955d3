package quorum

import (
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// groupedRead is a read that shares its messages with others.
type groupedRead struct {
	i  int
	op *readOp
}

// readGroup is the reads of one DoEach.
type readGroup struct {
	each *each
	open []groupedRead
	// wake has room for one signal: there is something new in a read.
	wake chan struct{}
}

// asked is whom a read asks.
type asked struct {
	read  groupedRead
	nodes []kv.NodeID
}

// read runs the requests, which are reads.
func (e *each) read(indexes []int) {
	g := &readGroup{each: e, wake: make(chan struct{}, 1), open: make([]groupedRead, 0, len(indexes))}
	all := make([]asked, 0, len(indexes))
	for _, i := range indexes {
		op, res, err := e.c.newRead(e.ctx, &e.calls[i])
		if op == nil {
			e.answer(i, res, err)
			continue
		}
		r := groupedRead{i, op}
		g.open = append(g.open, r)
		all = append(all, asked{r, op.first()})
	}
	g.ask(all)
	g.wait()
}

// ask sends each of the nodes one message, and reads here what is asked of this node while those are under way.
func (g *readGroup) ask(all []asked) {
	c := g.each.c
	type load struct {
		requests []ReadRequest
		reads    []*readOp
	}
	loads := make(map[peerKey]*load)
	for _, a := range all {
		for _, node := range a.nodes {
			if node == c.deps.Self {
				continue
			}
			if !c.calls.begin(node) {
				a.read.op.report(node, ReadReply{}, c.errNotCalled(node))
				continue
			}
			key := peerKey{node, a.read.op.call.Epoch}
			l := loads[key]
			if l == nil {
				l = &load{requests: make([]ReadRequest, 0, len(all)), reads: make([]*readOp, 0, len(all))}
				loads[key] = l
			}
			l.requests, l.reads = append(l.requests, a.read.op.call.readRequest()), append(l.reads, a.read.op)
		}
	}
	for key, l := range loads {
		until := c.callContext(g.each.ctx)
		c.deps.Replicas.ReadEach(until, key.node, l.requests, func(first int, results []ReadResult) {
			took := time.Since(until.made)
			if results[0].Err != nil {
				took = max(took, latencyFailed)
			}
			c.latencies.observe(key.node, took)
			for i, r := range results {
				c.calls.end(key.node)
				l.reads[first+i].report(key.node, r.Reply, r.Err)
			}
			g.poke()
		})
	}
	for _, a := range all {
		for _, node := range a.nodes {
			if node == c.deps.Self {
				reply, err := c.deps.Store.Read(a.read.op.call.readRequest())
				a.read.op.report(node, reply, err)
			}
		}
	}
	g.poke()
}

// poke wakes who waits for the group.
func (g *readGroup) poke() {
	select {
	case g.wake <- struct{}{}:
	default: // it has not looked since the last signal
	}
}

// wait answers the reads as they are decided. Those whose replicas failed or are late ask the rest, again in one message each.
func (g *readGroup) wait() {
	if len(g.open) == 0 {
		return
	}
	hedge := time.NewTimer(g.hedgeDelay())
	defer hedge.Stop()
	late, over := false, false
	for {
		var more []asked
		kept := g.open[:0]
		for _, r := range g.open {
			outcome, next := r.op.look(late && !over)
			switch {
			case outcome == Pending && len(next) > 0 && !over:
				r.op.c.metrics.hedges.Inc()
				more = append(more, asked{r, next})
				kept = append(kept, r)
			case outcome == Pending && !over:
				kept = append(kept, r)
			case outcome == Met && r.op.call.Repair == RepairBlocking:
				g.each.alone(func() (kv.Response, error) { return r.op.conclude(g.each.ctx, Met, nil) }, r.i)
			default:
				res, err := r.op.conclude(g.each.ctx, outcome, g.each.ctx.Err())
				g.each.answer(r.i, res, err)
			}
		}
		g.open = kept
		switch {
		case len(kept) == 0:
			return
		case len(more) > 0:
			g.ask(more)
			continue
		}
		select {
		case <-g.wake:
		case <-hedge.C:
			late = true
		case <-g.each.ctx.Done():
			over = true
		}
	}
}

// hedgeDelay is how long the slowest of the reads would wait.
func (g *readGroup) hedgeDelay() time.Duration {
	var nodes []kv.NodeID
	seen := make(map[kv.NodeID]bool)
	for _, r := range g.open {
		for _, node := range r.op.plan.order[1:r.op.call.Quorum.R] {
			if !seen[node] {
				seen[node] = true
				nodes = append(nodes, node)
			}
		}
	}
	return g.each.c.hedgeDelay(nodes)
}
