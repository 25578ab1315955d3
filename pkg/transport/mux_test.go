package transport

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

func TestEveryKindOfTrafficArrivesWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		ctx := t.Context()

		frame := []byte("raft frame")
		require.True(t, one.Send(2, frame))
		frame[0] = 'X' // Send copied it
		synctest.Wait()
		require.Equal(t, [][]byte{[]byte("raft frame")}, two.node.rafts())

		refusal := quorum.WriteReply{Highest: causal.Stamp{Base: causal.Position{Term: 4, Index: 5}, Time: 6, Node: 2}, Base: causal.Position{Term: 4, Index: 7}}
		two.node.onWrite = func(quorum.WriteRequest) (quorum.WriteReply, error) { return refusal, nil }
		got := <-one.write(t, 2, "key", time.Second)
		require.NoError(t, got.err)
		require.Equal(t, refusal, got.reply)
		require.Equal(t, []quorum.WriteRequest{{Partition: 3, Epoch: 7, Key: []byte("key"), Set: setOf("key"), New: dotOf("key")}}, two.node.writes)

		held := quorum.ReadReply{HasStrong: true, Strong: storage.Strong{Value: []byte("s"), Revision: 8, Covered: []causal.Dot{dotOf("x")}}, Set: setOf("key")}
		two.node.onRead = func(quorum.ReadRequest) (quorum.ReadReply, error) { return held, nil }
		done := make(chan struct{})
		one.Read(ctx, 2, quorum.ReadRequest{Partition: 3, Epoch: 7, Key: []byte("key")}, func(r quorum.ReadReply, err error) {
			require.NoError(t, err)
			require.Equal(t, held, r)
			close(done)
		})
		<-done

		request := kv.Request{Op: kv.OpPut, Level: kv.LevelStrong, Key: []byte("k"), Value: []byte("v"), Hops: 1, Condition: kv.Condition{Kind: kv.ConditionVersion, Version: 3}}
		response := kv.Response{Found: true, Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Version: 4, Replicas: []kv.NodeID{1, 2}, Timestamp: time.UnixMilli(5).UTC()}
		two.node.onFwd = func(r kv.Request, deadline time.Time) (kv.Response, error) {
			require.Equal(t, request, r)
			require.Equal(t, 3*time.Second, time.Until(deadline))
			return response, nil
		}
		in3s, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		resp, err := one.Forward(in3s, 2, &request)
		require.NoError(t, err)
		require.Equal(t, response, resp)

		two.node.onScan = func(r quorum.ScanRequest) (quorum.ScanReply, error) {
			return quorum.ScanReply{Rows: []quorum.ScanRow{{Key: r.Prefix}}, More: true}, nil
		}
		scan, err := one.Scan(in3s, 2, quorum.ScanRequest{Prefix: []byte("p"), Limit: 1})
		require.NoError(t, err)
		require.Equal(t, quorum.ScanReply{Rows: []quorum.ScanRow{{Key: []byte("p")}}, More: true}, scan)

		two.node.onOpaque = func(b []byte) ([]byte, error) { return append([]byte("re:"), b...), nil }
		for _, call := range []func(context.Context, kv.NodeID, []byte) ([]byte, error){one.Exchange, one.Meta} {
			b, err := call(ctx, 2, []byte("payload"))
			require.NoError(t, err)
			require.Equal(t, "re:payload", string(b))
		}
		require.Zero(t, one.inFlight.Load())
	})
}

func TestErrorsOfThePeerComeBackAsTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.onWrite = func(quorum.WriteRequest) (quorum.WriteReply, error) {
			return quorum.WriteReply{}, &quorum.StaleEpochError{Epoch: 12}
		}
		got := <-one.write(t, 2, "k", time.Second)
		require.Equal(t, &quorum.StaleEpochError{Epoch: 12}, got.err)

		refused := kv.Errorf(kv.CodeVersionMismatch, "no")
		refused.CurrentVersion = 5
		two.node.onFwd = func(kv.Request, time.Time) (kv.Response, error) { return kv.Response{}, refused }
		_, err := one.Forward(t.Context(), 2, &kv.Request{Op: kv.OpPut, Key: []byte("k")})
		require.Equal(t, refused, err)
	})
}

func TestRequestsToItselfGoStraightToTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, _, stop := pair(t)
		defer stop()
		require.NoError(t, (<-one.write(t, 1, "k", time.Second)).err)
		require.True(t, one.Send(1, []byte("f")))
		one.node.onFwd = func(kv.Request, time.Time) (kv.Response, error) { return kv.Response{Version: 3}, nil }
		resp, err := one.Forward(t.Context(), 1, &kv.Request{Op: kv.OpGet})
		require.NoError(t, err)
		require.EqualValues(t, 3, resp.Version)
		one.node.onOpaque = func(b []byte) ([]byte, error) { return b, nil }
		for _, call := range []func(context.Context, kv.NodeID, []byte) ([]byte, error){one.Exchange, one.Meta} {
			got, err := call(t.Context(), 1, []byte("p"))
			require.NoError(t, err)
			require.Equal(t, "p", string(got))
		}
		one.node.hold = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = one.Forward(ctx, 1, &kv.Request{Op: kv.OpPut})
		requireUnknown(t, err, kv.CodeDeadlineExceeded)
		require.Zero(t, b.attempts())
	})
}

func TestPendingFramesShareOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		one, two := newStation(t, boardWire{b, 1}, 1), newStation(t, boardWire{b, 2}, 2)
		b.plug(2, two.Mux)
		for i := range 50 {
			require.True(t, one.Send(2, fmt.Append(nil, i)))
			one.write(t, 2, fmt.Sprint("key", i), time.Second)
		}
		one.start(t)
		defer one.stop()
		synctest.Wait()
		batches := b.batches()
		require.Len(t, batches, 1)
		_, rest, err := decodeHeader(batches[0])
		require.NoError(t, err)
		n := 0
		for ; len(rest) > 0; n++ {
			_, rest, err = nextFrame(rest)
			require.NoError(t, err)
		}
		require.Equal(t, 100, n)
		for i, f := range two.node.rafts() {
			require.Equal(t, fmt.Append(nil, i), f, "in order")
		}
	})
}

func TestBatchesStayWithinTheirLimitAndNeitherClassStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		one := newStation(t, boardWire{b, 1}, 1, tuned(func(c *Config) { c.BatchBytesMax = 1000 }))
		two := newStation(t, boardWire{b, 2}, 2)
		b.plug(2, two.Mux)
		for range 20 {
			require.True(t, one.Send(2, make([]byte, 700)))
			one.write(t, 2, string(make([]byte, 700)), time.Second)
		}
		one.start(t)
		defer one.stop()
		synctest.Wait()
		require.Len(t, two.node.rafts(), 20)
		require.Equal(t, 20, two.node.written())
		var kinds []kind
		for _, batch := range b.batches() {
			require.LessOrEqual(t, len(batch), headerBytes+2*1000)
			kinds = append(kinds, kind(batch[headerBytes]))
		}
		require.Contains(t, kinds[:2], kindRaft)
		require.Contains(t, kinds[:2], kindWrite)
	})
}

func TestFullOutboxDropsRaftAndRefusesRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard() // nobody runs: everything stays queued
		one := newStation(t, boardWire{b, 1}, 1, tuned(func(c *Config) {
			c.RaftOutboxBytesMax, c.DataOutboxBytesMax, c.BatchBytesMax = 10_000, 10_000, 1000
		}))
		sent := 0
		for ; one.Send(2, make([]byte, 100)); sent++ {
			require.Less(t, sent, 1000)
		}
		require.Equal(t, 10_000/(100+frameBytes), sent)
		require.EqualValues(t, 1, one.metric(t, "dropped_frames_total"))

		// Full of Raft's frames, it still takes requests, until it is full of those.
		var calls []<-chan outcome
		for {
			c := one.write(t, 2, "some key", time.Minute)
			if o, over := outcomeOf(c); over {
				requireNotSent(t, o.err, kv.CodeOverloaded)
				break
			}
			calls = append(calls, c)
			require.Less(t, len(calls), 1000)
		}
		require.Greater(t, len(calls), 20)
		require.LessOrEqual(t, one.outboxBytes(), 20_000)

		// What was accepted is sent once somebody runs.
		two := newStation(t, boardWire{b, 2}, 2)
		b.plug(1, one.Mux)
		b.plug(2, two.Mux)
		one.start(t)
		defer one.stop()
		two.start(t)
		defer two.stop()
		for _, c := range calls {
			require.NoError(t, (<-c).err)
		}
		synctest.Wait()
		require.Len(t, two.node.rafts(), sent)
		require.Zero(t, one.outboxBytes())
	})
}

func TestFrameLargerThanTheLimitIsNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t, tuned(func(c *Config) { c.FrameBytesMax = 1000 }))
		defer stop()
		require.False(t, one.Send(2, make([]byte, 1001)))
		requireNotSent(t, (<-one.write(t, 2, string(make([]byte, 1000)), time.Second)).err, kv.CodeInternal)
		require.NoError(t, (<-one.write(t, 2, "small", time.Second)).err)
		require.Empty(t, two.node.rafts())
		require.Equal(t, 1, two.node.written())

		// A reply that is too large ends the call too, as an error.
		one.node.onOpaque = func([]byte) ([]byte, error) { return make([]byte, 2000), nil }
		_, err := two.Meta(t.Context(), 1, nil)
		require.ErrorContains(t, err, "exceeds")
		require.Equal(t, kv.OutcomeUnknown, kv.AsError(err).Outcome)
	})
}

func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t, tuned(func(c *Config) { c.CallsMax = 3 }))
		defer stop()
		two.node.hold = true
		for range 3 {
			one.write(t, 2, "k", time.Minute)
		}
		requireNotSent(t, (<-one.write(t, 2, "k", time.Minute)).err, kv.CodeOverloaded)
		synctest.Wait()
		two.node.release()
		synctest.Wait()
		two.node.hold = false
		require.NoError(t, (<-one.write(t, 2, "k", time.Minute)).err)
	})
}

func TestDeadlineAfterSendingIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		c := one.write(t, 2, "k", 300*time.Millisecond)
		o := <-c
		requireUnknown(t, o.err, kv.CodeDeadlineExceeded)
		require.GreaterOrEqual(t, o.after, 300*time.Millisecond)
		require.LessOrEqual(t, o.after, 330*time.Millisecond)
		require.Equal(t, 1, two.node.written())

		// The late reply is dropped and counted, and does not run the callback again.
		two.node.release()
		synctest.Wait()
		_, again := outcomeOf(c)
		require.False(t, again)
		require.EqualValues(t, 1, one.metric(t, "stray_replies_total"))
		require.EqualValues(t, 1, one.metric(t, "call_failures_total"))
	})
}

func TestReadThatFailsIsNeverUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		errs := make(chan error, 1)
		one.Read(ctx, 2, quorum.ReadRequest{Key: []byte("k")}, func(_ quorum.ReadReply, err error) { errs <- err })
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(<-errs).Outcome)
		_, err := one.Forward(ctx, 2, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
	})
}

func TestDeadlineWhileQueuedIsNotSentAndNeverArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		jam(t, b, one)
		early := one.write(t, 2, "early", 100*time.Millisecond)
		late := one.write(t, 2, "late", 10*time.Second)
		requireNotSent(t, (<-early).err, kv.CodeDeadlineExceeded)
		_, over := outcomeOf(late)
		require.False(t, over)
		b.loosen(2)
		require.NoError(t, (<-late).err)
		require.Len(t, two.node.writes, 1)
		require.Equal(t, "late", string(two.node.writes[0].Key))
	})
}

func TestThousandCallsNeedNoGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		one.write(t, 2, "k", time.Minute)
		synctest.Wait()
		before := runtime.NumGoroutine()
		for range 1000 {
			one.write(t, 2, "k", time.Minute)
		}
		synctest.Wait()
		require.Less(t, runtime.NumGoroutine(), before+10)
		require.EqualValues(t, 1001, one.metric(t, "calls_in_flight"))
		time.Sleep(61 * time.Second)
		require.Zero(t, one.metric(t, "calls_in_flight"))
	})
}

func TestEndOfContextEndsAWaitingCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(50 * time.Millisecond)
			cancel()
		}()
		began := time.Now()
		_, err := one.Meta(ctx, 2, []byte("m"))
		requireUnknown(t, err, kv.CodeDeadlineExceeded)
		require.Equal(t, 50*time.Millisecond, time.Since(began))
		_, err = one.Meta(ctx, 2, []byte("m"))
		requireNotSent(t, err, kv.CodeDeadlineExceeded)
		require.Zero(t, one.inFlight.Load())
	})
}

func TestCallWithoutDeadlineGetsTheDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		began := time.Now()
		_, err := one.Exchange(context.Background(), 2, nil)
		requireUnknown(t, err, kv.CodeDeadlineExceeded)
		require.InDelta(t, 5, time.Since(began).Seconds(), 0.05)
	})
}

func TestEndOfRunEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		two.node.hold = true
		sent := one.write(t, 2, "sent", time.Minute)
		synctest.Wait()
		one.stop()
		o, over := outcomeOf(sent)
		require.True(t, over)
		requireUnknown(t, o.err, kv.CodeNotReady)
		o, over = outcomeOf(one.write(t, 2, "k", time.Minute))
		require.True(t, over)
		requireNotSent(t, o.err, kv.CodeNotReady)
		o, over = outcomeOf(one.write(t, 3, "k", time.Minute))
		require.True(t, over)
		requireNotSent(t, o.err, kv.CodeNotReady)
		require.False(t, one.Send(2, nil))
		require.False(t, one.Send(3, nil))
		require.ErrorIs(t, one.Deliver(2, make([]byte, headerBytes)), ErrMalformed)
		batch := make([]byte, headerBytes)
		header{from: 2}.put(batch)
		require.ErrorIs(t, one.Deliver(2, batch), ErrClosed)
		two.node.release()
		stop()
	})
}

func TestConfigSaysWhatIsWrong(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	require.NoError(t, DefaultGRPCConfig().Validate())
	for _, spoil := range []func(*Config){
		func(c *Config) { c.RaftOutboxBytesMax = 0 },
		func(c *Config) { c.DataOutboxBytesMax = -1 },
		func(c *Config) { c.BatchBytesMax = 0 },
		func(c *Config) { c.FrameBytesMax = 0 },
		func(c *Config) { c.FrameBytesMax = 1 << 31 },
		func(c *Config) { c.CallsMax = 0 },
		func(c *Config) { c.CallTimeout = 2 * c.CallTimeoutMax },
		func(c *Config) { c.SweepEvery = 0 },
		func(c *Config) { c.BackoffMin = 2 * c.BackoffMax },
		func(c *Config) { c.PeersMax = 0 },
	} {
		c := DefaultConfig()
		spoil(&c)
		require.Error(t, c.Validate())
		_, err := New(c, Deps{})
		require.Error(t, err)
	}
	_, err := New(DefaultConfig(), Deps{})
	require.Error(t, err)
}
