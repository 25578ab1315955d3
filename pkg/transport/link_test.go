package transport

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// jam makes the link from 1 to 2 block in a send, once it has lived long enough for its end not to count as a failure to
// connect. It returns the link.
func jam(t *testing.T, b *board, one *station) *boardLink {
	t.Helper()
	require.True(t, one.Send(2, []byte("connect")))
	time.Sleep(2500 * time.Millisecond) // between two empty batches
	b.set(b.stuck, 2, true)
	require.True(t, one.Send(2, []byte("in the way")))
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.links {
		if l.to == 2 {
			return l
		}
	}
	t.Fatal("no link")
	return nil
}

func TestRaftFramesAndRepliesOutliveTheirLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		l := jam(t, b, one)
		for i := range 100 {
			require.True(t, one.Send(2, fmt.Append(nil, i)))
		}
		asked := two.write(t, 1, "k", time.Minute)
		synctest.Wait()
		require.Equal(t, 1, one.node.written())
		_, over := outcomeOf(asked)
		require.False(t, over, "the reply is stuck")
		l.fail(errUnplugged)
		b.loosen(2)
		require.NoError(t, (<-asked).err)
		require.Len(t, two.node.rafts(), 101, "all but the one that was being sent")
	})
}

func TestBrokenLinkEndsCallsAtOnceAndHonestly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		one.Send(2, nil)
		time.Sleep(2 * time.Second)
		two.node.hold = true
		sent := one.write(t, 2, "sent", time.Minute)
		synctest.Wait()
		require.Equal(t, 1, two.node.written())
		b.set(b.stuck, 2, true)
		sending := one.write(t, 2, "sending", time.Minute)
		synctest.Wait()
		queued := one.write(t, 2, "queued", time.Minute)
		b.unplug(2)
		synctest.Wait()
		for _, c := range []<-chan outcome{sent, sending} {
			o, over := outcomeOf(c)
			require.True(t, over, "at once")
			requireUnknown(t, o.err, kv.CodeNotReady)
			require.ErrorIs(t, o.err, ErrLinkBroken)
		}
		o, over := outcomeOf(queued)
		require.True(t, over)
		requireNotSent(t, o.err, kv.CodeNotReady)

		b.set(b.stuck, 2, false)
		b.plug(2, two.Mux)
		time.Sleep(2 * time.Second)
		require.Equal(t, 1, two.node.written(), "what was reported as not sent must not come later")
	})
}

func TestUnreachablePeerRefusesAtOnceAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		b.unplug(2)
		o := <-one.write(t, 2, "first", time.Minute)
		requireNotSent(t, o.err, kv.CodeNotReady)
		for range 5 {
			time.Sleep(time.Second)
			o, over := outcomeOf(one.write(t, 2, "next", time.Minute))
			require.True(t, over, "no waiting for a peer that is down")
			requireNotSent(t, o.err, kv.CodeNotReady)
			require.False(t, one.Send(2, []byte("f")))
		}
		require.False(t, one.Connected(2))
		tries := b.attempts()
		require.Less(t, tries, 20, "pauses grow")
		b.plug(2, two.Mux)
		time.Sleep(time.Second + 10*time.Millisecond)
		require.True(t, one.Connected(2), "pauses end within a second")
		require.NoError(t, (<-one.write(t, 2, "again", time.Second)).err)
		require.EqualValues(t, tries+1, one.metric(t, "connects_total")+two.metric(t, "connects_total")-1)
	})
}

func TestNewAddressEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		b.unplug(2)
		one.Send(2, nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		b.plug(2, two.Mux)
		one.Relocated(2)
		synctest.Wait()
		require.True(t, one.Connected(2), "without waiting")
		one.Relocated(9) // nobody
	})
}

func TestTrafficFromAPeerEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		b.unplug(2)
		one.Send(2, nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		b.plug(2, two.Mux)
		two.Send(1, []byte("I am back"))
		synctest.Wait()
		require.True(t, one.Connected(2))
	})
}

func TestReconnectsAtOnceAfterALinkBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, _, stop := pair(t)
		defer stop()
		l := jam(t, b, one)
		l.fail(errUnplugged)
		b.loosen(2)
		time.Sleep(2 * time.Millisecond)
		require.True(t, one.Connected(2), "without a pause")
		require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err)
	})
}

func TestPeerThatRefusesEveryBatchIsNotCalledWithoutPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		one := newStation(t, boardWire{b, 1}, 1, withCluster(1))
		two := newStation(t, boardWire{b, 2}, 2, withCluster(2))
		b.plug(2, two.Mux)
		one.start(t)
		defer one.stop()
		one.Send(2, []byte("f"))
		time.Sleep(10 * time.Second)
		require.Less(t, b.attempts(), 25)
		require.Empty(t, two.node.rafts())
	})
}

func TestForeignBatchesAreRefused(t *testing.T) {
	b := newBoard()
	two := newStation(t, boardWire{b, 2}, 2, withCluster(2))
	batch := func(h header) []byte {
		out := make([]byte, headerBytes)
		h.put(out)
		start := len(out)
		out = append(openFrame(out, kindRaft, 0), 'f')
		closeFrame(out, start)
		return out
	}
	require.ErrorIs(t, two.Deliver(1, batch(header{from: 1, cluster: 3})), ErrForeignCluster)
	require.ErrorIs(t, two.Deliver(1, batch(header{from: 3, cluster: 2})), ErrWrongNode)
	require.ErrorIs(t, two.Deliver(2, batch(header{from: 2, cluster: 2})), ErrWrongNode)
	require.ErrorIs(t, two.Deliver(1, nil), ErrMalformed)
	require.ErrorIs(t, two.Deliver(1, append([]byte{9}, batch(header{from: 1})[1:]...)), ErrMalformed)
	require.Empty(t, two.node.rafts())
	require.NoError(t, two.Deliver(1, batch(header{from: 1, cluster: 0})), "a node may not know its cluster yet")
	require.NoError(t, two.Deliver(1, batch(header{from: 1, cluster: 2})))
	require.ErrorIs(t, two.Deliver(1, append(batch(header{from: 1}), 1, 2, 3)), ErrMalformed)
	require.Len(t, two.node.rafts(), 3)
}

func TestRepeatedBatchIsHandledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		b.set(b.repeat, 2, true)
		for i := range 10 {
			require.NoError(t, (<-one.write(t, 2, fmt.Sprint("k", i), time.Second)).err)
			one.Send(2, []byte("f"))
		}
		synctest.Wait()
		require.Equal(t, 10, two.node.written())
		require.Len(t, two.node.rafts(), 20, "raft bears repetition")
		require.EqualValues(t, 10, two.metric(t, "repeated_requests_total"))
	})
}

func TestReplyToAnEarlierLifeIsNotTakenForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		two.node.hold = true
		old := one.write(t, 2, "old", time.Minute)
		synctest.Wait()
		one.stop()
		require.Error(t, (<-old).err)
		// The node comes back, with a later clock, and asks something else.
		time.Sleep(time.Millisecond)
		reborn := newStation(t, boardWire{b, 1}, 1)
		b.plug(1, reborn.Mux)
		reborn.start(t)
		fresh := reborn.write(t, 2, "new", time.Minute)
		synctest.Wait()
		require.Equal(t, 2, two.node.written())
		two.node.mu.Lock()
		first := two.node.held[0]
		two.node.mu.Unlock()
		first()
		synctest.Wait()
		_, over := outcomeOf(fresh)
		require.False(t, over)
		require.EqualValues(t, 1, reborn.metric(t, "stray_replies_total"))
		reborn.stop()
		stop()
	})
}

func TestSkewedPeersReadingsAreIgnoredAndItsRequestsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.clock.skew = fmt.Errorf("%w: 900 ms", causal.ErrClockSkew)
		o := <-one.write(t, 2, "k", time.Second)
		require.NoError(t, o.err)
		require.True(t, one.Send(2, []byte("f")))
		synctest.Wait()
		require.Len(t, two.node.rafts(), 1)
		require.Equal(t, 1, two.node.written())
		require.Positive(t, two.metric(t, "skewed_batches_total"))
	})
}

func TestClockTravelsEvenWhenNothingElseDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		one.Send(2, nil)
		synctest.Wait()
		one.clock.mu.Lock()
		one.clock.last += 1000
		want := one.clock.last
		one.clock.mu.Unlock()
		time.Sleep(1100 * time.Millisecond)
		require.GreaterOrEqual(t, two.clock.Last(), want)
	})
}

func TestMalformedRequestIsAnsweredAndTheRestOfItsBatchHandled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, one, two, stop := pair(t)
		defer stop()
		out := make([]byte, headerBytes)
		header{from: 1, life: 99, cluster: 1}.put(out)
		start := len(out)
		out = append(openFrame(out, kindWrite, 5), "nonsense that is long enough"...)
		closeFrame(out, start)
		start = len(out)
		out = append(openFrame(out, kindRaft, 0), 'f')
		closeFrame(out, start)
		require.NoError(t, two.Deliver(1, out))
		require.Len(t, two.node.rafts(), 1)
		synctest.Wait()
		var reply []byte
		for _, batch := range b.batches() {
			f, _, err := nextFrame(batch[headerBytes:])
			require.NoError(t, err)
			if f.kind == kindReply {
				reply = f.payload
			}
		}
		_, answer, err := splitReply(reply)
		require.NoError(t, err)
		require.Equal(t, kv.CodeBadRequest, kv.CodeOf(answer))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(answer).Outcome)
		_ = one
	})
}

func TestForgottenPeerIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, two, stop := pair(t)
		defer stop()
		two.node.hold = true
		sent := one.write(t, 2, "sent", time.Minute)
		synctest.Wait()
		before := runtime.NumGoroutine()
		one.Forget(2)
		one.Forget(2)
		synctest.Wait()
		o, over := outcomeOf(sent)
		require.True(t, over)
		requireUnknown(t, o.err, kv.CodeNotReady)
		require.Less(t, runtime.NumGoroutine(), before)
		two.node.release()
	})
}

func TestPeersAreBounded(t *testing.T) {
	b := newBoard()
	one := newStation(t, boardWire{b, 1}, 1, tuned(func(c *Config) { c.PeersMax = 2 }))
	require.True(t, one.Send(2, nil))
	require.True(t, one.Send(3, nil))
	require.False(t, one.Send(4, nil))
	o, over := outcomeOf(one.write(t, 4, "k", time.Second))
	require.True(t, over)
	requireNotSent(t, o.err, kv.CodeNotReady)
}

func TestPayloadsAreTheHandlersOwn(t *testing.T) {
	b := newBoard()
	two := newStation(t, boardWire{b, 2}, 2)
	var kept []byte
	two.node.onOpaque = func(p []byte) ([]byte, error) {
		kept = p
		return nil, errors.New("x")
	}
	out := make([]byte, headerBytes)
	header{from: 1, life: 9, cluster: 1}.put(out)
	start := len(out)
	out = append(appendRequestPrefix(openFrame(out, kindMeta, 5), 1, time.Second), "payload"...)
	closeFrame(out, start)
	require.NoError(t, two.Deliver(1, out))
	copy(out, bytes.Repeat([]byte{0}, len(out))) // the wire reuses its buffer
	require.Equal(t, "payload", string(kept))
}
