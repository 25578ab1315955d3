package kvwire

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// The tests compare the hand-written codec with its dumb twin, the generated code.

func drawBytes(t *rapid.T, label string, sizes ...int) []byte {
	size := rapid.OneOf(rapid.SampledFrom(append([]int{0, 1, 127, 128}, sizes...)), rapid.IntRange(0, 300)).Draw(t, label+" size")
	return bytes.Repeat([]byte{rapid.Byte().Draw(t, label)}, size)
}

func drawOperation(t *rapid.T) *kvpb.Operation {
	op := &kvpb.Operation{
		Id:        rapid.Uint64().Draw(t, "id"),
		Op:        kvpb.Op(rapid.IntRange(0, 3).Draw(t, "op")),
		Key:       drawBytes(t, "key"),
		Value:     drawBytes(t, "value", 16_200, 16_383, 16_384, 1<<20),
		Level:     kvpb.Level(rapid.IntRange(0, 3).Draw(t, "level")),
		N:         rapid.Uint32().Draw(t, "n"),
		R:         rapid.Uint32Range(0, 5).Draw(t, "r"),
		W:         rapid.Uint32Range(0, 5).Draw(t, "w"),
		Context:   drawBytes(t, "context"),
		Siblings:  kvpb.SiblingMode(rapid.IntRange(0, 3).Draw(t, "siblings")),
		TimeoutMs: rapid.Uint32().Draw(t, "timeout"),
	}
	if rapid.Bool().Draw(t, "condition") {
		op.Condition = &kvpb.Condition{
			Kind:    kvpb.ConditionKind(rapid.IntRange(1, 2).Draw(t, "kind")),
			Version: rapid.Uint64().Draw(t, "version"),
		}
	}
	op.Session = drawBytes(t, "session token")
	op.Fallback = kvpb.Level(rapid.IntRange(0, 3).Draw(t, "fallback"))
	op.Sloppy = rapid.Bool().Draw(t, "sloppy")
	op.MaxStalenessMs = rapid.Uint32().Draw(t, "max staleness")
	op.TtlMs = rapid.Uint64Range(0, uint64(2*kv.TTLMax/time.Millisecond)).Draw(t, "ttl")
	if rapid.Bool().Draw(t, "named") {
		op.OperationId = &kvpb.OperationId{
			Session: bytes.Repeat([]byte("s"), rapid.IntRange(1, 255).Draw(t, "session")), Sequence: rapid.Uint64().Draw(t, "sequence"),
			Floor: rapid.Uint64().Draw(t, "floor"), Required: rapid.Bool().Draw(t, "required"),
		}
	}
	return op
}

// operationTwin is what kvpb's operation means in the vocabulary of package kv.
func operationTwin(op *kvpb.Operation) Operation {
	out := Operation{
		ID: op.GetId(),
		Request: kv.Request{
			Op: kv.Op(op.GetOp()), Level: kv.Level(op.GetLevel()), Fallback: kv.Level(op.GetFallback()), Sloppy: op.GetSloppy(), Session: nilIfEmpty(op.GetSession()),
			Quorum:    kv.Quorum{N: int(op.GetN()), R: int(op.GetR()), W: int(op.GetW())},
			Condition: kv.Condition{Kind: kv.ConditionKind(op.GetCondition().GetKind()), Version: op.GetCondition().GetVersion()},
			Siblings:  kv.SiblingMode(op.GetSiblings()),
			Key:       nilIfEmpty(op.GetKey()), Value: nilIfEmpty(op.GetValue()), Context: nilIfEmpty(op.GetContext()),
		},
		Timeout: time.Duration(op.GetTimeoutMs()) * time.Millisecond,
	}
	out.Request.MaxStaleness = time.Duration(op.GetMaxStalenessMs()) * time.Millisecond
	out.Request.TTL = time.Duration(op.GetTtlMs()) * time.Millisecond
	if id := op.GetOperationId(); id != nil {
		out.Request.ID = kv.OpID{Session: id.GetSession(), Sequence: id.GetSequence(), Floor: id.GetFloor(), Required: id.GetRequired()}
	}
	return out
}

func nilIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

func TestOperationsReadAndWriteAsTheGeneratedCodeDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch := &kvpb.OperationBatch{}
		var mine []byte
		var want []Operation
		for range rapid.IntRange(0, 4).Draw(t, "operations") {
			op := drawOperation(t)
			batch.Operations = append(batch.Operations, op)
			twin := operationTwin(op)
			want = append(want, twin)
			before := len(mine)
			mine = AppendOperation(mine, &twin)
			require.LessOrEqual(t, len(mine)-before, twin.Size())
		}
		theirs, err := proto.Marshal(batch)
		require.NoError(t, err)
		require.True(t, bytes.Equal(theirs, mine), "theirs %x\nmine   %x", theirs, mine)
		var got []Operation
		require.NoError(t, DecodeOperations(theirs, func(o *Operation) { got = append(got, *o) }))
		require.Equal(t, want, got)
	})
}

func drawResult(t *rapid.T) *kvpb.Result {
	name := rapid.SampledFrom([]string{"", "n1", "n2", "a-much-longer-name.example.com"})
	out := &kvpb.Result{
		Id: rapid.Uint64().Draw(t, "id"), Found: rapid.Bool().Draw(t, "found"),
		Value: drawBytes(t, "value", 16_300, 16_384, 1<<20), Version: rapid.Uint64().Draw(t, "version"),
		Context: drawBytes(t, "context"), TimestampMs: rapid.Int64().Draw(t, "timestamp"),
		Level: kvpb.Level(rapid.IntRange(0, 3).Draw(t, "level")), Acks: rapid.Uint32Range(0, 7).Draw(t, "acks"),
		Settled: rapid.Bool().Draw(t, "settled"), Outcome: kvpb.Outcome(rapid.IntRange(0, 3).Draw(t, "outcome")),
		Concurrent: rapid.Uint32Range(0, 64).Draw(t, "concurrent"), Coordinator: name.Draw(t, "coordinator"),
		Replicas: rapid.SliceOfN(name, 0, 4).Draw(t, "replicas"), StalenessBoundMs: rapid.Uint32().Draw(t, "staleness bound"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "siblings") {
		out.Siblings = append(out.Siblings, &kvpb.Sibling{
			Value: drawBytes(t, "sibling"), Deleted: rapid.Bool().Draw(t, "deleted"),
			TimestampMs: rapid.Int64().Draw(t, "sibling timestamp"), Node: name.Draw(t, "node"),
		})
	}
	if rapid.Bool().Draw(t, "error") {
		out.Error = &kvpb.Error{
			Code: "NO_LEADER", Detail: string(drawBytes(t, "detail")), Outcome: kvpb.Outcome(rapid.IntRange(1, 3).Draw(t, "error outcome")),
			Retryable: rapid.Bool().Draw(t, "retryable"), Required: rapid.Uint32Range(0, 9).Draw(t, "required"),
			Alive: rapid.Uint32Range(0, 9).Draw(t, "alive"), Acked: rapid.Uint32Range(0, 9).Draw(t, "acked"),
			CurrentVersion: rapid.Uint64().Draw(t, "current"), Leader: name.Draw(t, "leader"), RetryAfterMs: rapid.Uint32().Draw(t, "retry after"),
			StalenessMs: rapid.Uint32().Draw(t, "staleness"),
		}
	}
	return out
}

// resultTwin is what kvpb's result means. detail is checked for UTF-8 by neither side.
func resultTwin(r *kvpb.Result) Result {
	out := Result{
		ID: r.GetId(), Found: r.GetFound(), Settled: r.GetSettled(), HasOutcome: r.GetOutcome() != 0, Level: kv.Level(r.GetLevel()),
		Acks: int(r.GetAcks()), Concurrent: int(r.GetConcurrent()), Version: r.GetVersion(), TimestampMillis: r.GetTimestampMs(),
		Value: nilIfEmpty(r.GetValue()), Context: nilIfEmpty(r.GetContext()), Coordinator: r.GetCoordinator(),
		Replicas: append([]string{}, r.GetReplicas()...), StalenessMillis: int64(r.GetStalenessBoundMs()),
	}
	if out.HasOutcome {
		out.Outcome = kv.Outcome(r.GetOutcome() - 1)
	}
	for _, s := range r.GetSiblings() {
		out.Siblings = append(out.Siblings, Sibling{nilIfEmpty(s.GetValue()), s.GetDeleted(), s.GetTimestampMs(), s.GetNode()})
	}
	if e := r.GetError(); e != nil {
		out.Err = &kv.Error{
			Code: kv.Code(e.GetCode()), Detail: e.GetDetail(), Outcome: kv.Outcome(e.GetOutcome() - 1), Retryable: e.GetRetryable(),
			Required: int(e.GetRequired()), Alive: int(e.GetAlive()), Acked: int(e.GetAcked()), CurrentVersion: e.GetCurrentVersion(),
			Leader: e.GetLeader(), RetryAfter: time.Duration(e.GetRetryAfterMs()) * time.Millisecond,
			Staleness: time.Duration(e.GetStalenessMs()) * time.Millisecond,
		}
	}
	return out
}

func TestResultsReadAndWriteAsTheGeneratedCodeDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch := &kvpb.ResultBatch{Draining: rapid.Bool().Draw(t, "draining")}
		var mine []byte
		var want []Result
		for range rapid.IntRange(0, 4).Draw(t, "results") {
			r := drawResult(t)
			if r.GetError() != nil {
				r.Error.Detail = "ü" + string(bytes.Repeat([]byte("d"), len(r.GetError().GetDetail())))
			}
			batch.Results = append(batch.Results, r)
			twin := resultTwin(r)
			want = append(want, twin)
			mine = AppendResult(mine, &twin)
		}
		if batch.GetDraining() {
			mine = AppendDraining(mine)
		}
		theirs, err := proto.Marshal(batch)
		require.NoError(t, err)
		require.True(t, bytes.Equal(theirs, mine), "theirs %x\nmine   %x", theirs, mine)
		var got []Result
		draining, err := DecodeResults(theirs, &Names{}, func(r *Result) {
			kept := *r
			kept.Replicas = append([]string{}, r.Replicas...)
			got = append(got, kept)
		})
		require.NoError(t, err)
		require.Equal(t, batch.GetDraining(), draining)
		require.Equal(t, want, got)
	})
}

func TestWhatIsNotUnderstoodIsReported(t *testing.T) {
	known, err := proto.Marshal(&kvpb.Operation{Op: kvpb.Op_OP_PUT, Key: []byte("k")})
	require.NoError(t, err)
	field := func(number protowire.Number, value uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(bytes.Clone(known), number, protowire.VarintType), value)
	}
	condition := protowire.AppendBytes(protowire.AppendTag(bytes.Clone(known), operationCondition, protowire.BytesType),
		protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 1))
	for name, test := range map[string]struct {
		message []byte
		strange int32
	}{
		"a newer field":             {field(60, 1), 60},
		"a newer operation":         {field(operationOp, 4), operationOp},
		"a newer level":             {field(operationLevel, 9), operationLevel},
		"a level that wraps around": {field(operationLevel, 257), operationLevel},
		"a newer sibling mode":      {field(operationSiblings, 9), operationSiblings},
		"a newer condition":         {condition, operationCondition},
		"a newer part of a name":    {protowire.AppendBytes(protowire.AppendTag(bytes.Clone(known), operationName, protowire.BytesType), []byte{5 << 3, 1}), operationName},
		"nothing":                   {known, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var o Operation
			require.NoError(t, DecodeOperation(test.message, &o))
			require.Equal(t, test.strange, o.Strange)
			require.Equal(t, []byte("k"), o.Request.Key)
		})
	}
	require.ErrorIs(t, DecodeOperations(field(2, 1), func(*Operation) {}), ErrMalformed, "a newer field of the batch")
}

func TestAnUnknownOutcomeProvesNothing(t *testing.T) {
	raw, err := proto.Marshal(&kvpb.Result{Error: &kvpb.Error{Code: "FUTURE", Outcome: 9}})
	require.NoError(t, err)
	var r Result
	require.NoError(t, DecodeResult(raw, nil, &r))
	require.Equal(t, kv.OutcomeUnknown, r.Err.Outcome)
	raw, err = proto.Marshal(&kvpb.Result{Error: &kvpb.Error{Code: "FUTURE"}})
	require.NoError(t, err)
	require.NoError(t, DecodeResult(raw, nil, &r))
	require.Equal(t, kv.OutcomeUnknown, r.Err.Outcome)
}

func TestFrameTravelsAsItsBytes(t *testing.T) {
	batch := &kvpb.OperationBatch{Operations: []*kvpb.Operation{{Id: 7, Key: []byte("k")}}}
	raw, err := proto.Marshal(batch)
	require.NoError(t, err)
	frame := NewFrame()
	require.NoError(t, proto.Unmarshal(raw, frame))
	require.Equal(t, raw, frame.Data)
	kept := frame.Data
	require.NoError(t, proto.Unmarshal([]byte{}, frame))
	require.Equal(t, raw, kept, "a later message overwrote an earlier one")

	frame.Data = raw
	require.Equal(t, len(raw), proto.Size(frame))
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend([]byte("before"), frame)
	require.NoError(t, err)
	require.Equal(t, "before"+string(raw), string(out))
}

func TestNamesAreBounded(t *testing.T) {
	var names Names
	for i := range 3 * namesMax {
		b := []byte{byte(i), byte(i >> 8), 1}
		require.Equal(t, string(b), names.intern(b))
	}
	require.Len(t, names.known, namesMax)
}

// FuzzDecode feeds the decoders with anything: they must not panic, and must agree with the generated code on whether
// the bytes are a message at all, and on what it says.
func FuzzDecode(f *testing.F) {
	op := Operation{ID: 1, Request: kv.Request{
		Op: kv.OpPut, Key: []byte("k"), Value: []byte("v"), Level: kv.LevelStrong,
		Condition: kv.Condition{Kind: kv.ConditionVersion, Version: 3},
	}, Timeout: time.Second}
	f.Add(AppendOperation(nil, &op))
	f.Add(AppendResult(AppendDraining(nil), &Result{
		ID: 9, Value: []byte("v"), Replicas: []string{"n1", ""}, Siblings: []Sibling{{Node: "n2"}},
		Err: kv.Errorf(kv.CodeNoLeader, "none"),
	}))
	f.Add([]byte{0x0a, 0x00, 0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		var operations, results int
		known := true
		err := DecodeOperations(b, func(o *Operation) {
			operations++
			known = known && o.Strange == 0
		})
		batch := &kvpb.OperationBatch{}
		if twin := proto.Unmarshal(b, batch); twin == nil && len(batch.ProtoReflect().GetUnknown()) == 0 && err != nil {
			return // a known field with another wire type: unknown to the generated code, malformed here
		} else if err == nil && known {
			require.NoError(t, twin)
			require.Len(t, batch.GetOperations(), operations)
		}
		var names Names
		if _, err := DecodeResults(b, &names, func(*Result) { results++ }); err == nil {
			require.LessOrEqual(t, results, len(b))
		}
	})
}

func benchmarkBatch() ([]Operation, []Result) {
	operations, results := make([]Operation, 32), make([]Result, 32)
	for i := range operations {
		operations[i] = Operation{ID: uint64(i) | 1<<33, Timeout: 5 * time.Second, Request: kv.Request{
			Op: kv.OpPut, Level: kv.LevelStrong, Key: []byte("workload/0000000012345"), Value: bytes.Repeat([]byte("x"), 100),
		}}
		results[i] = Result{
			ID: uint64(i) | 1<<33, Found: true, Version: 123456, Context: bytes.Repeat([]byte("c"), 40), TimestampMillis: 1795253370123,
			Level: kv.LevelStrong, Acks: 2, Settled: true, HasOutcome: true, Outcome: kv.OutcomeApplied,
			Replicas: []string{"n1", "n3"}, Coordinator: "n1",
		}
	}
	return operations, results
}

// BenchmarkCodec measures one operation and its result, encoded and decoded once each, in batches of 32, against the
// generated code.
func BenchmarkCodec(b *testing.B) {
	operations, results := benchmarkBatch()
	perOperation := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(operations)), "ns/op1")
	}
	b.Run("kvwire", func(b *testing.B) {
		b.ReportAllocs()
		var scratch []byte
		var names Names
		for b.Loop() {
			scratch = scratch[:0]
			for i := range operations {
				scratch = AppendOperation(scratch, &operations[i])
			}
			_ = DecodeOperations(scratch, func(*Operation) {})
			scratch = scratch[:0]
			for i := range results {
				scratch = AppendResult(scratch, &results[i])
			}
			_, _ = DecodeResults(scratch, &names, func(*Result) {})
		}
		perOperation(b)
	})
	b.Run("kvpb", func(b *testing.B) {
		b.ReportAllocs()
		var requestBytes, resultBytes []byte
		for i := range operations {
			requestBytes = AppendOperation(requestBytes, &operations[i])
			resultBytes = AppendResult(resultBytes, &results[i])
		}
		for b.Loop() {
			in, out := &kvpb.OperationBatch{}, &kvpb.ResultBatch{}
			_ = proto.Unmarshal(requestBytes, in)
			_, _ = proto.Marshal(in)
			_ = proto.Unmarshal(resultBytes, out)
			_, _ = proto.Marshal(out)
		}
		perOperation(b)
	})
}
