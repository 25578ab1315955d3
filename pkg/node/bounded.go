package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// boundedPatience is how long a bounded read is offered again while every replica refuses it. A user is to be answered within a
	// second; what follows takes a ping.
	boundedPatience = 600 * time.Millisecond
	// besidePatience is how long a majority may take to say what it holds beside the state.
	besidePatience = 500 * time.Millisecond
)

var errUnsound = errors.New("the replica is being rebuilt")

// newProver returns what proves this node's replicas.
func (n *Node) newProver() *prover {
	return &prover{
		ask: func(ctx context.Context, p kv.PartitionID) (proof, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(n.gate.closing, cancel)()
			peeked, err := n.strong.Peek(ctx, p.Group(), false)
			return proof{clean: peeked.Clean}, err
		},
		present: func(p kv.PartitionID) (uint64, kv.Epoch, bool) {
			generation, sound := n.strong.Sound(p.Group())
			return generation, n.epoch(), sound
		},
		spawn: n.spawn,
		noted: func(pr proof, err error) {
			switch {
			case err != nil:
				n.metrics.proofs.WithLabelValues("failed").Inc()
			case pr.clean:
				n.metrics.proofs.WithLabelValues("clean").Inc()
			default:
				n.metrics.proofs.WithLabelValues("unclean").Inc()
			}
		},
	}
}

// routeBounded answers a read of level bounded from this node's replica if that can be proven fresh enough, else from another one, the
// nearest first. While replicas are slow it waits until the deadline. When all of them refuse, because there is no majority or
// no leader, it says so within a second.
func (n *Node) routeBounded(ctx context.Context, rt route) (kv.Response, error) {
	b := bound{max: rt.request.MaxStaleness, began: time.Now()}
	for {
		res, err := n.tryBounded(ctx, &rt, b)
		if err == nil || !harmless(rt.request, err) {
			return res, err
		}
		given := time.Since(b.began) >= boundedPatience && kv.CodeOf(err) != kv.CodeDeadlineExceeded
		if rt.request.Hops > 0 || given || ctx.Err() != nil {
			return kv.Response{}, n.notProven(&rt, err)
		}
		select {
		case <-ctx.Done():
			return kv.Response{}, n.notProven(&rt, err)
		case <-n.gate.closing.Done():
			return kv.Response{}, err
		case <-time.After(retryInterval):
		}
	}
}

// tryBounded makes one attempt: here, then elsewhere.
func (n *Node) tryBounded(ctx context.Context, rt *route, b bound) (kv.Response, error) {
	var own error
	if n.coordinates(rt) {
		var res kv.Response
		if res, own = n.boundedHere(ctx, rt, b); own == nil || rt.request.Hops > 0 || !harmless(rt.request, own) || ctx.Err() != nil {
			return res, own
		}
	}
	if rt.request.Hops >= hopsMax {
		return kv.Response{}, errHops(rt.request)
	}
	return n.boundedElsewhere(ctx, rt, own)
}

// boundedElsewhere asks the other replicas, one after the other. Once one has failed, those that cannot be reached are left out.
func (n *Node) boundedElsewhere(ctx context.Context, rt *route, err error) (kv.Response, error) {
	others := slices.DeleteFunc(n.nearestFirst(rt.owners), func(id kv.NodeID) bool { return id == n.id.Node })
	sought, alive := err != nil, 0
	if sought {
		others = n.reach.of(ctx, others)
		alive = len(others) + 1 // this node's own replica has failed before
	} else {
		err = errNoOwner(rt)
		slices.SortStableFunc(others, func(a, b kv.NodeID) int { return n.shunned(a) - n.shunned(b) })
	}
	for len(others) > 0 && ctx.Err() == nil {
		to := others[0]
		others = others[1:]
		var res kv.Response
		if res, err = n.forwardRead(ctx, to, rt.request); err == nil || !n.mayRetry(rt.request, err) {
			return res, err
		}
		if !sought {
			others, sought = n.reach.of(ctx, others), true
		}
	}
	e := *kv.AsError(err)
	e.Alive = max(e.Alive, alive)
	return kv.Response{}, &e
}

// shunned is 1 for a node that gossip says is away, or that refused something a moment ago.
func (n *Node) shunned(id kv.NodeID) int {
	if n.alive(id) && !n.avoided.has(id) {
		return 0
	}
	return 1
}

// boundedHere answers from this node's replica. One that does not catch up soon leaves the read to another one, unless it came from
// there.
func (n *Node) boundedHere(ctx context.Context, rt *route, b bound) (kv.Response, error) {
	patient := ctx
	if rt.request.Hops == 0 && len(rt.owners) > 1 {
		var cancel context.CancelFunc
		patient, cancel = context.WithTimeout(ctx, followerPatience)
		defer cancel()
	}
	return n.proofs.serve(patient, rt.partition, b, func(_ context.Context, clean bool) (kv.Response, error) {
		return n.readProven(ctx, rt, clean)
	})
}

// readProven reads from a replica whose strong state is proven. If that was all there was, this replica answers alone. Otherwise it
// asks a majority what it holds beside the state, as an eventual read does: one of them has whatever a majority had acknowledged.
func (n *Node) readProven(ctx context.Context, rt *route, clean bool) (kv.Response, error) {
	call := n.call(rt)
	if clean {
		call.Quorum = kv.Quorum{N: 1, R: 1, W: 1}
		n.metrics.boundedReads.WithLabelValues("alone").Inc()
		return n.coordinator.Do(ctx, call)
	}
	required := kv.Majority(len(rt.owners))
	call.Quorum = kv.Quorum{N: len(rt.owners), R: required, W: required}
	n.metrics.boundedReads.WithLabelValues("majority").Inc()
	ctx, cancel := context.WithTimeout(ctx, besidePatience)
	defer cancel()
	res, err := n.coordinator.Do(ctx, call)
	if err != nil {
		if e := kv.AsError(err); e.Code == kv.CodeDeadlineExceeded {
			out := kv.Errorf(kv.CodeQuorumUnavailable, "%w", e)
			out.Required, out.Alive, out.Acked = e.Required, e.Alive, e.Acked
			return kv.Response{}, out
		}
		return kv.Response{}, err
	}
	if !slices.Contains(res.Replicas, n.id.Node) {
		// The others may have applied less of the log than was proven of this one.
		return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "the replica that was proven could not be read")
	}
	return res, nil
}

// notProven is the error of a bounded read that no replica could answer, with what this node's replica could prove.
func (n *Node) notProven(rt *route, cause error) error {
	e := *kv.AsError(cause)
	if e.Code == kv.CodeDeadlineExceeded || e.Code == kv.CodeNotReady && !errors.Is(cause, consensus.ErrQuarantined) {
		// Its time is up, or it stops: say that.
		return cause
	}
	if rt.request.Hops > 0 || slices.Contains(rt.owners, n.id.Node) {
		if age := n.proofs.staleness(rt.partition); age > 0 && (e.Staleness == 0 || age < e.Staleness) {
			e.Staleness = age
		}
	}
	if rt.request.Hops > 0 {
		return &e
	}
	e.Required = max(e.Required, kv.Majority(len(rt.owners)))
	what := "no replica of the key's partition that can be reached can prove how stale it is"
	if e.Staleness > 0 {
		what = "the freshest replica of the key's partition that can be reached was last proven " + e.Staleness.Round(time.Millisecond).String() +
			" ago, max-staleness is " + rt.request.MaxStaleness.String()
	}
	e.Detail = what + ": " + e.Detail
	return &e
}
