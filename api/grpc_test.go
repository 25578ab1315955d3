package api

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

func TestGRPCUnaryCallsWriteAndRead(t *testing.T) {
	f := newGRPCFront(t, newFakeNode())
	ctx := t.Context()
	put, err := f.kv.Put(ctx, &kvpb.Operation{Key: []byte("k"), Value: []byte("v"), Level: kvpb.Level_LEVEL_STRONG})
	require.NoError(t, err)
	require.EqualValues(t, 41, put.GetVersion())
	require.Equal(t, kvpb.Outcome_OUTCOME_APPLIED, put.GetOutcome())
	require.Equal(t, kvpb.Level_LEVEL_STRONG, put.GetLevel())
	require.Equal(t, []string{"n1", "n3"}, put.GetReplicas())
	require.Equal(t, "n1", put.GetCoordinator())
	require.EqualValues(t, 2, put.GetAcks())
	require.Equal(t, fakeTime.UnixMilli(), put.GetTimestampMs())

	got, err := f.kv.Get(ctx, &kvpb.Operation{Op: kvpb.Op_OP_GET, Key: []byte("k")})
	require.NoError(t, err)
	require.True(t, got.GetFound())
	require.True(t, got.GetSettled())
	require.Equal(t, "v", string(got.GetValue()))
	require.Equal(t, []byte{1, 2, 0xFF}, got.GetContext())
	require.Equal(t, kvpb.Outcome_OUTCOME_UNSPECIFIED, got.GetOutcome())

	deleted, err := f.kv.Delete(ctx, &kvpb.Operation{Key: []byte("k")})
	require.NoError(t, err)
	require.True(t, deleted.GetFound())
	absent, err := f.kv.Get(ctx, &kvpb.Operation{Key: []byte("k")})
	require.NoError(t, err)
	require.False(t, absent.GetFound())

	require.EqualValues(t, 1, f.counted("strong", "put", "ok"))
	require.EqualValues(t, 1, f.counted("strong", "get", "ok"))
	require.EqualValues(t, 1, f.counted("strong", "get", "not_found"))
	require.EqualValues(t, 1, f.counted("strong", "delete", "ok"))
}

func TestGRPCErrorsSayEverything(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	f := newGRPCFront(t, node)
	failure := kv.Errorf(kv.CodeQuorumUnavailable, "two of three replicas are away").WithOutcome(kv.OutcomeUnknown)
	failure.Required, failure.Alive, failure.Acked, failure.Leader, failure.RetryAfter = 2, 1, 1, "n2", time.Second
	node.run = func(context.Context, *kv.Request) (kv.Response, error) { return kv.Response{}, failure }
	_, err := f.kv.Put(t.Context(), &kvpb.Operation{Key: []byte("k")})
	s := status.Convert(err)
	require.Equal(t, codes.Unavailable, s.Code())
	require.Equal(t, failure.Detail, s.Message())
	require.Len(t, s.Details(), 3)
	info := s.Details()[0].(*errdetails.ErrorInfo)
	require.Equal(t, "QUORUM_UNAVAILABLE", info.GetReason())
	require.Equal(t, "caprock", info.GetDomain())
	require.Equal(t, map[string]string{"outcome": "unknown", "retryable": "true"}, info.GetMetadata())
	detail := s.Details()[1].(*kvpb.Error)
	require.Equal(t, kvpb.Outcome_OUTCOME_UNKNOWN, detail.GetOutcome())
	require.EqualValues(t, 1, detail.GetAcked())
	require.Equal(t, "n2", detail.GetLeader())
	require.EqualValues(t, 1000, detail.GetRetryAfterMs())
	require.Equal(t, time.Second, s.Details()[2].(*errdetails.RetryInfo).GetRetryDelay().AsDuration())
	require.EqualValues(t, 1, f.counted("default", "put", "unknown"))
}

func TestEveryCodeHasACanonicalOne(t *testing.T) {
	reference, err := os.ReadFile("../docs/api.md")
	require.NoError(t, err)
	for code, want := range map[kv.Code]codes.Code{
		kv.CodeBadRequest:           codes.InvalidArgument,
		kv.CodeUnknownConsistency:   codes.InvalidArgument,
		kv.CodeBadQuorum:            codes.InvalidArgument,
		kv.CodeConditionNeedsStrong: codes.InvalidArgument,
		kv.CodeCrossPartition:       codes.InvalidArgument,
		kv.CodeValueTooLarge:        codes.InvalidArgument,
		kv.CodeKeyTooLarge:          codes.InvalidArgument,
		kv.CodeKeyNotFound:          codes.NotFound,
		kv.CodeLevelFenced:          codes.FailedPrecondition,
		kv.CodeVersionMismatch:      codes.FailedPrecondition,
		kv.CodeSiblings:             codes.Aborted,
		kv.CodeOverloaded:           codes.ResourceExhausted,
		kv.CodeNoLeader:             codes.Unavailable,
		kv.CodeQuorumUnavailable:    codes.Unavailable,
		kv.CodeNotReady:             codes.Unavailable,
		kv.CodeDeadlineExceeded:     codes.DeadlineExceeded,
		kv.CodeInternal:             codes.Internal,
		"SOMETHING_NEW":             codes.Internal,
	} {
		require.Equal(t, want, GRPCCodeOf(code), code)
		if code != "SOMETHING_NEW" {
			require.Contains(t, string(reference), fmt.Sprintf("\n| `%s` | `%s` | ", code, want))
		}
	}
}

// badOperations are refused on both ways, with nothing written.
func badOperations() map[string]struct {
	op   *kvpb.Operation
	code kv.Code
} {
	put := func(change func(*kvpb.Operation)) *kvpb.Operation {
		op := putOp(1, "k", "v")
		change(op)
		return op
	}
	type bad = struct {
		op   *kvpb.Operation
		code kv.Code
	}
	return map[string]bad{
		"no key":                  {put(func(op *kvpb.Operation) { op.Key = nil }), kv.CodeBadRequest},
		"a key too large":         {put(func(op *kvpb.Operation) { op.Key = make([]byte, kv.KeyBytesMax+1) }), kv.CodeKeyTooLarge},
		"a value too large":       {put(func(op *kvpb.Operation) { op.Value = make([]byte, kv.ValueBytesMax+1) }), kv.CodeValueTooLarge},
		"an unknown level":        {put(func(op *kvpb.Operation) { op.Level = 9 }), kv.CodeBadRequest},
		"w at strong":             {put(func(op *kvpb.Operation) { op.Level, op.W = kvpb.Level_LEVEL_STRONG, 2 }), kv.CodeBadRequest},
		"w above n":               {put(func(op *kvpb.Operation) { op.Level, op.W = kvpb.Level_LEVEL_EVENTUAL, 4 }), kv.CodeBadQuorum},
		"a condition at eventual": {put(func(op *kvpb.Operation) { op.Level, op.Condition = 2, &kvpb.Condition{Kind: 1} }), kv.CodeConditionNeedsStrong},
		"an unknown condition":    {put(func(op *kvpb.Operation) { op.Condition = &kvpb.Condition{Kind: 7} }), kv.CodeBadRequest},
		"a timeout too long":      {put(func(op *kvpb.Operation) { op.TimeoutMs = 60_001 }), kv.CodeBadRequest},
		"a condition that misses": {put(func(op *kvpb.Operation) { op.Condition = &kvpb.Condition{Kind: 1, Version: 3} }), kv.CodeVersionMismatch},
		"a field of the future":   {put(func(op *kvpb.Operation) { op.ProtoReflect().SetUnknown([]byte{0x78, 0x01}) }), kv.CodeBadRequest},
		"a name at eventual": {put(func(op *kvpb.Operation) {
			op.Level, op.OperationId = 2, &kvpb.OperationId{Session: []byte("s"), Required: true}
		}), kv.CodeBadRequest},
		"a name below its floor":   {put(func(op *kvpb.Operation) { op.OperationId = &kvpb.OperationId{Session: []byte("s"), Floor: 1} }), kv.CodeBadRequest},
		"a name too long":          {put(func(op *kvpb.Operation) { op.OperationId = &kvpb.OperationId{Session: make([]byte, 256)} }), kv.CodeBadRequest},
		"an operation of a future": {put(func(op *kvpb.Operation) { op.Op = 4 }), kv.CodeBadRequest},
	}
}

func TestGRPCRefusesWhatCannotBeHonoured(t *testing.T) {
	node := newFakeNode()
	f := newGRPCFront(t, node)
	s := f.stream()
	id := uint64(1)
	for name, bad := range badOperations() {
		_, err := f.kv.Put(t.Context(), bad.op)
		details := status.Convert(err).Details()
		require.NotEmpty(t, details, "%s: %v", name, err)
		require.Equal(t, string(bad.code), details[0].(*errdetails.ErrorInfo).GetReason(), "%s: %v", name, err)

		id++
		bad.op.Id = id
		s.send(bad.op)
		r := s.await(id)
		require.Equal(t, string(bad.code), r.GetError().GetCode(), "%s: %v", name, r)
		require.Equal(t, kvpb.Outcome_OUTCOME_NOT_APPLIED, r.GetError().GetOutcome(), name)
	}
	_, err := f.kv.Get(t.Context(), putOp(1, "k", "v"))
	require.Equal(t, codes.InvalidArgument, status.Code(err), "a put in a get")
	s.send(&kvpb.Operation{Id: 1, Key: []byte("k")})
	require.Equal(t, "BAD_REQUEST", s.await(1).GetError().GetCode(), "an operation without a kind")
	require.Empty(t, node.writes)
}

func TestGRPCDeadlineBoundsTheOperation(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	node.run = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		<-ctx.Done()
		return kv.Response{}, ctx.Err()
	}
	f := newGRPCFront(t, node)
	_, err := f.kv.Put(t.Context(), &kvpb.Operation{Key: []byte("k"), TimeoutMs: 20})
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))

	s := f.stream()
	slow, quick := putOp(1, "k", "v"), putOp(2, "k", "v")
	slow.TimeoutMs, quick.TimeoutMs = 60_000, 20
	read := getOp(3, "k")
	read.TimeoutMs = 20
	s.send(slow, quick, read)
	require.Equal(t, "DEADLINE_EXCEEDED", s.await(2).GetError().GetCode())
	require.Equal(t, kvpb.Outcome_OUTCOME_UNKNOWN, s.await(2).GetError().GetOutcome())
	require.Equal(t, kvpb.Outcome_OUTCOME_NOT_APPLIED, s.await(3).GetError().GetOutcome())
	require.Equal(t, 2, s.count())
}

func TestGRPCStatusIsTheDocument(t *testing.T) {
	f := newGRPCFront(t, newFakeNode())
	for what, document := range map[string]string{"": "status", "status": "status", "ring": "ring", "nodes": "nodes", "partitions": "partitions"} {
		r, err := f.kv.Status(t.Context(), &kvpb.StatusRequest{What: what})
		require.NoError(t, err)
		require.JSONEq(t, `{"document":"`+document+`"}`, string(r.GetJson()))
	}
	_, err := f.kv.Status(t.Context(), &kvpb.StatusRequest{What: "secrets"})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
}

func TestGRPCHealthFollowsTheNode(t *testing.T) {
	node := newFakeNode()
	f := newGRPCFront(t, node)
	health := healthpb.NewHealthClient(f.conn)
	check := func(service string) string {
		r, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			return status.Code(err).String()
		}
		return r.GetStatus().String()
	}
	for _, service := range []string{"", "caprock.v1.KV", "strong", "eventual", "local"} {
		require.Equal(t, "SERVING", check(service))
	}
	require.Equal(t, "NotFound", check("bogus"))
	watch, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	r, err := watch.Recv()
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, r.GetStatus())

	node.unready[kv.LevelStrong] = kv.Errorf(kv.CodeNoLeader, "none")
	require.Equal(t, []string{"NOT_SERVING", "NOT_SERVING", "SERVING"}, []string{check(""), check("strong"), check("eventual")})
	clear(node.unready)
	require.NoError(t, f.g.Drain(t.Context()))
	require.Equal(t, "NOT_SERVING", check("eventual"))
	for {
		if r, err = watch.Recv(); err != nil {
			break
		}
		require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, r.GetStatus())
	}
	require.ErrorIs(t, err, io.EOF)
}

func TestGRPCReflectionListsTheServices(t *testing.T) {
	f := newGRPCFront(t, newFakeNode())
	stream, err := reflectionpb.NewServerReflectionClient(f.conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	}))
	answer, err := stream.Recv()
	require.NoError(t, err)
	var names []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	require.Contains(t, names, "caprock.v1.KV")
	require.Contains(t, names, "grpc.health.v1.Health")
}

func TestGRPCConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	for name, change := range map[string]func(*GRPCConfig){
		"limits":   func(c *GRPCConfig) { c.Limits.KeyBytesMax = 0 },
		"timeout":  func(c *GRPCConfig) { c.RequestTimeout = time.Hour },
		"stream":   func(c *GRPCConfig) { c.StreamOpsMax = 0 },
		"messages": func(c *GRPCConfig) { c.MessageBytesMax = 1 << 20 },
	} {
		cfg := DefaultGRPCConfig()
		require.NoError(t, cfg.Validate())
		change(&cfg)
		require.ErrorContains(t, cfg.Validate(), name)
		_, err := RegisterGRPC(grpc.NewServer(), cfg, testDeps(newFakeNode()))
		require.Error(t, err)
	}
}
