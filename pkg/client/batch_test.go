package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Batch implements the unary batch by the script of single operations; a failed first one fails the call.
func (n *fakeNode) Batch(_ context.Context, in *kvpb.BatchRequest) (*kvpb.BatchResponse, error) {
	out := &kvpb.BatchResponse{}
	for _, op := range in.GetOperations() {
		n.mu.Lock()
		n.operations = append(n.operations, &kvpb.Operation{Op: op.GetOp(), Key: op.GetKey(), OperationId: in.GetOperationId()})
		n.mu.Unlock()
		r := n.answer(op)
		if e := r.GetError(); e != nil && in.GetAtomic() {
			s, err := status.New(codes.Unavailable, e.GetDetail()).WithDetails(e)
			if err != nil {
				return nil, err
			}
			return nil, s.Err()
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}

func TestAtomicBatchOfUnknownOutcomeIsSentAgainUnderItsName(t *testing.T) {
	cl := newCluster(t, 2)
	var refused atomic.Int32
	for _, n := range cl.nodes {
		n.answer = func(op *kvpb.Operation) *kvpb.Result {
			if refused.Add(1) <= 3 {
				return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNKNOWN)
			}
			return n.ok(op)
		}
	}
	puts := []kv.Request{{Op: kv.OpPut, Key: []byte("{t}a")}, {Op: kv.OpPut, Key: []byte("{t}b")}}
	results, err := cl.client().AtomicBatch(t.Context(), puts)
	require.NoError(t, err)
	require.Len(t, results, 2)
	require.EqualValues(t, 7, results[1].Version)
	sent := operationsOf(cl)
	for _, op := range sent {
		require.True(t, op.GetOperationId().GetRequired())
		require.Equal(t, sent[0].GetOperationId().GetSequence(), op.GetOperationId().GetSequence())
		require.Equal(t, sent[0].GetOperationId().GetSession(), op.GetOperationId().GetSession())
	}
}

func TestRefusalDoesNotMakeABatchsUnknownOutcomeKnown(t *testing.T) {
	cl := newCluster(t, 1)
	var asked atomic.Int32
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result {
		if asked.Add(1) == 1 {
			return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNKNOWN)
		}
		return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_NOT_APPLIED)
	}
	_, err := cl.client().AtomicBatch(t.Context(), []kv.Request{{Op: kv.OpPut, Key: []byte("a")}}, Timeout(100*time.Millisecond))
	// The deadline may come while the last attempt is under way, or in the pause after it.
	require.Contains(t, []kv.Code{kv.CodeNoLeader, kv.CodeDeadlineExceeded}, kv.CodeOf(err))
	require.Equal(t, kv.OutcomeUnknown, kv.AsError(err).Outcome, "%v", err)
	require.Greater(t, asked.Load(), int32(1))
}

func TestBatchSaysOfEachOperationWhatBecameOfIt(t *testing.T) {
	cl := newCluster(t, 1)
	n := cl.nodes[0]
	n.answer = func(op *kvpb.Operation) *kvpb.Result {
		switch string(op.GetKey()) {
		case "absent":
			return &kvpb.Result{Level: kvpb.Level_LEVEL_STRONG}
		case "lost":
			return refusal(kv.CodeDeadlineExceeded, kvpb.Outcome_OUTCOME_UNKNOWN)
		}
		return n.ok(op)
	}
	results, err := cl.client().Batch(t.Context(), []kv.Request{
		{Op: kv.OpGet, Key: []byte("k")}, {Op: kv.OpGet, Key: []byte("absent")}, {Op: kv.OpPut, Key: []byte("lost")},
	}, Eventual())
	require.NoError(t, err)
	require.NoError(t, results[0].Err)
	require.Equal(t, "value of k", results[0].String())
	require.True(t, IsNotFound(results[1].Err))
	requireError(t, results[2].Err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
	_, err = cl.client().Batch(t.Context(), []kv.Request{{Op: kv.OpGet, Key: []byte("k")}}, R(0))
	require.Equal(t, kv.CodeBadQuorum, kv.CodeOf(err))
}
