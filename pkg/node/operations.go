package node

import (
	"context"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
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
		Context: causal.EncodeContext(rt.request.Key, nil),
	}
	if reply.Applied {
		res.Outcome, res.Timestamp = kv.OutcomeApplied, reply.Stamp.Time.Time()
	}
	return res, nil
}
