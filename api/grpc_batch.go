package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Batch implements the unary batch.
func (g *GRPC) Batch(ctx context.Context, in *kvpb.BatchRequest) (*kvpb.BatchResponse, error) {
	items, id, timeout, failure := g.parseBatch(in)
	if failure != nil {
		g.exec.refuse(kv.LevelUnset, kv.OpBatch)
		return nil, statusOf(failure)
	}
	ops := make([]kv.Op, len(items))
	for i := range items {
		ops[i] = items[i].Op
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	outcomes, failure := g.exec.batch(ctx, items, in.GetAtomic(), id)
	if failure != nil {
		g.note(failure)
		return nil, statusOf(failure)
	}
	out := &kvpb.BatchResponse{Results: make([]*kvpb.Result, len(outcomes))}
	var wire kvwire.Result
	for i := range outcomes {
		if err := outcomes[i].err; err != nil {
			g.note(err)
			wire = kvwire.Result{Err: err}
		} else {
			g.fillResult(&wire, ops[i], &outcomes[i].resp)
		}
		out.Results[i] = &kvpb.Result{}
		if err := proto.Unmarshal(kvwire.AppendBareResult(nil, &wire), out.Results[i]); err != nil {
			return nil, statusOf(kv.Errorf(kv.CodeInternal, "a result cannot be encoded: %w", err).WithOutcome(kv.OutcomeUnknown))
		}
	}
	return out, nil
}

// parseBatch reads the operations through the stream's codec, so that they mean the same on all ways.
func (g *GRPC) parseBatch(in *kvpb.BatchRequest) ([]kv.Request, kv.OpID, time.Duration, *kv.Error) {
	var whole kvwire.Operation
	if len(in.ProtoReflect().GetUnknown()) > 0 {
		return nil, kv.OpID{}, 0, kv.Errorf(kv.CodeBadRequest, "a field of the batch is not known to this node")
	}
	named := &kvpb.Operation{Op: kvpb.Op_OP_PUT, OperationId: in.GetOperationId(), TimeoutMs: in.GetTimeoutMs()}
	if failure := g.decode(named, &whole); failure != nil {
		return nil, kv.OpID{}, 0, failure
	}
	items := make([]kv.Request, 0, min(len(in.GetOperations()), kv.BatchItemsMax+1))
	for i, one := range in.GetOperations() {
		var op kvwire.Operation
		failure := g.decode(one, &op)
		if failure == nil && (one.GetId() != 0 || one.GetTimeoutMs() != 0 || one.GetOperationId() != nil) {
			failure = kv.Errorf(kv.CodeBadRequest, "an operation of a batch has no id and no timeout of its own")
		}
		if failure != nil {
			e := *failure
			return nil, kv.OpID{}, 0, kv.Errorf(e.Code, "operation %d: %s", i, e.Detail)
		}
		if len(items) <= kv.BatchItemsMax {
			items = append(items, op.Request) // what exceeds the limit is refused by whoever counts
		}
	}
	return items, whole.Request.ID, whole.Timeout, nil
}

// decode reads an operation of a unary call, and checks what this front checks.
func (g *GRPC) decode(in *kvpb.Operation, op *kvwire.Operation) *kv.Error {
	raw, err := proto.Marshal(in)
	if err == nil {
		err = kvwire.DecodeOperation(raw, op)
	}
	if err != nil {
		return kv.Errorf(kv.CodeBadRequest, "the operation cannot be read: %w", err)
	}
	return g.accept(op)
}
