package quorum

import (
	"context"
	"sync"

	"github.com/caprockdb/caprock/pkg/kv"
)

// eachAloneMax bounds the requests of one DoEach that run by themselves at once.
const eachAloneMax = 64

// DoEach serves requests on distinct keys, each as Do would, and all of them under the deadline of ctx. What they have to
// say to another replica goes in one message, and what they write here is one commit. What stands in the way of one, a
// refusal say, leaves the others alone: it goes on by itself.
func (c *Coordinator) DoEach(ctx context.Context, calls []Call) []kv.Answer {
	out := make([]kv.Answer, len(calls))
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.RequestTimeout)
		defer cancel()
	}
	e := &each{c: c, ctx: ctx, calls: calls, out: out, slots: make(chan struct{}, eachAloneMax)}
	var reads, writes []int
	for i := range calls {
		switch err := c.check(ctx, &calls[i]); {
		case err != nil:
			e.answer(i, kv.Response{}, err)
		case c.standsAlone(&calls[i]):
			e.alone(func() (kv.Response, error) { return c.serve(ctx, &calls[i]) }, i)
		case calls[i].Request.Op.IsWrite():
			writes = append(writes, i)
		default:
			reads = append(reads, i)
		}
	}
	if len(reads) > 0 {
		e.running.Go(func() { e.read(reads) })
	}
	e.write(writes)
	e.running.Wait()
	return out
}

// standsAlone reports whether the request takes a path of its own before anything is sent, so that the others must not wait for
// it: a listing, a key whose writes go to the leader, a write that is sent only once it is durable here, a writer that has seen what
// this node may have to ask for.
func (c *Coordinator) standsAlone(call *Call) bool {
	r := call.Request
	switch {
	case !r.Op.IsWrite():
		return r.Op != kv.OpGet
	case call.Quorum.W > 1 && c.hot.has(r.Key) || len(r.Resume) > 0 || call.Resolver.KeepsSiblings():
		return true
	case len(r.Context) == 0:
		return false
	}
	seen, err := c.writerRead(r)
	return err == nil && c.deps.Store.lacks(call.Partition, r.Key, &seen)
}

// each is one DoEach under way.
type each struct {
	c     *Coordinator
	ctx   context.Context //nolint:containedctx // it lives as long as one call of DoEach
	calls []Call
	// out has a place for each request, which one goroutine fills.
	out     []kv.Answer
	running sync.WaitGroup
	slots   chan struct{}
}

// answer fills in what became of the request.
func (e *each) answer(i int, res kv.Response, err error) {
	if err != nil {
		e.out[i].Err = e.c.failure(e.calls[i].Request, err)
		return
	}
	e.out[i].Response = res
}

// alone runs what remains of the request by itself.
func (e *each) alone(run func() (kv.Response, error), i int) {
	e.running.Go(func() {
		e.slots <- struct{}{}
		defer func() { <-e.slots }()
		res, err := run()
		e.answer(i, res, err)
	})
}

// peerKey says which requests go in one message.
type peerKey struct {
	node  kv.NodeID
	epoch kv.Epoch
}
