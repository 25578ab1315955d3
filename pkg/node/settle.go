package node

import (
	"context"
	"errors"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

// How strong operations see eventual writes (design.md §8): before one answers from a key's state, it asks a majority for
// versions that the state does not cover, and has the log take in the winner. docs/consistency.md says why that is enough, and
// pkg/sim/model searches it for holes; change it only with such a search.

const (
	// peekRoundsMax bounds the rounds of one strong operation. Each but the first two means that somebody else changed the key.
	peekRoundsMax = 16
	// guardTriesMax bounds how often a guarded write is judged anew because the key's state had changed.
	guardTriesMax = 16
	// peekTimeout is how long a replica may take to answer a Peek, when the request has longer.
	peekTimeout = 2 * time.Second
)

// standing is a key's state in the strong lane with nothing acknowledged beside it.
type standing struct {
	state quorum.ReadReply // HasStrong and Strong
	// promised is the reading up to which a majority takes no more eventual writes; zero if that was not asked for.
	promised causal.HLC
	// beside are the versions that were found under a resolver that keeps them; nil if there are none.
	beside *quorum.Findings
}

func (s *standing) revision() uint64 {
	if !s.state.HasStrong {
		return 0
	}
	return s.state.Strong.Revision
}

// settled returns the state of a key of a partition that this node leads, which the caller has had confirmed by the barrier that
// peeked belongs to.
func (n *Node) settled(ctx context.Context, rt *route, key []byte, peeked consensus.Peeked, promise bool) (standing, error) {
	if peeked.Clean && (!promise || peeked.Promised != 0) {
		st, err := n.stateOf(rt, key)
		if err == nil && promise {
			st.promised = peeked.Promised
		}
		// The stamp of a guarded write has to be above what it replaces.
		if err != nil || !promise || peeked.Promised > st.state.Strong.Stamp.Time {
			return st, err
		}
	}
	n.metrics.peeks.Inc()
	return n.settle(ctx, rt, key, promise)
}

func (n *Node) stateOf(rt *route, key []byte) (st standing, err error) {
	g := rt.partition.Group()
	st.state.Strong, st.state.HasStrong, err = n.engine.State().Strong(g, key)
	return st, err
}

// settle asks a majority for the key's unsettled versions, round by round, and has the log take in the one with the highest
// stamp, until nothing is left beside the state. A version is settled only once it was known before the last round began: then
// whatever was acknowledged before it is known too.
func (n *Node) settle(ctx context.Context, rt *route, key []byte, promise bool) (standing, error) {
	keeps, before := n.keepsSiblings(key), n.everywhereBefore(rt)
	var found quorum.Findings
	var known causal.Stamp
	var h causal.HLC
	for range peekRoundsMax {
		if promise {
			var err error
			if h, err = n.clock.Now(); err != nil {
				return standing{}, kv.Errorf(kv.CodeInternal, "the operation could not be stamped: %w", err)
			}
		}
		if err := n.peekMajority(ctx, rt, key, h, &found); err != nil {
			return standing{}, err
		}
		st, err := n.stateOf(rt, key)
		if err != nil {
			return standing{}, err
		}
		st.promised = h
		winner, unsettled := found.Winner(st.state)
		switch late := max(found.Latest, st.state.Strong.Stamp.Time); {
		case promise && h <= late:
			if err := n.clock.Observe(late); err != nil {
				return standing{}, kv.Errorf(kv.CodeNotReady, "a version of the key is stamped in the future: %w", err)
			}
			known = winner.Stamp
		case keeps:
			if len(found.IDs(st.state)) > 0 {
				st.beside = &found
			}
			return st, nil
		case !unsettled:
			return st, nil
		case mutant.Planted == mutant.UnsettledReturned && !promise:
			st.state.HasStrong = true
			st.state.Strong = storage.Strong{Value: winner.Value, Deleted: winner.Deleted, Stamp: winner.Stamp, Expiry: winner.Expiry}
			return st, nil
		case known != winner.Stamp && mutant.Planted != mutant.PeekOnce:
			known = winner.Stamp
		default:
			if err := n.takeIn(ctx, rt, key, &st, &winner, &found, before); err != nil {
				return standing{}, err
			}
			known = causal.Stamp{}
		}
	}
	return standing{}, kv.Errorf(kv.CodeQuorumUnavailable, "eventual writes of the key arrived faster than they could be put in order, %d times", peekRoundsMax)
}

// takeIn has the log take in the winner, unless the state has changed meanwhile: that is for the next round to see.
func (n *Node) takeIn(
	ctx context.Context, rt *route, key []byte, st *standing, winner *causal.Sibling, found *quorum.Findings, before causal.HLC,
) error {
	if err := n.room(st, 1, before); err != nil {
		return err
	}
	op := consensus.WriteOp{
		Key: key, Value: winner.Value, Delete: winner.Deleted,
		Guard:   &consensus.Guard{Writes: []consensus.Expectation{{Revision: st.revision(), Before: before}}},
		Settled: &consensus.Settled{ID: winner.ID, Stamp: winner.Stamp, Expiry: winner.Expiry},
	}
	if mutant.Planted == mutant.SettleCoversLosers {
		op.Guard.Writes[0].Covers = found.IDs(st.state)
	}
	reply, err := n.strong.Write(ctx, rt.partition, op)
	if err != nil {
		// Whatever became of it, it is not what the caller asked for.
		return kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
	}
	if reply.Overtaken {
		n.metrics.settles.WithLabelValues("overtaken").Inc()
	} else {
		n.metrics.settles.WithLabelValues("applied").Inc()
	}
	return nil
}

// everywhereBefore returns the reading up to which all eventual writes of the partition, in every attempt, are on every replica: a Peek
// that begins now finds each of them that the key's state does not cover, whoever answers it.
func (n *Node) everywhereBefore(rt *route) causal.HLC {
	mark := n.engine.State().Repair(rt.partition).Committed
	span := causal.MakeHLC(quorum.AttemptSpan.Milliseconds(), 0)
	return mark - min(mark, span)
}

// room refuses to cover more ids of eventual writes than a key's state has room for. Ids are forgotten as the repair watermark rises,
// which it does not while a replica is away; to forget one too early could bring back what it wrote.
func (n *Node) room(st *standing, more int, before causal.HLC) error {
	if len(st.state.Strong.Covered)+more <= consensus.CoveredMax {
		return nil
	}
	for _, id := range st.state.Strong.Covered {
		if id.Time > max(before, st.state.Strong.Before) {
			more++
		}
	}
	if more <= consensus.CoveredMax {
		return nil
	}
	n.metrics.settles.WithLabelValues("full").Inc()
	return kv.Errorf(kv.CodeOverloaded, "the key has had %d eventual writes put in order since all replicas were last compared; no more fit", consensus.CoveredMax)
}

// peekMajority makes one round: it adds what a majority of the voters holds, this node's replica among them or not, and waits
// until all that this depends on is applied here.
func (n *Node) peekMajority(ctx context.Context, rt *route, key []byte, promise causal.HLC, found *quorum.Findings) error {
	voters := n.votersOf(rt)
	required := kv.Majority(len(voters))
	if mutant.Planted == mutant.PeekOfOne {
		required = 1
	}
	return n.peek(ctx, rt, key, promise, voters, required, found)
}

// peek is peekMajority, of so many voters.
func (n *Node) peek(
	ctx context.Context, rt *route, key []byte, promise causal.HLC, voters []kv.NodeID, required int, found *quorum.Findings,
) error {
	type answer struct {
		reply quorum.ReadReply
		err   error
	}
	r := quorum.ReadRequest{Partition: rt.partition, Epoch: rt.state.Map.Epoch, Key: key, Peek: true, Promise: promise}
	ctx, cancel := context.WithTimeout(ctx, peekTimeout)
	defer cancel()
	answers := make(chan answer, len(voters))
	self := false
	for _, id := range voters {
		if id == n.id.Node {
			self = true
			continue
		}
		n.mux.Read(ctx, id, r, func(reply quorum.ReadReply, err error) { answers <- answer{reply, err} })
	}
	if self {
		reply, err := n.eventual.Peek(r)
		answers <- answer{reply, err}
	}
	failed := 0
	var cause error
	for have := 0; have < required; {
		select {
		case a := <-answers:
			if a.err == nil {
				found.Add(&a.reply)
				have++
				continue
			}
			cause = errors.Join(cause, a.err)
			if failed++; failed > len(voters)-required {
				return unsaid(required, have, cause)
			}
		case <-ctx.Done():
			return unsaid(required, have, errors.Join(cause, ctx.Err()))
		}
	}
	if err := n.strong.AwaitApplied(ctx, rt.partition.Group(), found.Need); err != nil {
		return kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
	}
	return nil
}

// votersOf returns the voters of a key's group, as far as this node knows.
func (n *Node) votersOf(rt *route) []kv.NodeID {
	if status, ok := n.strong.Status(rt.partition.Group()); ok && len(status.Voters) > 0 {
		return status.Voters
	}
	return rt.owners
}

// unsaid is the error of an operation that could not learn what eventual versions there are.
func unsaid(required, have int, cause error) error {
	e := kv.Errorf(kv.CodeQuorumUnavailable,
		"%d of the %d replicas needed said which eventual versions of the key they hold: %w", have, required, cause)
	e.Required, e.Acked = required, have
	return e
}

// guarded runs a strong write on this node, which leads the partition as far as it knows. A plain put of a key whose prefix keeps
// one version is one entry and asks nobody: its place in the log is above all that is stamped before it. A write that answers
// from the old value has a majority take no more eventual writes first; one under a resolver that keeps versions names those
// that it takes in.
func (n *Node) guarded(ctx context.Context, rt *route, op consensus.WriteOp) (consensus.WriteReply, error) {
	writes := op.Batch
	if writes == nil {
		writes = []consensus.WriteOp{op}
	}
	asks, promise := false, false
	for i := range writes {
		answers := writes[i].Answers()
		closed := n.closedAt(writes[i].Key) != 0
		asks = asks || answers || n.keepsSiblings(writes[i].Key) && (!closed || n.counts(writes[i].Key))
		promise = promise || answers && !closed
	}
	if !asks {
		return n.strong.Write(ctx, rt.partition, op)
	}
	for range guardTriesMax {
		guard, err := n.judge(ctx, rt, writes, promise)
		if err != nil {
			return consensus.WriteReply{}, err
		}
		op.Guard = guard
		reply, err := n.strong.Write(ctx, rt.partition, op)
		if err != nil || !reply.Overtaken {
			return reply, err
		}
		n.metrics.overtaken.Inc()
	}
	return consensus.WriteReply{}, kv.Errorf(kv.CodeNoLeader, "the key changed %d times while the write was judged", guardTriesMax)
}

// judge returns what the writes are to be guarded by.
func (n *Node) judge(ctx context.Context, rt *route, writes []consensus.WriteOp, promise bool) (*consensus.Guard, error) {
	g := rt.partition.Group()
	sound, _ := n.strong.Sound(g)
	before := n.everywhereBefore(rt)
	closed := make([]uint64, len(writes))
	for i := range writes {
		closed[i] = n.closedAt(writes[i].Key)
	}
	peeked, err := n.strong.Peek(ctx, g, promise)
	if err != nil {
		return nil, err
	}
	guard := &consensus.Guard{Writes: make([]consensus.Expectation, len(writes))}
	for i := range writes {
		w, x := &writes[i], &guard.Writes[i]
		answers := w.Answers()
		keeps := n.keepsSiblings(w.Key)
		if !answers && (!keeps || closed[i] != 0 && !n.counts(w.Key)) {
			x.Any = true
			continue
		}
		st, still, err := n.settledClosed(rt, w.Key, closed[i])
		if err == nil && !still {
			st, err = n.settled(ctx, rt, w.Key, peeked, answers)
		}
		if err = n.vouch(g, sound, err); err != nil {
			return nil, err
		}
		x.Revision, x.Before = st.revision(), before
		if answers {
			x.Time = st.promised
		}
		if !keeps {
			continue
		}
		if err := n.judgeBeside(rt, w.Key, &st, x); err != nil {
			return nil, err
		}
	}
	return guard, nil
}

// counts reports whether a state of the key says what has been counted into it and before it: a write that has not seen the present one
// would forget that, and what some coordinator counts on with would count twice once the key's prefix opens.
func (n *Node) counts(key []byte) bool {
	p, _ := n.machine.State().PolicyFor(key)
	return p.Resolver == kv.ResolverCounter
}

// settledClosed is settled for a key that was closed before the barrier, as of the epoch, if it still is. What a majority has to promise
// elsewhere a closed fence promises: no replica accepts an eventual write, and when the fence opens, none with a reading up to
// what this node had before it acknowledged that (meta.State.Floor).
func (n *Node) settledClosed(rt *route, key []byte, closed uint64) (st standing, still bool, err error) {
	if closed == 0 {
		return st, false, nil
	}
	if st, err = n.stateOf(rt, key); err != nil {
		return st, false, err
	}
	if err = n.clock.Observe(st.state.Strong.Stamp.Time); err == nil {
		st.promised, err = n.clock.Now()
	}
	if err != nil {
		return st, false, kv.Errorf(kv.CodeInternal, "the operation could not be stamped: %w", err)
	}
	return st, n.closedAt(key) == closed, nil // after the reading was taken
}

// judgeBeside tells the expectation of a write what stands beside the state of a key whose prefix keeps versions. Whether that meets the
// write's condition the log says: a repetition is answered with what was said first, whatever stands there by now.
func (n *Node) judgeBeside(rt *route, key []byte, st *standing, x *consensus.Expectation) error {
	resolver, err := n.resolverOf(rt, key)
	if err != nil {
		return err
	}
	x.Base = st.beside.Base(st.state, resolver)
	if st.beside == nil {
		return nil
	}
	now, err := n.clock.Now()
	if err != nil {
		return kv.Errorf(kv.CodeInternal, "it could not be told what has expired: %w", err)
	}
	x.Beside, x.Covers = true, st.beside.IDs(st.state)
	x.Live, x.Replaced = st.beside.Beside(st.state, now)
	return n.room(st, len(x.Covers), x.Before)
}

func (n *Node) resolverOf(rt *route, key []byte) (quorum.Resolver, error) {
	policy, _ := rt.state.PolicyFor(key)
	resolver, err := n.resolvers.Resolver(policy.Resolver, policy.Expr)
	if err != nil {
		return nil, kv.Errorf(kv.CodeInternal, "the key's policy cannot be honoured by this node: %w", err)
	}
	return resolver, nil
}

// strongContext returns the context that goes with an answer about a key of which the state at the revision was seen, or written: where
// versions are kept, an eventual write with it replaces that state.
func (n *Node) strongContext(key []byte, revision uint64) []byte {
	var seen causal.Vector
	if revision > 0 && n.keepsSiblings(key) {
		seen = causal.Vector{causal.LogDot(revision)}
	}
	return causal.EncodeContext(key, seen)
}

// strongBeside answers a strong read of a key whose prefix keeps versions, with those that a majority holds beside the state. It
// settles nothing: which of them stays is for a write to say.
func (n *Node) strongBeside(rt route, st *standing) (kv.Response, error) {
	r := rt.request
	resolver, err := n.resolverOf(&rt, r.Key)
	if err != nil {
		return kv.Response{}, err
	}
	now, err := n.clock.Now()
	if err != nil {
		return kv.Response{}, kv.Errorf(kv.CodeInternal, "it could not be told what has expired: %w", err)
	}
	res := kv.Response{
		Level: kv.LevelStrong, Acks: kv.Majority(len(rt.owners)), Coordinator: n.id.Node, Replicas: n.strongReplicas(rt),
	}
	if err := st.beside.Resolve(&res, r.Key, st.state, resolver, r.Siblings, now); err != nil {
		return kv.Response{}, err
	}
	return res, nil
}
