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

// Level causal: an eventual operation that is never older than what its session has seen (docs/adr/0010). A read asks R
// replicas, then all, until what they hold together covers what the session's token says of the key. A write is made on a
// coordinator that holds that much, so that it is stamped above it and its set contains it.

const (
	// causalPatience is how long an operation waits for replicas to catch up with its session before it says how far they
	// are behind.
	causalPatience = time.Second
	// causalPoll is how often replicas that have all answered are asked again.
	causalPoll = 20 * time.Millisecond
)

// gather collects what replicas hold of a key, until it covers what a session has seen.
type gather struct {
	c    *Coordinator
	call *Call
	// need is what the session has seen of the key. Of a key that it does not know by itself it has seen what its
	// partition's floor says; everywhere says that it has seen whatever was committed.
	need       causal.SessionKey
	floor      causal.SessionFloor
	everywhere bool
	// hold says that a majority has to hold what is answered, because the session has no room to remember it.
	hold bool
	wake chan struct{}

	mu sync.Mutex // guards what follows
	// closed says that enough was heard: what comes later is not taken, so that the answer and the token are of the same versions.
	closed bool
	// replies holds the latest of each replica.
	replies map[kv.NodeID]*ReadReply
	// asked are the replicas that were ever asked; those in out have not answered since they were asked last.
	asked, out map[kv.NodeID]bool
	cause      error
	merged     versions
	// applied and mark are how far this replica had applied the log, and its repair watermark, before it was read.
	applied uint64
	mark    causal.HLC
}

// causal serves an operation of level causal.
func (c *Coordinator) causal(ctx context.Context, call *Call) (kv.Response, error) {
	s, err := causal.DecodeSession(call.Request.Session)
	if err != nil {
		return kv.Response{}, kv.Errorf(kv.CodeBadRequest, "the session cannot be used: %w", err)
	}
	// A reading that is too far ahead of this clock is not taken over, and need not be: some node's clock is wrong, and what the
	// session has seen of this very key is compared, and placed above, by itself. Were the request refused for it, the session could not
	// go on anywhere but at the node that is wrong, not even with other keys.
	if mutant.Planted != mutant.SessionWriteBelow {
		if err := c.deps.Clock.Observe(s.Time); err != nil && !errors.Is(err, causal.ErrClockSkew) {
			return kv.Response{}, err
		}
	}
	g := &gather{
		c: c, call: call, wake: make(chan struct{}, 1),
		replies: map[kv.NodeID]*ReadReply{}, asked: map[kv.NodeID]bool{}, out: map[kv.NodeID]bool{},
	}
	hash := causal.KeyHash(call.Request.Key)
	var known bool
	if g.need, known = s.Key(call.Partition, hash); !known {
		g.floor, g.everywhere = s.Floor(call.Partition)
	}
	g.need.Partition, g.need.Hash = call.Partition, hash
	full := s.Full(call.Partition, hash)
	if call.Request.Op.IsWrite() {
		return c.causalWrite(ctx, g, s, full)
	}
	g.hold = full
	if err := g.run(ctx, call.Quorum.R); err != nil {
		return kv.Response{}, err
	}
	keeps := call.Resolver.KeepsSiblings()
	seen := g.seen(keeps)
	if len(seen.Dots) > causal.SessionDotsMax && !seen.Held {
		g.hold = true
		if err := g.run(ctx, call.Quorum.R); err != nil {
			return kv.Response{}, err
		}
		seen = g.seen(keeps)
	}
	res, err := c.answer(call, &g.merged, g.nodes())
	if mutant.Planted != mutant.SessionReadForgotten {
		s = s.With(seen)
	}
	res.Session = s.Encode()
	return res, err
}

// causalWrite makes a write of a session.
func (c *Coordinator) causalWrite(ctx context.Context, g *gather, s *causal.Session, full bool) (kv.Response, error) {
	call := g.call
	if full {
		call.Quorum.W = max(call.Quorum.W, kv.Majority(len(call.Owners)))
		call.Quorum.N = max(call.Quorum.N, call.Quorum.W)
	}
	if mutant.Planted != mutant.SessionWriteBelow {
		if err := g.run(ctx, 1); err != nil {
			return kv.Response{}, err
		}
	}
	keeps := call.Resolver.KeepsSiblings()
	if len(g.replies) > 1 {
		// As in catchUp, the write rests on the merge.
		w := WriteRequest{Partition: call.Partition, Epoch: call.Epoch, Key: call.Request.Key, Set: g.merged.set}
		c.deps.Store.Write(w, func(WriteReply, error) {})
	}
	call.after = &afterSession{above: g.merged.highest()}
	if call.Resolver.Blind() == BlindStays && len(call.Request.Context) == 0 && len(g.need.Dots)+int(g.need.Index) > 0 {
		dots := make([]causal.Dot, len(g.need.Dots))
		for i, d := range g.need.Dots {
			dots[i] = d.Dot
		}
		r := *call.Request
		var seen causal.Seen
		if g.need.Index > 0 {
			seen.Vector = seen.Vector.With(causal.LogDot(g.need.Index))
		}
		r.Context = causal.EncodeSeen(r.Key, seen.With(dots...))
		call.Request = &r
	}
	res, err := c.write(ctx, call)
	if err != nil || len(res.Session) > 0 {
		return res, err // where a leader made the write, it made the token
	}
	wrote := causal.SessionKey{Partition: g.need.Partition, Hash: g.need.Hash, Held: res.Acks-res.Hinted >= kv.Majority(len(call.Owners))}
	if keeps {
		wrote.Index = g.need.Index
	}
	if d := call.after.wrote; d.Dot != (causal.Dot{}) {
		wrote.Dots = []causal.SessionDot{d}
	} else if strong, found, err := c.deps.Store.strong(call.Partition, call.Request.Key); err == nil && found {
		wrote.Index = strong.Revision // the strong lane has taken it in
	}
	if mutant.Planted != mutant.SessionWriteForgotten {
		s = s.With(wrote)
	}
	res.Session = s.Encode()
	return res, nil
}

// afterSession is what a write has to follow, and what became of it.
type afterSession struct {
	above causal.Stamp
	wrote causal.SessionDot
}

// written notes the attempt by which the write took effect. A write of another level, whose a is nil, needs no note.
func (a *afterSession) written(p placed) {
	if a != nil {
		s, _ := p.set.Holds(p.dot)
		a.wrote = causal.SessionDot{Dot: p.dot, Base: s.Stamp.Base}
	}
}

// run returns once r replicas have answered and what they hold covers the session.
func (g *gather) run(ctx context.Context, r int) error {
	all := *g.call
	all.Quorum.N = len(all.Owners)
	nodes, alive := g.c.participants(&all)
	if alive < r {
		return tooFewAlive(r, alive, len(nodes))
	}
	if g.everywhere {
		if err := g.c.deps.Barrier(ctx, g.call.Partition); err != nil {
			return err
		}
	}
	g.mu.Lock()
	g.closed = false
	g.mu.Unlock()
	patience := time.NewTimer(causalPatience)
	defer patience.Stop()
	hedge := time.NewTimer(g.c.hedgeDelay(nodes[1:r]))
	defer hedge.Stop()
	poll := time.NewTicker(causalPoll)
	defer poll.Stop()
	g.ask(ctx, nodes[:r])
	for !g.enough(r) {
		g.mu.Lock()
		more := len(g.out) == 0 || g.cause != nil
		g.mu.Unlock()
		if more && g.ask(ctx, nodes) {
			continue
		}
		select {
		case <-g.wake:
		case <-hedge.C:
			g.ask(ctx, nodes)
		case <-poll.C:
			g.again(ctx, r)
		case <-patience.C:
			return g.behind(r, alive)
		case <-ctx.Done():
			return g.behind(r, alive)
		}
	}
	return nil
}

// ask asks those of the nodes that were not asked yet, and reports whether there were any.
func (g *gather) ask(ctx context.Context, nodes []kv.NodeID) bool {
	var now []kv.NodeID
	g.mu.Lock()
	for _, node := range nodes {
		if !g.asked[node] {
			g.asked[node], g.out[node] = true, true
			now = append(now, node)
		}
	}
	g.mu.Unlock()
	g.send(ctx, now)
	return len(now) > 0
}

// again asks those anew who have answered, unless it is answers that are missing. One that never answers does not keep the others from
// being asked what they have learnt since.
func (g *gather) again(ctx context.Context, r int) {
	var now []kv.NodeID
	g.mu.Lock()
	if g.sound() >= r || len(g.out) == 0 {
		for node := range g.asked {
			if !g.out[node] {
				g.out[node] = true
				now = append(now, node)
			}
		}
	}
	g.mu.Unlock()
	if len(now) > 0 {
		g.repair()
		g.send(ctx, now)
	}
}

// send asks the nodes. They are in out.
func (g *gather) send(ctx context.Context, nodes []kv.NodeID) {
	until, r := g.c.callContext(ctx), g.call.readRequest()
	for _, node := range nodes {
		if node != g.c.deps.Self {
			g.c.askReplica(until, node, r, g.report)
			continue
		}
		applied, repair := g.c.deps.Applied(g.call.Partition), g.c.deps.Store.deps.State.Repair(g.call.Partition)
		reply, err := g.c.deps.Store.Read(r)
		g.mu.Lock()
		if err == nil && !repair.Healing {
			g.applied, g.mark = applied, repair.Committed
		}
		g.mu.Unlock()
		g.report(node, reply, err)
	}
}

// repair sends replicas what they lack of what others hold, where a majority has to hold it.
func (g *gather) repair() {
	if !g.hold {
		return
	}
	g.mu.Lock()
	all := make([]heard, 0, len(g.replies))
	for node, r := range g.replies {
		all = append(all, heard{node, *r})
	}
	behind := lacking(all, &g.merged, g.call.Resolver.KeepsSiblings())
	g.mu.Unlock()
	g.c.sendRepairs(g.call, behind)
}

func (g *gather) report(node kv.NodeID, reply ReadReply, err error) {
	g.mu.Lock()
	delete(g.out, node)
	switch {
	case g.closed:
	case err != nil:
		g.cause = err
	default:
		g.replies[node] = &reply
		g.merged.add(&reply)
		g.merged.set = g.merged.surviving(g.merged.set, g.call.Resolver.KeepsSiblings())
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// enough reports whether what was heard will do, and takes nothing more then.
func (g *gather) enough(r int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.sound() < r:
	case mutant.Planted == mutant.SessionUnchecked:
		g.closed = true
	default:
		g.closed = g.covered() && (!g.hold || g.held(g.dots(g.call.Resolver.KeepsSiblings())))
	}
	return g.closed
}

// sound counts the replicas that have answered and have lost nothing. g.mu must be held.
func (g *gather) sound() (n int) {
	for _, r := range g.replies {
		if !r.Healing {
			n++
		}
	}
	return n
}

// covered reports whether what was heard covers what the session has seen. g.mu must be held.
func (g *gather) covered() bool {
	keeps := g.call.Resolver.KeepsSiblings()
	if !g.reached(g.need.Index) && (!g.merged.hasStrong || g.merged.strong.Revision < g.need.Index) {
		return false
	}
	// A context that covers a version because the strong lane took it in says nothing of what a reader sees before that is applied.
	taken := g.merged.lags(g.merged.set) && !g.reached(g.merged.set.Pruned)
	if taken && (len(g.need.Dots) > 0 || g.floor.Time > 0 || g.call.Quorum.R > 1) {
		return false
	}
	for _, d := range g.need.Dots {
		if d.Dot.Time > g.mark && !g.merged.coversSeen(d, keeps) {
			return false
		}
	}
	// What has sunk into the floor was held by a majority, which any other majority meets.
	return g.reached(g.floor.Index) && (g.floor.Time <= g.mark || g.sound() >= kv.Majority(len(g.call.Owners)))
}

// reached reports whether this replica had applied the log up to the index before it was read. g.mu must be held.
func (g *gather) reached(index uint64) bool {
	return index <= g.applied || mutant.Planted == mutant.SessionLaneIgnored
}

// coversSeen reports whether a reader of these versions sees the one that was seen before, or something that replaced it.
func (v *versions) coversSeen(d causal.SessionDot, keeps bool) bool {
	if v.set.Covers(d.Dot) || keeps && v.coversID(d.Dot) {
		return true
	}
	return !keeps && !d.Stamp().After(v.highest())
}

// dots returns the versions that a reader sees. g.mu must be held.
func (g *gather) dots(keeps bool) []causal.SessionDot {
	var out []causal.SessionDot
	for _, s := range g.merged.visible(keeps) {
		out = append(out, causal.SessionDot{Dot: causal.Dot{Node: s.Stamp.Node, Time: s.Stamp.Time}, Base: s.Stamp.Base})
		if keeps {
			out[len(out)-1].Dot = s.Dot
		}
	}
	if !keeps && len(out) > 1 {
		top := out[0]
		for _, d := range out[1:] {
			if d.Stamp().After(top.Stamp()) {
				top = d
			}
		}
		out = []causal.SessionDot{top}
	}
	return out
}

// held reports whether a majority of all replicas holds the versions, or what replaced them. g.mu must be held.
func (g *gather) held(dots []causal.SessionDot) bool {
	keeps, holders := g.call.Resolver.KeepsSiblings(), 0
	for _, r := range g.replies {
		v, all := versions{hasStrong: r.HasStrong, strong: r.Strong, set: r.Set}, !r.Healing
		for _, d := range dots {
			all = all && v.coversSeen(d, keeps)
		}
		if all {
			holders++
		}
	}
	return holders >= kv.Majority(len(g.call.Owners))
}

// seen returns what the session has seen of the key once it is answered.
func (g *gather) seen(keeps bool) causal.SessionKey {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := causal.SessionKey{Partition: g.need.Partition, Hash: g.need.Hash, Dots: g.dots(keeps)}
	if g.merged.hasStrong {
		out.Index = g.merged.strong.Revision // in the log of a majority
	}
	out.Held = g.held(out.Dots)
	return out
}

// nodes returns who has answered.
func (g *gather) nodes() (out []kv.NodeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, node := range g.call.Owners {
		if g.replies[node] != nil {
			out = append(out, node)
		}
	}
	return out
}

// behind is the failure of an operation whose session is ahead of every replica that answers.
func (g *gather) behind(r, alive int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	sound := g.sound()
	if sound < r {
		e := kv.Errorf(kv.CodeQuorumUnavailable, "%d of the %d replicas needed answered", sound, r)
		if g.cause != nil {
			e = kv.Errorf(kv.CodeQuorumUnavailable, "%d of the %d replicas needed answered: %w", sound, r, g.cause)
		}
		e.Required, e.Alive, e.Acked = r, alive, sound
		return e
	}
	var newest causal.HLC
	for _, d := range g.need.Dots {
		newest = max(newest, d.Dot.Time)
	}
	lag := time.Millisecond
	if newest != 0 {
		lag = max(lag, newest.Time().Sub(g.merged.highest().Time.Time()))
		if g.merged.highest().Time == 0 {
			lag = max(time.Millisecond, g.c.deps.Clock.Last().Time().Sub(newest.Time()))
		}
	}
	var missing uint64
	if index := max(g.need.Index, g.floor.Index); index > g.applied {
		missing = index - g.applied
	}
	e := kv.Errorf(kv.CodeQuorumUnavailable, "the %d replicas that answered are older than the session: %v behind it, %d log entries of the coordinator missing", sound, lag, missing)
	e.Required, e.Alive, e.Acked, e.Lag = kv.Majority(len(g.call.Owners)), alive, sound, lag
	return e
}
