package node

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/quorum"
)

const (
	// sweepKeysMax bounds the keys that a replica names in one answer, sweepWorkersMax those that are settled at once, sweepTriesMax how
	// often a key is tried that strong writes keep changing: the next pass finds it again.
	sweepKeysMax    = 512
	sweepWorkersMax = 32
	sweepTriesMax   = 4
	// sweepTimeout bounds one chunk of a sweep.
	sweepTimeout = 10 * time.Second
)

// unsettledKeys answers which keys of a partition this replica holds unsettled versions of.
func (n *Node) unsettledKeys(ask *laneAsk) (laneReply, error) {
	st, err := n.fenceIs(&ask.Fence)
	if err != nil {
		return laneReply{}, err
	}
	if err := n.checkEpoch(ask.Partition, st.Map.Epoch); err != nil {
		return laneReply{}, err
	}
	match := func(key []byte) bool { return sameFence(st, key, &ask.Fence) }
	keys, last, more, err := n.eventual.UnsettledKeys(ask.Partition, ask.Fence.Prefix, ask.After, sweepKeysMax, match)
	return laneReply{Keys: keys, Last: last, More: more}, err
}

// sweepHere settles a chunk of a partition's keys on this node, which has to lead the partition: those of which any of all replicas
// holds an unsettled version.
func (n *Node) sweepHere(ctx context.Context, ask *laneAsk) (laneReply, error) {
	st, err := n.fenceIs(&ask.Fence)
	if err != nil {
		return laneReply{}, err
	}
	if n.strong.Leader(ask.Partition.Group()) != n.id.Node {
		return laneReply{}, kv.Errorf(kv.CodeNoLeader, "node %s does not lead partition %d", n.cfg.Name, ask.Partition)
	}
	question := *ask
	question.Kind = laneUnsettled
	owners := st.Map.Owners(ask.Partition)
	parts, err := n.askAll(ctx, owners, question)
	if err != nil && mutant.Planted != mutant.SweepBeforeAcks {
		return laneReply{}, err
	}
	var out laneReply
	var keys [][]byte
	for _, part := range parts {
		keys = append(keys, part.Keys...)
		if part.More && (!out.More || bytes.Compare(part.Last, out.Last) < 0) {
			out.More, out.Last = true, part.Last
		}
	}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	if out.More {
		keys = slices.DeleteFunc(keys, func(key []byte) bool { return bytes.Compare(key, out.Last) > 0 })
	}
	out.Found = len(keys)
	rt := route{state: st, partition: ask.Partition, owners: owners, resolvers: n.resolvers}
	return out, n.sweepKeys(ctx, &rt, keys, &out)
}

// askAll asks all the nodes and returns what they answered, or why one of them did not.
func (n *Node) askAll(ctx context.Context, nodes []kv.NodeID, ask laneAsk) ([]laneReply, error) {
	parts, errs := make([]laneReply, len(nodes)), make([]error, len(nodes))
	var asked sync.WaitGroup
	for i, id := range nodes {
		asked.Go(func() { parts[i], errs[i] = n.askLanes(ctx, id, ask) })
	}
	asked.Wait()
	return parts, errors.Join(errs...)
}

// sweepKeys settles the keys, several at once, and counts what became of them.
func (n *Node) sweepKeys(ctx context.Context, rt *route, keys [][]byte, out *laneReply) error {
	var mu sync.Mutex // guards out and failed
	var failed error
	var all sync.WaitGroup
	slots := make(chan struct{}, sweepWorkersMax)
	for _, key := range keys {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			settled, conflict, err := n.settleWhole(ctx, rt, key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				failed = err
			case conflict:
				out.Conflicts, out.ConflictKey = out.Conflicts+1, key
			case settled:
				out.Settled++
			}
		})
	}
	all.Wait()
	n.metrics.swept.Add(float64(out.Settled))
	return failed
}

// settleWhole has the log take in all that any replica holds of the key, unless that is more than one version which no state can hold.
// Since nothing new is accepted any more, one round over all replicas knows everything that was ever acknowledged.
func (n *Node) settleWhole(ctx context.Context, rt *route, key []byte) (settled, conflict bool, err error) {
	policy, _ := rt.state.PolicyFor(key)
	resolver, err := n.resolvers.Resolver(policy.Resolver, policy.Expr)
	if err != nil {
		return false, false, kv.Errorf(kv.CodeInternal, "the key's policy cannot be honoured by this node: %w", err)
	}
	for range sweepTriesMax {
		var found quorum.Findings
		before := n.everywhereBefore(rt)
		voters := n.votersOf(rt)
		if err := n.peek(ctx, rt, key, 0, voters, len(voters), &found); err != nil {
			return false, false, err
		}
		st, err := n.stateOf(rt, key)
		if err != nil {
			return false, false, err
		}
		now, err := n.clock.Now()
		if err != nil {
			return false, false, kv.Errorf(kv.CodeInternal, "it could not be told what has expired: %w", err)
		}
		what := found.Settle(st.state, resolver, now)
		if len(what.Takes) == 0 || what.Conflict {
			return false, what.Conflict, nil
		}
		if err := n.room(&st, len(what.Takes), before); err != nil {
			return false, false, err
		}
		reply, err := n.strong.Write(ctx, rt.partition, settleOp(key, &st, &what, before, now))
		if err != nil {
			return false, false, err
		}
		if !reply.Overtaken {
			return true, false, nil
		}
	}
	return false, false, nil
}

// settleOp is the entry that takes the versions in.
func settleOp(key []byte, st *standing, what *quorum.Settlement, before, now causal.HLC) consensus.WriteOp {
	x := consensus.Expectation{Revision: st.revision(), Before: before, Base: what.Base}
	if what.Keeps {
		x.Covers = what.Takes
		op := consensus.WriteOp{
			Key: key, Value: st.state.Strong.Value, Delete: st.state.Strong.Deleted, Guard: &consensus.Guard{Writes: []consensus.Expectation{x}},
		}
		if !op.Delete {
			op.TTL = kv.TTLKeep
		}
		return op
	}
	w := &what.Winner
	if what.Anew {
		x.Covers = what.Takes
		op := consensus.WriteOp{Key: key, Value: w.Value, Delete: w.Deleted, Guard: &consensus.Guard{Writes: []consensus.Expectation{x}}}
		if w.Expiry > now {
			op.TTL = max(w.Expiry.Time().Sub(now.Time()), time.Millisecond)
		}
		return op
	}
	x.Covers = slices.DeleteFunc(slices.Clone(what.Takes), func(id causal.Dot) bool { return id == w.ID })
	return consensus.WriteOp{
		Key: key, Value: w.Value, Delete: w.Deleted, Guard: &consensus.Guard{Writes: []consensus.Expectation{x}},
		Settled: &consensus.Settled{ID: w.ID, Stamp: w.Stamp, Expiry: w.Expiry},
	}
}
