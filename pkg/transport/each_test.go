package transport

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

func manyWrites(n, bytesEach int) []quorum.WriteRequest {
	out := make([]quorum.WriteRequest, n)
	for i := range out {
		key := fmt.Sprintf("%0*d", i%40+1, i)
		out[i] = quorum.WriteRequest{Partition: kv.PartitionID(i % 16), Epoch: 7, Key: []byte(key), Set: setOf(key), New: dotOf(key)}
		if bytesEach > 0 {
			out[i].Set.Siblings[0].Value = bytes.Repeat([]byte{byte(i)}, bytesEach)
		}
	}
	return out
}

func TestManyRequestsTravelInOneFrameAndEachHasItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ws := manyWrites(100, 0)
		two.node.onWrite = func(w quorum.WriteRequest) (quorum.WriteReply, error) {
			switch w.Partition {
			case 3:
				return quorum.WriteReply{}, &quorum.StaleEpochError{Epoch: 9}
			case 4:
				return quorum.WriteReply{}, kv.Errorf(kv.CodeNotReady, "not now")
			case 5:
				return quorum.WriteReply{Highest: w.Set.Siblings[0].Stamp}, nil
			}
			require.Equal(t, kv.Epoch(7), w.Epoch)
			return quorum.WriteReply{Accepted: len(w.Set.Siblings) == 1 && w.New == dotOf(string(w.Key))}, nil
		}
		results := make(chan []quorum.WriteResult, 100)
		for _, to := range []kv.NodeID{2, 1} {
			one.node.onWrite = two.node.onWrite
			one.WriteEach(ctx, to, ws, func(first int, rs []quorum.WriteResult) {
				require.Zero(t, first)
				results <- rs
			})
			for i, r := range <-results {
				switch i % 16 {
				case 3:
					require.ErrorAs(t, r.Err, new(*quorum.StaleEpochError))
				case 4:
					require.Equal(t, kv.CodeNotReady, kv.CodeOf(r.Err))
				case 5:
					require.NoError(t, r.Err)
					require.Equal(t, ws[i].Set.Siblings[0].Stamp, r.Reply.Highest)
				default:
					require.NoError(t, r.Err)
					require.True(t, r.Reply.Accepted)
				}
			}
		}
		require.Equal(t, 1, two.node.groups)
		two.node.onFwd = func(r kv.Request, _ time.Time) (kv.Response, error) {
			if r.Op == kv.OpDelete {
				return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "nobody").WithOutcome(kv.OutcomeUnknown)
			}
			return kv.Response{Found: true, Value: r.Key, Level: r.Level}, nil
		}
		answers, err := one.ForwardEach(ctx, 2, []kv.Request{
			{Op: kv.OpGet, Level: kv.LevelLocal, Key: []byte("a")}, {Op: kv.OpDelete, Level: kv.LevelLocal, Key: []byte("b")},
		})
		require.NoError(t, err)
		require.Equal(t, "a", string(answers[0].Response.Value))
		require.Equal(t, kv.OutcomeUnknown, answers[1].Err.Outcome)
		require.Equal(t, 2, two.node.groups)
	})
}

func TestManyRequestsOrAnswersThatAreLargeTravelInSeveralFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ws := manyWrites(10, 1<<20)
		done := make(chan int, 100)
		one.WriteEach(ctx, 2, ws, func(first int, rs []quorum.WriteResult) {
			for i, r := range rs {
				require.NoError(t, r.Err)
				done <- first + i
			}
		})
		for i := range ws {
			require.Equal(t, i, <-done)
		}
		require.Greater(t, two.node.groups, 2)
		require.Less(t, two.node.groups, 6)
		two.node.onRead = func(r quorum.ReadRequest) (quorum.ReadReply, error) {
			for _, w := range ws {
				if bytes.Equal(w.Key, r.Key) {
					return quorum.ReadReply{Set: w.Set}, nil
				}
			}
			return quorum.ReadReply{}, kv.Errorf(kv.CodeInternal, "no such key")
		}
		rs := make([]quorum.ReadRequest, len(ws)+1)
		for i := range ws {
			rs[i] = quorum.ReadRequest{Epoch: 7, Key: ws[i].Key}
		}
		rs[len(ws)] = quorum.ReadRequest{Epoch: 7, Key: []byte("none")}
		one.ReadEach(ctx, 2, rs, func(first int, results []quorum.ReadResult) {
			for i, r := range results {
				if at := first + i; at < len(ws) {
					require.NoError(t, r.Err)
					require.True(t, r.Reply.Set.Equal(ws[at].Set))
				} else {
					require.Equal(t, kv.CodeInternal, kv.CodeOf(r.Err))
				}
				done <- first + i
			}
		})
		for i := range rs {
			require.Equal(t, i, <-done)
		}
		// A response that does not fit is refused as a read that may be made again, and a write's never is.
		value := make([]byte, 3<<20)
		two.node.onFwd = func(r kv.Request, _ time.Time) (kv.Response, error) {
			return kv.Response{Found: true, Value: value}, nil
		}
		forwarded := make([]kv.Request, 4)
		for i := range forwarded {
			forwarded[i] = kv.Request{Op: kv.OpGet, Key: []byte("k")}
		}
		answers, err := one.ForwardEach(ctx, 2, forwarded)
		require.NoError(t, err)
		require.Nil(t, answers[0].Err)
		require.True(t, answers[3].Err.Retryable)
		require.Equal(t, kv.OutcomeNotApplied, answers[3].Err.Outcome)
	})
}

func TestManyWritesThatAreLostAreUnknownAndThoseNotSentAreNotApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		results := make(chan []quorum.WriteResult, 2)
		one.WriteEach(ctx, 2, manyWrites(3, 0), func(_ int, rs []quorum.WriteResult) { results <- rs })
		for _, r := range <-results {
			requireUnknown(t, r.Err, kv.CodeDeadlineExceeded)
		}
		time.Sleep(200 * time.Millisecond)
		one.WriteEach(ctx, 2, manyWrites(3, 0), func(_ int, rs []quorum.WriteResult) { results <- rs })
		for _, r := range <-results {
			requireNotSent(t, r.Err, kv.CodeDeadlineExceeded)
		}
	})
}

func FuzzDecodeMany(f *testing.F) {
	f.Add(appendMany(nil, 2, func(dst []byte, i int) []byte { return append(dst, byte(i)) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		things, err := decodeMany(b)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		again, err := decodeMany(appendMany(nil, len(things), func(dst []byte, i int) []byte { return append(dst, things[i]...) }))
		require.NoError(t, err)
		require.Equal(t, things, again)
	})
}
