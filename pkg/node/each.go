package node

import (
	"context"
	"sync"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// eachWorkersMax bounds the requests of one ExecuteEach that run by themselves at once.
const eachWorkersMax = 64

// ExecuteEach serves many requests that a user sent together, each as Execute would; no level makes them one write. Those on
// one key run in their order: the next one begins once the one before has its answer. All others run at once. At the levels
// eventual and local those of different keys share their messages to other nodes and their commits.
func (n *Node) ExecuteEach(ctx context.Context, rs []kv.Request) []kv.Answer {
	out := make([]kv.Answer, len(rs))
	fail := func(err error) []kv.Answer {
		for i := range out {
			out[i].Err = kv.AsError(err)
		}
		return out
	}
	if n.draining.Load() || !n.gate.enter() {
		return fail(kv.Errorf(kv.CodeNotReady, "node %s is stopping", n.cfg.Name))
	}
	defer n.gate.leave()
	cost := int64(0)
	for i := range rs {
		cost += costOf(&rs[i])
	}
	if err := n.admission.enterMany(int64(len(rs)), cost); err != nil {
		n.metrics.refused.Add(float64(len(rs)))
		return fail(err)
	}
	defer n.admission.leaveMany(int64(len(rs)), cost)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, n.cfg.RequestTimeout)
		defer cancel()
	}
	e := &each{n: n, ctx: ctx, requests: rs, out: out, routes: make([]route, len(rs)), slots: make(chan struct{}, eachWorkersMax)}
	e.run()
	return out
}

// each is one ExecuteEach under way.
type each struct {
	n        *Node
	ctx      context.Context //nolint:containedctx // it lives as long as one call of ExecuteEach
	requests []kv.Request
	routes   []route
	// out has a place for each request, which one goroutine fills.
	out     []kv.Answer
	running sync.WaitGroup
	slots   chan struct{}
}

func (e *each) answer(i int, res kv.Response, err error) {
	if err != nil {
		e.out[i].Err = kv.AsError(err)
		return
	}
	e.out[i].Response = res
}

// run serves the requests in rounds: the first one of each key, then the second of those that have one, and so on. Keys of
// which one request is strong, or may fall back to a weaker level, wait for nobody else's.
func (e *each) run() {
	chains := make(map[string][]int, len(e.requests))
	order := make([]string, 0, len(e.requests))
	apart := make(map[string]bool)
	for i := range e.requests {
		if err := e.plan(i); err != nil {
			e.answer(i, kv.Response{}, err)
			continue
		}
		key := string(e.requests[i].Key)
		if chains[key] == nil {
			order = append(order, key)
		}
		chains[key] = append(chains[key], i)
		if r := e.routes[i].request; r.Level == kv.LevelStrong || r.Level == kv.LevelCausal || r.Level == kv.LevelBounded || r.Fallback != kv.LevelUnset {
			apart[key] = true
		}
	}
	var rounds [][]int
	for _, key := range order {
		if chain := chains[key]; apart[key] {
			e.alone(func() {
				for _, i := range chain {
					res, err := e.n.route(e.ctx, &e.requests[i])
					e.answer(i, res, err)
				}
			})
			continue
		}
		for at, i := range chains[key] {
			if at == len(rounds) {
				rounds = append(rounds, make([]int, 0, len(order)))
			}
			rounds[at] = append(rounds[at], i)
		}
	}
	for _, round := range rounds {
		e.round(round)
	}
	e.running.Wait()
}

func (e *each) plan(i int) (err error) {
	if e.requests[i].Op.IsWrite() {
		if err := e.n.refuseWrite(); err != nil {
			return err
		}
	}
	e.routes[i], err = e.n.plan(&e.requests[i])
	return err
}

// alone runs f beside the others.
func (e *each) alone(f func()) {
	e.running.Go(func() {
		e.slots <- struct{}{}
		defer func() { <-e.slots }()
		f()
	})
}

// round serves requests of the levels eventual and local on distinct keys: here those that this node coordinates, and
// those of the others at as few nodes as the replicas of their keys allow, each of which is sent one message.
func (e *each) round(indexes []int) {
	n := e.n
	var here []int
	there := make(map[kv.NodeID][]int)
	for _, i := range indexes {
		rt := &e.routes[i]
		if n.coordinates(rt) {
			here = append(here, i)
			continue
		}
		to := n.pickOwner(n.nearestFirst(rt.owners), 0)
		switch {
		case rt.request.Hops >= hopsMax:
			e.answer(i, kv.Response{}, errHops(rt.request))
		case to == kv.NoNode:
			e.answer(i, kv.Response{}, errNoOwner(rt))
		default:
			there[to] = append(there[to], i)
		}
	}
	var nodes sync.WaitGroup
	for to, group := range there {
		nodes.Go(func() { e.forward(to, group) })
	}
	if len(here) > 0 {
		calls := make([]quorum.Call, len(here))
		for at, i := range here {
			calls[at] = n.call(&e.routes[i])
		}
		for at, a := range n.coordinator.DoEach(e.ctx, calls) {
			e.out[here[at]] = a
		}
	}
	nodes.Wait()
}

// forward hands the requests to another node. Those that it certainly did not serve, and that another one may, are routed anew,
// each by itself.
func (e *each) forward(to kv.NodeID, group []int) {
	n := e.n
	requests := make([]kv.Request, len(group))
	for at, i := range group {
		requests[at] = *e.routes[i].request
		requests[at].Hops++
	}
	n.metrics.forwarded.Add(float64(len(group)))
	answers, err := n.mux.ForwardEach(e.ctx, to, requests)
	if err != nil && kv.AsError(err).Code == kv.CodeNotReady {
		n.avoided.add(to)
	}
	var again sync.WaitGroup
	for at, i := range group {
		var a kv.Answer
		if err == nil {
			a = answers[at]
		} else {
			a.Err = kv.AsError(forwardError(err, &requests[at], n.NodeName(to)))
		}
		if a.Err == nil || !n.mayRetry(e.routes[i].request, a.Err) || e.ctx.Err() != nil {
			e.out[i] = a
			continue
		}
		again.Go(func() {
			e.slots <- struct{}{}
			defer func() { <-e.slots }()
			res, err := n.routeEventual(e.ctx, e.routes[i])
			e.answer(i, res, err)
		})
	}
	again.Wait()
}
