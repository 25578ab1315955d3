package client

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

func requireError(t *testing.T, err error, code kv.Code, outcome kv.Outcome) {
	t.Helper()
	var e *kv.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, "%v", err)
	require.Equal(t, outcome.String(), e.Outcome.String(), "%v", err)
}

func TestOperationsAndResultsCarryEverything(t *testing.T) {
	cl := newCluster(t, 1)
	c := cl.client()
	value, err := c.Get("hello")
	require.NoError(t, err)
	require.Equal(t, "value of hello", value)
	require.NoError(t, c.Set("hello", "world"))
	require.NoError(t, c.Delete("hello"))

	r, err := c.SetContext(t.Context(), "k", "v", Eventual(), N(3), W(2), Context([]byte("ctx")), Timeout(time.Second))
	require.NoError(t, err)
	require.Equal(t, Result{
		Value: []byte("value of k"), Found: true, Settled: true, Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Acks: 2, Version: 7,
		Context: []byte("token"), Timestamp: time.UnixMilli(1795253370123).UTC(), Coordinator: "n1", Replicas: []string{"n1", "n3"},
	}, r)
	_, err = c.GetContext(t.Context(), "k", Eventual(), R(1), Siblings(kv.SiblingsError))
	require.NoError(t, err)
	_, err = c.DeleteContext(t.Context(), "k", Strong(), IfVersion(41))
	require.NoError(t, err)
	_, err = c.SetContext(t.Context(), "k", "v", CreateOnly())
	require.NoError(t, err)

	operations := cl.nodes[0].operations
	require.Len(t, operations, 7)
	put := operations[3]
	require.InDelta(t, 1000, put.GetTimeoutMs(), 20)
	require.Equal(t, kvpb.Op_OP_PUT, put.GetOp())
	require.Equal(t, kvpb.Level_LEVEL_EVENTUAL, put.GetLevel())
	require.Equal(t, []uint32{3, 0, 2}, []uint32{put.GetN(), put.GetR(), put.GetW()})
	require.Equal(t, "ctx", string(put.GetContext()))
	require.EqualValues(t, 1, operations[4].GetR())
	require.Equal(t, kvpb.SiblingMode_SIBLING_MODE_ERROR, operations[4].GetSiblings())
	require.EqualValues(t, 41, operations[5].GetCondition().GetVersion())
	require.Equal(t, kvpb.ConditionKind_CONDITION_KIND_VERSION, operations[6].GetCondition().GetKind())
	require.Zero(t, operations[6].GetCondition().GetVersion())
}

func TestAbsentKeyIsAnErrorWithAContext(t *testing.T) {
	cl := newCluster(t, 1)
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result { return &kvpb.Result{Context: []byte("tombstone")} }
	c := cl.client()
	r, err := c.GetContext(t.Context(), "k")
	require.True(t, IsNotFound(err))
	requireError(t, err, kv.CodeKeyNotFound, kv.OutcomeNotApplied)
	require.Equal(t, "tombstone", string(r.Context))
	r, err = c.DeleteContext(t.Context(), "k")
	require.NoError(t, err)
	require.False(t, r.Found)
}

func TestSiblingsAreAnswered(t *testing.T) {
	cl := newCluster(t, 1)
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result {
		return &kvpb.Result{Found: true, Siblings: []*kvpb.Sibling{
			{Value: []byte("a"), Node: "n1", TimestampMs: 5}, {Deleted: true, Node: "n2"},
		}}
	}
	r, err := cl.client().GetContext(t.Context(), "k")
	require.NoError(t, err)
	require.Empty(t, r.Value)
	require.Equal(t, []Sibling{{Value: []byte("a"), Node: "n1", Timestamp: time.UnixMilli(5).UTC()}, {Deleted: true, Node: "n2"}}, r.Siblings)
}

func TestNonsenseIsRefusedBeforeItIsSent(t *testing.T) {
	cl := newCluster(t, 1)
	c := cl.client()
	for name, test := range map[string]struct {
		option Option
		code   kv.Code
	}{
		"r=0":                 {R(0), kv.CodeBadQuorum},
		"w=-1":                {W(-1), kv.CodeBadQuorum},
		"n=0":                 {N(0), kv.CodeBadQuorum},
		"no timeout":          {Timeout(0), kv.CodeBadRequest},
		"too long a timeout":  {Timeout(time.Hour), kv.CodeBadRequest},
		"too short a timeout": {Timeout(time.Microsecond), kv.CodeBadRequest},
	} {
		_, err := c.SetContext(t.Context(), "k", "v", test.option)
		requireError(t, err, test.code, kv.OutcomeNotApplied)
		require.Contains(t, err.Error(), "out of range", name)
	}
	_, err := c.SetContext(t.Context(), "k", strings.Repeat("v", operationBytesMax))
	requireError(t, err, kv.CodeValueTooLarge, kv.OutcomeNotApplied)
	operations, _ := cl.nodes[0].seen()
	require.Zero(t, operations)
}

func TestPendingOperationsTravelTogether(t *testing.T) {
	cl := newCluster(t, 1)
	hold := make(chan struct{})
	var once sync.Once
	n := cl.nodes[0]
	n.answer = func(op *kvpb.Operation) *kvpb.Result {
		once.Do(func() { <-hold })
		return n.ok(op)
	}
	c := cl.client(func(cfg *Config) { cfg.BatchOpsMax = 100 })
	futures := make([]Future, 1000)
	for i := range futures {
		futures[i] = c.SetAsync("k", strings.Repeat("v", 1000)) // more than the transport's window, so that some have to wait
	}
	close(hold)
	for _, f := range futures {
		_, err := f.Wait(t.Context())
		require.NoError(t, err)
	}
	operations, batches := n.seen()
	require.Equal(t, 1000, operations)
	require.GreaterOrEqual(t, batches, 10)
	require.Less(t, batches, 200)
}

func TestLargeValuesTravelInBoundedMessages(t *testing.T) {
	cl := newCluster(t, 1)
	c := cl.client(func(cfg *Config) { cfg.BatchBytesMax = 1 << 20 })
	var futures []Future
	for range 8 {
		futures = append(futures, c.SetAsync("k", strings.Repeat("v", 700_000)))
	}
	for _, f := range futures {
		_, err := f.Wait(t.Context())
		require.NoError(t, err)
	}
	_, batches := cl.nodes[0].seen()
	require.Equal(t, 8, batches)
}

func TestOperationsSpreadOverEndpoints(t *testing.T) {
	cl := newCluster(t, 3)
	c := cl.client()
	for range 30 {
		require.NoError(t, c.Set("k", "v"))
	}
	for _, n := range cl.nodes {
		operations, _ := n.seen()
		require.Equal(t, 10, operations, n.name)
	}
}

func TestEndpointsTakeTurns(t *testing.T) {
	cl := newCluster(t, 3)
	c := cl.client(func(cfg *Config) { cfg.TurnEvery = 20 * time.Millisecond })
	var futures []Future
	for range 100 {
		futures = append(futures, c.SetAsync("k", "v"))
	}
	for _, f := range futures {
		_, err := f.Wait(t.Context())
		require.NoError(t, err)
	}
	busy := 0
	for _, n := range cl.nodes {
		if operations, _ := n.seen(); operations > 0 {
			busy++
		}
	}
	require.LessOrEqual(t, busy, 2, "operations that were started together were scattered")
	require.Eventually(t, func() bool {
		require.NoError(t, c.Set("k", "v"))
		for _, n := range cl.nodes {
			if operations, _ := n.seen(); operations == 0 {
				return false
			}
		}
		return true
	}, 5*time.Second, time.Millisecond)
}

func TestReadsSurviveAServerThatDiesMidCall(t *testing.T) {
	cl := newCluster(t, 3)
	var got atomic.Int32
	for _, n := range cl.nodes[:2] {
		n.answer = func(*kvpb.Operation) *kvpb.Result { got.Add(1); return nil }
	}
	c := cl.client()
	var futures []Future
	for range 9 {
		futures = append(futures, c.GetAsync("k"))
	}
	require.Eventually(t, func() bool { return got.Load() == 6 }, 5*time.Second, time.Millisecond)
	cl.nodes[0].stop()
	cl.nodes[1].stop()
	for _, f := range futures {
		r, err := f.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "n3", r.Coordinator)
	}
}

func TestWriteOnAServerThatDiesMidCallIsUnknownAndNeverSentAgain(t *testing.T) {
	cl := newCluster(t, 2)
	got := make(chan struct{})
	for _, n := range cl.nodes {
		n.answer = func(*kvpb.Operation) *kvpb.Result { close(got); return nil }
	}
	c := cl.client()
	f := c.SetAsync("k", "v", Eventual())
	<-got
	cl.nodes[0].stop()
	cl.nodes[1].stop()
	_, err := f.Wait(t.Context())
	requireError(t, err, kv.CodeNotReady, kv.OutcomeUnknown)
	require.Equal(t, ExitUnknown, ExitCode(err))
	one, _ := cl.nodes[0].seen()
	two, _ := cl.nodes[1].seen()
	require.Equal(t, 1, one+two)
}

func TestWritesRefusedWithoutEffectGoElsewhere(t *testing.T) {
	for _, code := range []kv.Code{kv.CodeNoLeader, kv.CodeNotReady, kv.CodeOverloaded} {
		t.Run(string(code), func(t *testing.T) {
			cl := newCluster(t, 3)
			for _, n := range cl.nodes[:2] {
				n.answer = func(*kvpb.Operation) *kvpb.Result { return refusal(code, kvpb.Outcome_OUTCOME_NOT_APPLIED) }
			}
			c := cl.client()
			for range 6 {
				r, err := c.SetContext(t.Context(), "k", "v")
				require.NoError(t, err)
				require.Equal(t, "n3", r.Coordinator)
			}
		})
	}
}

func TestEventualWritesThatMayHaveHappenedAreNotRepeated(t *testing.T) {
	for name, answer := range map[string]*kvpb.Result{
		"unknown":              refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNKNOWN),
		"no outcome given":     refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNSPECIFIED),
		"deadline":             refusal(kv.CodeDeadlineExceeded, kvpb.Outcome_OUTCOME_UNKNOWN),
		"quorum with some ack": refusal(kv.CodeQuorumUnavailable, kvpb.Outcome_OUTCOME_UNKNOWN),
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t, 3)
			for _, n := range cl.nodes {
				n.answer = func(*kvpb.Operation) *kvpb.Result { return answer }
			}
			_, err := cl.client().SetContext(t.Context(), "k", "v", Eventual())
			requireError(t, err, kv.Code(answer.GetError().GetCode()), kv.OutcomeUnknown)
			total := 0
			for _, n := range cl.nodes {
				operations, _ := n.seen()
				total += operations
			}
			require.Equal(t, 1, total)
		})
	}
}

func TestRefusalsThatStandAreNotRetried(t *testing.T) {
	cl := newCluster(t, 2)
	for _, n := range cl.nodes {
		n.answer = func(*kvpb.Operation) *kvpb.Result {
			return &kvpb.Result{Error: &kvpb.Error{Code: "VERSION_MISMATCH", Outcome: kvpb.Outcome_OUTCOME_NOT_APPLIED, CurrentVersion: 9}}
		}
	}
	_, err := cl.client().SetContext(t.Context(), "k", "v", IfVersion(3))
	requireError(t, err, kv.CodeVersionMismatch, kv.OutcomeNotApplied)
	require.EqualValues(t, 9, kv.AsError(err).CurrentVersion)
	one, _ := cl.nodes[0].seen()
	two, _ := cl.nodes[1].seen()
	require.Equal(t, 1, one+two)
}

func TestRetriesEndAtTheDeadlineWithTheRefusal(t *testing.T) {
	cl := newCluster(t, 1)
	n := cl.nodes[0]
	n.answer = func(*kvpb.Operation) *kvpb.Result { return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_NOT_APPLIED) }
	c, refused := cl.client(), false
	for range 20 {
		start := time.Now()
		_, err := c.SetContext(t.Context(), "k", "v", Timeout(60*time.Millisecond))
		require.Less(t, time.Since(start), 2*time.Second)
		if e := kv.AsError(err); e.Code == kv.CodeDeadlineExceeded {
			// The deadline met an attempt that was under way: nobody knows what becomes of it.
			require.Equal(t, kv.OutcomeUnknown, e.Outcome)
			continue
		}
		requireError(t, err, kv.CodeNoLeader, kv.OutcomeNotApplied)
		refused = true
		break
	}
	require.True(t, refused, "never between two attempts")
	operations, _ := n.seen()
	require.Greater(t, operations, 3)
}

func TestDeadlineOfASilentServer(t *testing.T) {
	cl := newCluster(t, 1)
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result { return nil }
	c := cl.client()
	for _, timeout := range []time.Duration{20 * time.Millisecond, timerBelow + 50*time.Millisecond} {
		start := time.Now()
		_, err := c.SetContext(t.Context(), "k", "v", Timeout(timeout))
		requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
		_, err = c.GetContext(t.Context(), "k", Timeout(timeout))
		requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeNotApplied)
		require.GreaterOrEqual(t, time.Since(start), 2*timeout)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := c.SetContext(ctx, "k", "v")
	requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
}

func TestGivingUpIsHonest(t *testing.T) {
	cl := newCluster(t, 1)
	got := make(chan struct{}, 1)
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result { got <- struct{}{}; return nil }
	c := cl.client()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-got
		cancel()
	}()
	_, err := c.SetContext(ctx, "k", "v")
	requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
	require.ErrorIs(t, err, context.Canceled)

	f := c.SetAsync("k", "v", Timeout(300*time.Millisecond))
	_, err = f.Wait(ctx)
	requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
	select {
	case <-f.Done():
		t.Fatal("giving up waiting ended the operation")
	default:
	}
	_, err = f.Wait(t.Context())
	requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
}

func TestWithoutAnyEndpointNothingIsApplied(t *testing.T) {
	cl := newCluster(t, 2)
	cl.nodes[0].stop()
	cl.nodes[1].stop()
	c := cl.client()
	_, err := c.SetContext(t.Context(), "k", "v", Timeout(50*time.Millisecond))
	requireError(t, err, kv.CodeNotReady, kv.OutcomeNotApplied)
	require.Contains(t, err.Error(), "connection refused")
	require.Equal(t, ExitUnavailable, ExitCode(err))
}

func TestOperationsWaitForAnEndpointAndReconnect(t *testing.T) {
	cl := newCluster(t, 1)
	n := cl.nodes[0]
	n.stop()
	c := cl.client()
	futures := []Future{c.SetAsync("a", "1"), c.GetAsync("b")}
	time.Sleep(20 * time.Millisecond)
	n.start()
	for _, f := range futures {
		_, err := f.Wait(t.Context())
		require.NoError(t, err)
	}
	n.stop()
	require.Eventually(t, func() bool { return !c.conns[0].up.Load() }, 5*time.Second, time.Millisecond)
	n.start()
	require.NoError(t, c.Set("k", "v"))
}

func TestWhatWasGivenUpBeforeItWasSentIsNeverSent(t *testing.T) {
	cl := newCluster(t, 1)
	n := cl.nodes[0]
	n.stop()
	c := cl.client()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.SetContext(ctx, "given up", "v")
	require.Error(t, err)
	require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
	n.start()
	require.NoError(t, c.Set("k", "v"))
	operations, _ := n.seen()
	require.Equal(t, 1, operations)
}

// newCall returns an operation in state queued that is due in d.
func newCall(c *Client, d time.Duration) *call {
	op := &call{client: c, deadline: time.Now().Add(d), finished: make(chan struct{})}
	op.op.Request = kv.Request{Op: kv.OpPut, Key: []byte("k")}
	op.state.Store(queued)
	return op
}

func TestSenderTakesOnlyWhatIsStillWanted(t *testing.T) {
	c := newCluster(t, 1).client()
	idle := newConn(c, 0, "nowhere", nil, nil) // without a sender of its own
	wanted, late, ended, second := newCall(c, time.Minute), newCall(c, -time.Second), newCall(c, time.Minute), newCall(c, time.Minute)
	ended.abandon(kv.Errorf(kv.CodeDeadlineExceeded, "given up"))
	idle.queue = []*call{wanted, late, ended, second}
	out := outgoing{}
	require.False(t, idle.takeBatch(&out))
	require.Equal(t, []*call{wanted, second}, out.calls)
	require.Equal(t, []*call{late}, out.expired)
	require.Empty(t, idle.queue)
	require.Same(t, second, idle.table.take(out.ids[1]))
}

func TestWhatExpiresInTheQueueIsAnswered(t *testing.T) {
	c := newCluster(t, 1).client()
	op := newCall(c, -time.Second)
	require.True(t, c.conns[0].enqueue(op))
	<-op.finished
	requireError(t, op.err, kv.CodeDeadlineExceeded, kv.OutcomeNotApplied)
}

func TestUntriedEndpointsComeFirst(t *testing.T) {
	c := newCluster(t, 3).client()
	op := newCall(c, time.Minute)
	op.tried = 1<<0 | 1<<2
	for range 6 {
		require.Equal(t, 1, c.candidates(op)[0].index)
	}
	op.tried = 7
	require.Len(t, c.candidates(op), 3)
	c.conns[1].up.Store(false)
	require.Len(t, c.candidates(op), 2)
}

func TestMuteEndpointIsNotUsed(t *testing.T) {
	cl := newCluster(t, 2)
	cl.nodes[0].mute = true
	c := cl.client(func(cfg *Config) { cfg.ConnectTimeout = 30 * time.Millisecond })
	for range 4 {
		r, err := c.SetContext(t.Context(), "k", "v", Timeout(time.Second))
		require.NoError(t, err)
		require.Equal(t, "n2", r.Coordinator)
	}
	require.Eventually(t, func() bool {
		err := c.conns[0].lastFailure()
		return err != nil && strings.Contains(err.Error(), "no answer within")
	}, 5*time.Second, time.Millisecond)
}

func TestEndpointThatFallsSilentIsGivenUp(t *testing.T) {
	cl := newCluster(t, 1)
	n := cl.nodes[0]
	n.answer = func(*kvpb.Operation) *kvpb.Result { return nil }
	c := cl.client()
	_, err := c.SetContext(t.Context(), "k", "v", Timeout(silenceMax))
	requireError(t, err, kv.CodeDeadlineExceeded, kv.OutcomeUnknown)
	require.Eventually(t, func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.streams == 2
	}, 5*time.Second, time.Millisecond)
}

func TestDrainingServerLosesNothing(t *testing.T) {
	cl := newCluster(t, 2)
	var writing sync.WaitGroup
	c := cl.client()
	stop := make(chan struct{})
	errs := make(chan error, 8)
	for range 8 {
		writing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.Set("k", "v"); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	n := cl.nodes[0]
	n.mu.Lock()
	close(n.drain)
	n.drain = make(chan struct{})
	n.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	close(stop)
	writing.Wait()
	select {
	case err := <-errs:
		require.NoError(t, err)
	default:
	}
}

func TestCloseEndsEverythingHonestly(t *testing.T) {
	cl := newCluster(t, 1)
	got := make(chan struct{}, 2)
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result { got <- struct{}{}; return nil }
	c := cl.client()
	write, read := c.SetAsync("k", "v"), c.GetAsync("k")
	<-got
	<-got
	require.NoError(t, c.Close())
	_, err := write.Wait(t.Context())
	requireError(t, err, kv.CodeNotReady, kv.OutcomeUnknown)
	_, err = read.Wait(t.Context())
	requireError(t, err, kv.CodeNotReady, kv.OutcomeNotApplied)
	_, err = c.SetContext(t.Context(), "k", "v")
	requireError(t, err, kv.CodeNotReady, kv.OutcomeNotApplied)
	require.False(t, kv.AsError(err).Retryable)
	require.NoError(t, c.Close())
}

func TestOutstandingOperationsAreBounded(t *testing.T) {
	cl := newCluster(t, 1)
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result { return nil }
	c := cl.client(func(cfg *Config) { cfg.OutstandingOpsMax, cfg.OutstandingBytesMax = 2, 2<<10 })
	c.SetAsync("a", "1")
	c.SetAsync("b", "1", Timeout(50*time.Millisecond))
	start := time.Now()
	_, err := c.SetContext(t.Context(), "c", "1", Timeout(30*time.Millisecond))
	requireError(t, err, kv.CodeOverloaded, kv.OutcomeNotApplied)
	require.GreaterOrEqual(t, time.Since(start), 30*time.Millisecond)
	// Once b has expired, which nobody waited for, there is room again.
	f := c.SetAsync("d", "1", Timeout(2*time.Second))
	require.Eventually(t, func() bool {
		operations, _ := cl.nodes[0].seen()
		return operations == 3
	}, 5*time.Second, time.Millisecond)
	_ = f
}

func TestStatusAsksUntilAnEndpointAnswers(t *testing.T) {
	cl := newCluster(t, 2)
	c := cl.client()
	cl.nodes[0].stop()
	for range 2 {
		document, err := c.StatusContext(t.Context(), "status")
		require.NoError(t, err)
		require.JSONEq(t, `{"name":"n2"}`, string(document))
	}
	cl.nodes[1].stop()
	_, err := c.StatusContext(t.Context(), "status")
	require.Equal(t, ExitUnavailable, ExitCode(err), "%v", err)
}

func TestConcurrentUseUnderFailuresAnswersEverythingOnce(t *testing.T) {
	cl := newCluster(t, 3)
	c := cl.client()
	stop := make(chan struct{})
	var chaos, load sync.WaitGroup
	chaos.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			cl.nodes[i%3].stop()
			cl.nodes[i%3].start()
		}
	})
	var ok, unknown atomic.Int64
	for range 16 {
		load.Go(func() {
			for range 100 {
				_, err := c.SetContext(t.Context(), "k", "v")
				switch e := kv.AsError(err); {
				case err == nil:
					ok.Add(1)
				case e.Outcome == kv.OutcomeUnknown:
					unknown.Add(1)
				default:
					t.Errorf("a write that was not applied was not retried: %v", err)
				}
				if _, err := c.GetContext(t.Context(), "k"); err != nil && kv.CodeOf(err) != kv.CodeNotReady {
					t.Errorf("read: %v", err)
				}
			}
		})
	}
	load.Wait()
	close(stop)
	chaos.Wait()
	require.EqualValues(t, 1600, ok.Load()+unknown.Load())
	require.Positive(t, ok.Load())
}

func TestExitCodes(t *testing.T) {
	unknown := kv.Errorf(kv.CodeNoLeader, "x").WithOutcome(kv.OutcomeUnknown)
	for want, errs := range map[int][]error{
		ExitOK:          {nil},
		ExitError:       {errors.New("plain"), kv.Errorf(kv.CodeInternal, "x"), kv.Errorf(kv.CodeValueTooLarge, "x")},
		ExitUsage:       {kv.Errorf(kv.CodeBadRequest, "x"), kv.Errorf(kv.CodeBadQuorum, "x"), kv.Errorf(kv.CodeUnknownConsistency, "x")},
		ExitNotFound:    {kv.Errorf(kv.CodeKeyNotFound, "x")},
		ExitConflict:    {kv.Errorf(kv.CodeVersionMismatch, "x"), kv.Errorf(kv.CodeSiblings, "x"), kv.Errorf(kv.CodeLevelFenced, "x")},
		ExitUnavailable: {kv.Errorf(kv.CodeNoLeader, "x"), kv.Errorf(kv.CodeDeadlineExceeded, "x"), kv.Errorf(kv.CodeOverloaded, "x")},
		ExitUnknown:     {unknown, kv.Errorf(kv.CodeDeadlineExceeded, "x").WithOutcome(kv.OutcomeUnknown)},
	} {
		for _, err := range errs {
			require.Equal(t, want, ExitCode(err), "%v", err)
		}
	}
}

func TestReferenceHasTheExitCodes(t *testing.T) {
	reference, err := os.ReadFile("../../docs/api.md")
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| `[A-Za-z]+` \\| (\\d) \\|$").FindAllStringSubmatch(string(reference), -1)
	require.Len(t, rows, 18)
	for _, row := range rows {
		require.Equal(t, row[2], strconv.Itoa(ExitCode(kv.Errorf(kv.Code(row[1]), "x"))), row[1])
	}
}

func TestConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"endpoints":   func(c *Config) { c.Endpoints = nil },
		"empty":       func(c *Config) { c.Endpoints = []string{""} },
		"timeout":     func(c *Config) { c.Timeout = 0 },
		"outstanding": func(c *Config) { c.OutstandingOpsMax = 0 },
		"batches":     func(c *Config) { c.BatchOpsMax = 0 },
		"backoff":     func(c *Config) { c.BackoffMin = time.Hour },
		"retry":       func(c *Config) { c.RetryMin = 0 },
		"connect":     func(c *Config) { c.ConnectTimeout = 0 },
	} {
		cfg := DefaultConfig([]string{"localhost:9001"})
		require.NoError(t, cfg.Validate())
		change(&cfg)
		require.ErrorContains(t, cfg.Validate(), name)
		_, err := New(cfg, Deps{})
		require.Error(t, err)
	}
}
