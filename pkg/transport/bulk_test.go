package transport

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// echoPulls answers pulls with what they ask for, twice.
func echoPulls(from kv.NodeID, payload []byte, reply func([]byte, error)) {
	if len(payload) == 0 {
		reply(nil, kv.Errorf(kv.CodeOverloaded, "node %d asks for nothing", from))
		return
	}
	reply(append(bytes.Clone(payload), payload...), nil)
}

func TestPullsHaveLinksAndIdsOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		two.pull = echoPulls
		require.NoError(t, (<-one.write(t, 2, "before", time.Second)).err)
		connected := b.attempts()
		for i := range 50 {
			got, err := one.Pull(t.Context(), 2, []byte{byte(i)})
			require.NoError(t, err)
			require.Equal(t, []byte{byte(i), byte(i)}, got)
			require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err, "its id must not be taken for a pull's")
		}
		require.Equal(t, connected+2, b.attempts(), "a link a direction, kept")
		_, err := one.Pull(t.Context(), 2, nil)
		require.Equal(t, kv.CodeOverloaded, kv.CodeOf(err))
		require.Zero(t, two.metric(t, "repeated_requests_total"))
		require.Zero(t, one.metric(t, "stray_replies_total"))

		one.pull = echoPulls
		got, err := one.Pull(t.Context(), 1, []byte("self"))
		require.NoError(t, err)
		require.Equal(t, []byte("selfself"), got)
	})
}

func TestNodeThatServesNoPullsSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, _, stop := pair(t)
		defer stop()
		_, err := one.Pull(t.Context(), 2, []byte("x"))
		require.Equal(t, kv.CodeNotReady, kv.CodeOf(err))
	})
}

func TestRepeatedPullIsServedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		b.set(b.repeat, 2, true)
		var served atomic.Int64
		two.pull = func(from kv.NodeID, payload []byte, reply func([]byte, error)) {
			served.Add(1)
			echoPulls(from, payload, reply)
		}
		_, err := one.Pull(t.Context(), 2, []byte("x"))
		require.NoError(t, err)
		require.EqualValues(t, 1, served.Load())
	})
}

// jamWire blocks what is sent by every link to a node but the first.
type jamWire struct {
	boardWire
	mu     sync.Mutex // guards links
	links  int
	jammed chan struct{} // closed to let go
}

func (w *jamWire) Connect(ctx context.Context, to kv.NodeID) (Link, error) {
	l, err := w.boardWire.Connect(ctx, to)
	w.mu.Lock()
	w.links++
	later := w.links > 1
	w.mu.Unlock()
	if err == nil && later {
		return jamLink{l, w.jammed}, nil
	}
	return l, err
}

type jamLink struct {
	Link
	jammed chan struct{}
}

func (l jamLink) Send(batch []byte) error {
	select {
	case <-l.jammed:
		return l.Link.Send(batch)
	case <-l.Broken():
		return l.Err()
	}
}

func TestPullThatIsStuckDelaysNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		wire := &jamWire{boardWire: boardWire{b, 1}, jammed: make(chan struct{})}
		one, two := newStation(t, wire, 1), newStation(t, boardWire{b, 2}, 2)
		two.pull = echoPulls
		b.plug(1, one.Mux)
		b.plug(2, two.Mux)
		one.start(t)
		two.start(t)
		defer two.stop()
		defer one.stop()
		require.NoError(t, (<-one.write(t, 2, "first", time.Second)).err)
		pulled := make(chan error, 1)
		go func() {
			_, err := one.Pull(context.Background(), 2, make([]byte, 1<<20))
			pulled <- err
		}()
		synctest.Wait()
		began := time.Now()
		for range 100 {
			require.True(t, one.Send(2, []byte("heartbeat")))
			require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err)
		}
		require.Less(t, time.Since(began), 10*time.Millisecond)
		close(wire.jammed)
		require.NoError(t, <-pulled)
	})
}

func TestPullsEndWithTheirContextAndWithTheMux(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.pull = func(kv.NodeID, []byte, func([]byte, error)) {} // never answers
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		_, err := one.Pull(ctx, 2, []byte("x"))
		require.Error(t, err)
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome, "a pull changes nothing")
		done := make(chan error, 1)
		go func() {
			_, err := one.Pull(context.Background(), 2, []byte("x"))
			done <- err
		}()
		synctest.Wait()
		one.Forget(2)
		require.Error(t, <-done)
		require.False(t, errors.Is(err, ErrMalformed))
	})
}

func TestGRPCCarriesPullsBesideTheRest(t *testing.T) {
	_, one, two, _ := grpcPair(t, DefaultGRPCConfig())
	two.pull = echoPulls
	payload := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				got, err := one.Pull(t.Context(), 2, payload)
				if err != nil || len(got) != 2*len(payload) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	for range 200 {
		require.NoError(t, (<-one.write(t, 2, "k", 5*time.Second)).err)
	}
	wg.Wait()
}

// handOver hands a hint to a node.
func (s *station) handOver(to kv.NodeID, key string) <-chan outcome {
	out := make(chan outcome, 2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.Write(ctx, to, quorum.WriteRequest{Partition: 3, Epoch: 7, Key: []byte(key), Set: setOf(key), HandOver: true},
		func(r quorum.WriteReply, err error) { out <- outcome{reply: r, err: err} })
	return out
}

// A node that comes back is handed everything that was kept for it; what users write meanwhile does not queue up behind that.
func TestHintsThatAreHandedOverDelayNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		wire := &jamWire{boardWire: boardWire{b, 1}, jammed: make(chan struct{})}
		one, two := newStation(t, wire, 1), newStation(t, boardWire{b, 2}, 2)
		b.plug(1, one.Mux)
		b.plug(2, two.Mux)
		one.start(t)
		two.start(t)
		defer two.stop()
		defer one.stop()
		require.NoError(t, (<-one.write(t, 2, "first", time.Second)).err)
		var handed []<-chan outcome
		for range 100 {
			handed = append(handed, one.handOver(2, "kept"))
		}
		synctest.Wait()
		began := time.Now()
		for range 100 {
			require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err)
		}
		require.Less(t, time.Since(began), 10*time.Millisecond)
		require.Len(t, two.node.writes, 101, "the link of hints is stuck")
		close(wire.jammed)
		for _, done := range handed {
			got := <-done
			require.NoError(t, got.err)
			require.True(t, got.reply.Accepted)
		}
		for _, w := range two.node.writes[101:] {
			require.True(t, w.HandOver)
			require.Equal(t, "kept", string(w.Key))
			require.True(t, w.IsRepair())
		}
	})
}
