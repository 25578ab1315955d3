package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

func TestStreamAnswersByIDAndASlowOperationHoldsUpNothing(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	release := make(chan struct{})
	node.run = func(ctx context.Context, r *kv.Request) (kv.Response, error) {
		if string(r.Key) == "slow" {
			<-release
		}
		return node.fakeNode.Execute(ctx, r)
	}
	f := newGRPCFront(t, node)
	s := f.stream()
	s.send(putOp(7, "slow", "1"), putOp(8, "quick", "2"))
	require.Equal(t, kvpb.Outcome_OUTCOME_APPLIED, s.await(8).GetOutcome())
	s.send(getOp(9, "quick"))
	require.Equal(t, "2", string(s.await(9).GetValue()))
	require.Equal(t, 2, s.count())
	close(release)
	require.Equal(t, kvpb.Outcome_OUTCOME_APPLIED, s.await(7).GetOutcome())
	require.EqualValues(t, 2, f.counted("strong", "put", "ok"))
	require.EqualValues(t, 1, f.counted("strong", "get", "ok"))
}

func TestResultsThatAreReadyTogetherTravelTogether(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	release := make(chan struct{})
	var started atomic.Int64
	node.run = func(context.Context, *kv.Request) (kv.Response, error) {
		started.Add(1)
		<-release
		return kv.Response{Level: kv.LevelStrong, Outcome: kv.OutcomeApplied}, nil
	}
	f := newGRPCFront(t, node)
	s := f.stream()
	const operations = 1000
	batch := make([]*kvpb.Operation, operations)
	for i := range batch {
		batch[i] = putOp(uint64(i+1), "k", "v")
	}
	s.send(batch...)
	require.Eventually(t, func() bool { return started.Load() == operations }, 10*time.Second, time.Millisecond)
	close(release)
	require.Eventually(t, func() bool { return s.count() == operations }, 10*time.Second, time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Less(t, len(s.batches), operations/3, "%v", s.batches)
}

func TestStreamThatIsNotReadIsNotServedBeyondItsBounds(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	var running, most atomic.Int64
	hold := make(chan struct{})
	node.run = func(context.Context, *kv.Request) (kv.Response, error) {
		now := running.Add(1)
		for high := most.Load(); now > high && !most.CompareAndSwap(high, now); high = most.Load() {
		}
		<-hold
		running.Add(-1)
		return kv.Response{Level: kv.LevelStrong}, nil
	}
	f := newGRPCFront(t, node, func(c *GRPCConfig) { c.StreamOpsMax = 5 })
	s := f.stream()
	for id := range uint64(50) {
		s.send(putOp(id+1, "k", "v"))
	}
	require.Eventually(t, func() bool { return running.Load() == 5 }, 10*time.Second, time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	require.EqualValues(t, 5, running.Load())
	close(hold)
	require.Eventually(t, func() bool { return s.count() == 50 }, 10*time.Second, time.Millisecond)
	require.LessOrEqual(t, most.Load(), int64(5))
}

func TestLargeResultsOfASlowReaderStayBounded(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	value := bytes.Repeat([]byte("v"), 128<<10)
	var executed atomic.Int64
	hold := make(chan struct{})
	node.run = func(context.Context, *kv.Request) (kv.Response, error) {
		if executed.Add(1) > 1 {
			<-hold
		}
		return kv.Response{Found: true, Level: kv.LevelStrong, Value: value}, nil
	}
	f := newGRPCFront(t, node, func(c *GRPCConfig) { c.StreamBytesMax, c.ResultBytesMax = 1<<20, 256<<10 })
	s := f.pausedStream()
	s.send(getOp(1, "k")) // from its result the stream learns how large the others will be
	require.Eventually(t, func() bool { return executed.Load() == 1 }, 10*time.Second, time.Millisecond)
	batch := make([]*kvpb.Operation, 100)
	for i := range batch {
		batch[i] = getOp(uint64(i+2), "k")
	}
	time.Sleep(20 * time.Millisecond)
	s.send(batch...)
	time.Sleep(50 * time.Millisecond)
	require.LessOrEqual(t, executed.Load(), int64(1+8), "reads were started for whose results there is no room")
	close(hold)
	time.Sleep(50 * time.Millisecond)
	// What the bound holds, and what the transport has buffered: the windows of the stream and the writer's quota.
	require.Less(t, executed.Load(), int64(60))
	s.resume()
	require.Eventually(t, func() bool { return s.count() == 101 }, 60*time.Second, time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.batches {
		require.LessOrEqual(t, n, 3)
	}
}

func TestOperationLargerThanTheBoundStillRuns(t *testing.T) {
	f := newGRPCFront(t, newFakeNode(), func(c *GRPCConfig) { c.StreamBytesMax = 1000 })
	s := f.stream()
	for id := range uint64(3) {
		s.send(putOp(id+1, "k", strings.Repeat("v", 100_000)))
	}
	for id := range uint64(3) {
		require.Equal(t, kvpb.Outcome_OUTCOME_APPLIED, s.await(id+1).GetOutcome())
	}
}

func TestBrokenStreamCancelsItsOperations(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	var cancelled sync.WaitGroup
	cancelled.Add(3)
	started := make(chan struct{}, 3)
	node.run = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		started <- struct{}{}
		<-ctx.Done()
		cancelled.Done()
		return kv.Response{}, context.Cause(ctx)
	}
	s := newGRPCFront(t, node).stream()
	s.send(putOp(1, "a", "v"), putOp(2, "b", "v"))
	s.send(putOp(3, "c", "v"))
	for range 3 {
		<-started
	}
	s.cancel()
	cancelled.Wait()
}

func TestClosingTheSendingSideLetsOperationsFinish(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	release := make(chan struct{})
	started := make(chan struct{}, 2)
	node.run = func(ctx context.Context, r *kv.Request) (kv.Response, error) {
		started <- struct{}{}
		<-release
		return node.fakeNode.Execute(ctx, r)
	}
	s := newGRPCFront(t, node).stream()
	s.send(putOp(1, "a", "v"), putOp(2, "b", "v"))
	<-started
	<-started
	require.NoError(t, s.stream.CloseSend())
	close(release)
	<-s.ended
	require.ErrorIs(t, s.err, io.EOF)
	require.Equal(t, 2, s.count())
}

func TestDrainingAnswersWhatWasAcceptedAndRefusesTheRest(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	release, started := make(chan struct{}), make(chan struct{})
	node.run = func(ctx context.Context, r *kv.Request) (kv.Response, error) {
		close(started)
		<-release
		return node.fakeNode.Execute(ctx, r)
	}
	f := newGRPCFront(t, node)
	s := f.stream()
	s.send(putOp(1, "accepted", "v"))
	<-started
	drained := make(chan error, 1)
	go func() { drained <- f.g.Drain(t.Context()) }()
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.draining
	}, 10*time.Second, time.Millisecond)
	s.send(putOp(2, "late", "v"))
	refused := s.await(2).GetError()
	require.Equal(t, "NOT_READY", refused.GetCode())
	require.Equal(t, kvpb.Outcome_OUTCOME_NOT_APPLIED, refused.GetOutcome())
	require.True(t, refused.GetRetryable())
	_, err := f.kv.Put(t.Context(), putOp(0, "late", "v"))
	require.Equal(t, codes.Unavailable, status.Code(err))
	other, err := f.kv.Stream(t.Context())
	require.NoError(t, err)
	_, err = other.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))

	select {
	case <-drained:
		t.Fatal("drained while an operation was under way")
	default:
	}
	close(release)
	require.Equal(t, kvpb.Outcome_OUTCOME_APPLIED, s.await(1).GetOutcome())
	require.NoError(t, s.stream.CloseSend())
	require.NoError(t, <-drained)
	<-s.ended
	require.ErrorIs(t, s.err, io.EOF)
}

func TestDrainGivesUpOnAClientThatStays(t *testing.T) {
	f := newGRPCFront(t, newFakeNode())
	f.stream()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, f.g.Drain(ctx), context.DeadlineExceeded)
}

func TestMessageThatIsNoBatchEndsTheStream(t *testing.T) {
	node := newFakeNode()
	s := newGRPCFront(t, node).stream()
	batch := &kvpb.OperationBatch{}
	batch.ProtoReflect().SetUnknown([]byte{0x12, 0x01, 0x00})
	require.NoError(t, s.stream.Send(batch))
	<-s.ended
	require.Equal(t, codes.InvalidArgument, status.Code(s.err))
	require.Empty(t, node.writes)
}

func TestStreamThatEndsDoesNotWaitForItsOperations(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	started := make(chan struct{})
	node.run = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		close(started)
		<-ctx.Done()
		return kv.Response{}, ctx.Err()
	}
	s := newGRPCFront(t, node).stream()
	s.send(putOp(1, "k", "v"))
	<-started
	batch := &kvpb.OperationBatch{}
	batch.ProtoReflect().SetUnknown([]byte{0x12, 0x01, 0x00})
	begin := time.Now()
	require.NoError(t, s.stream.Send(batch))
	<-s.ended
	require.Less(t, time.Since(begin), kv.RequestTimeout)
}

func TestOperationThatWaitedTooLongForRoomIsNotBegun(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	var begun atomic.Int64
	release := make(chan struct{})
	node.run = func(context.Context, *kv.Request) (kv.Response, error) {
		begun.Add(1)
		<-release
		return kv.Response{}, nil
	}
	s := newGRPCFront(t, node, func(c *GRPCConfig) { c.StreamOpsMax = 1 }).stream()
	late := putOp(2, "k", "v")
	late.TimeoutMs = 20
	s.send(putOp(1, "k", "v"), late)
	time.Sleep(50 * time.Millisecond)
	close(release)
	failure := s.await(2).GetError()
	require.Equal(t, "DEADLINE_EXCEEDED", failure.GetCode())
	require.Equal(t, kvpb.Outcome_OUTCOME_NOT_APPLIED, failure.GetOutcome())
	require.EqualValues(t, 1, begun.Load())
}

func TestDeadlinesEndWithTheirOperations(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	contexts := make(chan context.Context, 2)
	node.run = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		contexts <- ctx
		return kv.Response{}, nil
	}
	s := newGRPCFront(t, node).stream()
	s.send(putOp(1, "k", "v"), putOp(2, "k", "v"))
	s.await(1)
	s.await(2)
	for range 2 {
		select {
		case <-(<-contexts).Done():
		case <-time.After(kv.RequestTimeout / 2):
			t.Fatal("the timer of an operation that has ended still runs")
		}
	}
}

func TestOneMessageSharesDeadlinesAndReleasesThem(t *testing.T) {
	batch := deadlines{parent: t.Context(), from: time.Now()}
	a, b, c := batch.of(time.Hour), batch.of(time.Hour), batch.of(2*time.Hour)
	require.Same(t, a, b)
	require.NotSame(t, a, c)
	a.release()
	require.NoError(t, a.Err(), "b still uses it")
	b.release()
	require.ErrorIs(t, a.Err(), context.Canceled)
	batch.release()
	require.NoError(t, c.Err())
	c.release()
	require.ErrorIs(t, c.Err(), context.Canceled)
	batch.release()
}

func TestWorkersAreKeptUpToTheLimit(t *testing.T) {
	node := &scriptedNode{fakeNode: newFakeNode()}
	release := make(chan struct{})
	node.run = func(context.Context, *kv.Request) (kv.Response, error) {
		<-release
		return kv.Response{}, errors.New("done")
	}
	cfg := DefaultGRPCConfig()
	cfg.IdleWorkersMax = 3
	exec, err := newExecutor(testDeps(node), cfg.Limits)
	require.NoError(t, err)
	g := &GRPC{cfg: cfg, deps: testDeps(node), exec: exec, drain: make(chan struct{})}
	s := newOpStream(t.Context(), g)
	batch := deadlines{parent: t.Context(), from: time.Now()}
	for id := range uint64(20) {
		s.accept(&kvwire.Operation{ID: id + 1, Timeout: time.Minute, Request: kv.Request{Op: kv.OpPut, Key: []byte("k")}}, &batch)
	}
	close(release)
	require.Eventually(t, func() bool {
		s.out.mu.Lock()
		defer s.out.mu.Unlock()
		return s.out.ops == 0
	}, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return s.idle.Load() == 3 }, 10*time.Second, time.Millisecond)
	s.stopWorkers()
	require.Zero(t, s.idle.Load())
	message, _ := s.out.take()
	results := &kvpb.ResultBatch{}
	require.NoError(t, proto.Unmarshal(message, results))
	require.Len(t, results.GetResults(), 20)
}
