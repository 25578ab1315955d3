package node

import (
	"context"
	"fmt"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/kv"
)

// refusal returns the error of a write whose operation id stood against it.
func refusal(reply consensus.WriteReply) error {
	switch reply.Refused {
	case consensus.RefusedReuse:
		return kv.Errorf(kv.CodeBadRequest, "the operation id, or Idempotency-Key, was given to another request before")
	case consensus.RefusedForgotten:
		err := kv.Errorf(kv.CodeBadRequest, "the operation's outcome is no longer remembered; it was not applied again")
		return err.WithOutcome(kv.OutcomeUnknown)
	default:
		return nil
	}
}

// mismatch is the error of a condition that missed. One that asks for the very version that the state is at has missed because of
// versions beside it.
func mismatch(revision uint64, c kv.Condition) *kv.Error {
	e := kv.Errorf(kv.CodeVersionMismatch, "the key is at version %d", revision)
	if c.Kind == kv.ConditionVersion && c.Version == revision {
		e = kv.Errorf(kv.CodeVersionMismatch, "the key has versions that were written eventually, which have no number")
	}
	e.CurrentVersion = revision
	return e
}

// inquire answers what became of an operation on this node, which leads the partition as far as it knows. An operation
// that is not known was not applied before the question was asked.
func (n *Node) inquire(ctx context.Context, rt route) (kv.Response, error) {
	reply, found, err := n.strong.Recall(ctx, rt.partition, rt.request.ID)
	if err != nil {
		return kv.Response{}, err
	}
	if !found {
		return kv.Response{}, kv.Errorf(kv.CodeOperationNotFound,
			"no operation of this id has been applied to the key's partition so far").WithOutcome(kv.OutcomeUnknown)
	}
	res := kv.Response{
		Found: reply.Found, Settled: true, Level: kv.LevelStrong, Outcome: kv.OutcomeNotApplied, Version: reply.Revision,
		Acks: kv.Majority(len(rt.owners)), Coordinator: n.id.Node, Replicas: n.strongReplicas(rt),
		Context: n.strongContext(rt.request.Key, reply.Revision),
	}
	if reply.Applied {
		res.Outcome, res.Timestamp = kv.OutcomeApplied, reply.Stamp.Time.Time()
	}
	return res, nil
}

// costOf is what the request takes of the bytes that the node works on at once.
func costOf(r *kv.Request) int64 {
	cost := len(r.Key) + len(r.Value)
	for i := range r.Items {
		cost += len(r.Items[i].Key) + len(r.Items[i].Value)
	}
	return int64(cost)
}

// together refuses a batch whose keys do not share a partition, or that is not routed by one of them.
func (rt *route) together() error {
	for i := range rt.request.Items {
		if p := rt.state.Map.PartitionOf(rt.request.Items[i].Key); p != rt.partition {
			return kv.Errorf(kv.CodeCrossPartition, "operation %d: its key lies in partition %d, the first one's in partition %d; "+
				"keys with the same {tag} share a partition", i, p, rt.partition)
		}
	}
	return nil
}

// batch applies an atomic batch on this node, which leads the partition as far as it knows.
func (n *Node) batch(ctx context.Context, rt route) (kv.Response, error) {
	r := rt.request
	op := consensus.WriteOp{ID: r.ID, Batch: make([]consensus.WriteOp, len(r.Items))}
	for i := range r.Items {
		item := &r.Items[i]
		op.Batch[i] = consensus.WriteOp{Key: item.Key, Value: item.Value, Delete: item.Op == kv.OpDelete, Condition: item.Condition, TTL: item.TTL}
	}
	reply, err := n.guarded(ctx, &rt, op)
	if err == nil {
		err = refusal(reply)
	}
	if err != nil {
		return kv.Response{}, err
	}
	if !reply.Applied {
		e := mismatch(reply.Revision, r.Items[reply.Missed].Condition)
		e.Detail = fmt.Sprintf("operation %d: %s; nothing was written", reply.Missed, e.Detail)
		return kv.Response{}, e
	}
	res := kv.Response{
		Settled: true, Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Acks: reply.Acks, Version: reply.Revision,
		Timestamp: reply.Stamp.Time.Time(), Coordinator: n.id.Node, Replicas: n.strongReplicas(rt), Items: make([]kv.ItemResult, len(r.Items)),
	}
	for i, found := range reply.Items {
		res.Items[i].Found = found
	}
	return res, nil
}
