package quorum

import (
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// groupedWrite is a write that shares its first attempt's messages and commit with others.
type groupedWrite struct {
	i       int
	op      *writeOp
	attempt int
	placed  placed
	commit  *commit // nil when one that was queued before takes the attempt along
}

// writeGroup is the writes of one DoEach.
type writeGroup struct {
	each *each
	open []groupedWrite
	// wake has room for one signal: there is something new in a vote.
	wake chan struct{}
}

// write runs the requests, which are writes. Each is placed here in turn, and nothing is sent before the last one is: that
// costs the first one the reading of the others' keys, and saves a commit and a message each.
func (e *each) write(indexes []int) {
	if len(indexes) == 0 {
		return
	}
	g := &writeGroup{each: e, wake: make(chan struct{}, 1), open: make([]groupedWrite, 0, len(indexes))}
	commits := make([]*commit, 0, len(indexes))
	for _, i := range indexes {
		if w, ok := g.place(i); ok {
			g.open = append(g.open, w)
			if w.commit != nil {
				commits = append(commits, w.commit)
			}
		}
	}
	if err := e.c.deps.Store.pending.offerAll(commits); err != nil {
		g.refused(err)
	}
	g.send()
	g.wait()
}

// place makes the first attempt of a write. It returns false when the write is answered.
func (g *writeGroup) place(i int) (groupedWrite, bool) {
	e := g.each
	call := &e.calls[i]
	op, err := e.c.newWrite(call)
	if err != nil {
		e.answer(i, kv.Response{}, err)
		return groupedWrite{}, false
	}
	w := groupedWrite{i: i, op: op, attempt: op.begin()}
	own := op.ownCopy(w.attempt)
	w.placed, w.commit, err = e.c.deps.Store.draw(e.ctx, e.c.deps.Self, call.Partition, call.Request.Key, op.draft, call.Resolver, func(r WriteReply, err error) {
		own(r, err)
		g.poke()
	})
	switch {
	case err != nil:
		e.answer(i, kv.Response{}, op.notPlaced(err))
		return groupedWrite{}, false
	case w.placed.covered:
		e.answer(i, op.settled(), nil)
		return groupedWrite{}, false
	}
	return w, true
}

// refused answers the writes whose commit the committer did not take. Nothing of them was sent.
func (g *writeGroup) refused(err error) {
	kept := g.open[:0]
	for _, w := range g.open {
		if w.commit == nil {
			kept = append(kept, w)
			continue
		}
		g.each.answer(w.i, kv.Response{}, w.op.notPlaced(err))
	}
	g.open = kept
}

// send hands the other replicas what they are to hold: each of them one message.
func (g *writeGroup) send() {
	c := g.each.c
	until := c.callContext(g.each.ctx)
	type load struct {
		requests []WriteRequest
		writes   []groupedWrite
	}
	loads := make(map[peerKey]*load)
	for _, w := range g.open {
		r := w.op.open(w.placed, until)
		for _, node := range w.op.nodes[1:] {
			if !c.calls.begin(node) {
				w.op.report(w.attempt, node, WriteReply{}, c.errNotCalled(node))
				continue
			}
			key := peerKey{node, r.Epoch}
			l := loads[key]
			if l == nil {
				l = &load{
					requests: make([]WriteRequest, 0, len(g.open)), writes: make([]groupedWrite, 0, len(g.open)),
				}
				loads[key] = l
			}
			l.requests, l.writes = append(l.requests, r), append(l.writes, w)
		}
	}
	for key, l := range loads {
		c.deps.Replicas.WriteEach(until, key.node, l.requests, func(first int, results []WriteResult) {
			for i, r := range results {
				w := &l.writes[first+i]
				c.calls.end(key.node)
				w.op.report(w.attempt, key.node, r.Reply, r.Err)
			}
			g.poke()
		})
	}
	for _, w := range g.open {
		w.op.divertLate(w.op.nodes[w.op.alive:])
	}
}

// poke wakes who waits for the group.
func (g *writeGroup) poke() {
	select {
	case g.wake <- struct{}{}:
	default: // it has not looked since the last signal
	}
}

// wait answers the writes as they are decided. One that was refused somewhere, and one that others keep hints for, goes on by
// itself, as does what is left at the deadline: it knows what to say.
func (g *writeGroup) wait() {
	var turn <-chan time.Time
	for _, w := range g.open {
		if len(w.op.fallbacks) > 0 {
			timer := time.NewTimer(g.each.c.cfg.FallbackDelay)
			defer timer.Stop()
			turn = timer.C
			break
		}
	}
	over := false
	for {
		kept := g.open[:0]
		for _, w := range g.open {
			what, refused := w.op.look(false)
			switch {
			case what == stepApplied:
				g.each.answer(w.i, w.op.answer(w.placed), nil)
			case what == stepFail:
				g.each.answer(w.i, kv.Response{}, w.op.failed(what, nil))
			case what != stepWait || refused || over:
				g.each.alone(func() (kv.Response, error) { return w.op.goOn(g.each.ctx, w.attempt, w.placed) }, w.i)
			default:
				kept = append(kept, w)
			}
		}
		g.open = kept
		if len(kept) == 0 {
			return
		}
		select {
		case <-g.wake:
		case <-turn:
			for _, w := range g.open {
				w.op.divertLate(w.op.nodes)
			}
		case <-g.each.ctx.Done():
			over = true
		}
	}
}
