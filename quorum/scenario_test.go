package quorum

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// inBubble runs a scenario on n nodes in virtual time.
func inBubble(t *testing.T, n int, f func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newCluster(t, n)) })
}

// slowLinks gives every link the delay.
func (c *cluster) slowLinks(d time.Duration) {
	for from := range c.nodes {
		for to := range c.nodes {
			c.setLink(from, to, link{delay: d})
		}
	}
}

// within fails the test unless f takes less than limit.
func within(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	require.Less(t, time.Since(start), limit)
}

func TestDeadReplicaFirstInTheListCostsNoLatency(t *testing.T) {
	for _, how := range []struct {
		name string
		link link
	}{
		{"refuses connections", link{refuse: kv.Errorf(kv.CodeNotReady, "connection refused")}},
		{"swallows everything", link{swallow: true}},
	} {
		t.Run(how.name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				c.slowLinks(time.Millisecond)
				for from := kv.NodeID(2); from <= 3; from++ {
					c.setLink(from, 1, how.link)
				}
				within(t, 3*time.Millisecond, func() {
					res, err := c.put(2, "k", "v", nil, 2)
					require.NoError(t, err)
					require.ElementsMatch(t, []kv.NodeID{2, 3}, res.Replicas)
				})
				// Node 3 would ask node 1 first: the read is late by the hedge delay at most.
				within(t, DefaultConfig().HedgeDelay+5*time.Millisecond, func() {
					res, err := c.get(3, "k", 2)
					require.NoError(t, err)
					require.Equal(t, "v", string(res.Value))
				})
				// Once gossip knows, not even that.
				c.nodes[1].dead.Store(true)
				within(t, 3*time.Millisecond, func() {
					_, err := c.get(3, "k", 2)
					require.NoError(t, err)
				})
			})
		})
	}
}

func TestWriteOfAllFailsAtOnceAndIsNotAppliedWhenOneIsKnownDead(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(2)
		c.nodes[2].dead.Store(true)
		within(t, time.Millisecond, func() {
			_, err := c.put(1, "k", "v", nil, 3)
			e := kv.AsError(err)
			require.Equal(t, kv.CodeQuorumUnavailable, e.Code)
			require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
			require.True(t, e.Retryable)
			require.Equal(t, [3]int{3, 2, 0}, [3]int{e.Required, e.Alive, e.Acked})
		})
		require.True(t, c.nodes[1].held("k").IsZero(), "nothing was written")
		require.True(t, c.nodes[3].held("k").IsZero(), "nothing was sent")
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.failures[kv.OpPut]))

		_, err := c.get(1, "k", 3)
		require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.failures[kv.OpGet]))
	})
}

func TestWriteThatCannotBeMetAnyMoreIsAnsweredBeforeTheDeadlineAsUnknown(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.kill(2) // and gossip does not know
		within(t, 10*time.Millisecond, func() {
			_, err := c.put(1, "k", "v", nil, 3)
			e := kv.AsError(err)
			require.Equal(t, kv.CodeQuorumUnavailable, e.Code)
			require.Equal(t, kv.OutcomeUnknown, e.Outcome, "this node keeps it")
			require.Equal(t, 3, e.Alive)
		})
		time.Sleep(time.Second)
		require.Equal(t, []string{"v"}, values(c.nodes[1].held("k")), "which is why it is unknown")
	})
}

func TestWriteThatMissesItsQuorumAtTheDeadlineIsUnknown(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{delay: 2 * time.Second})
		c.setLink(1, 3, link{swallow: true})
		start := time.Now()
		_, err := c.put(1, "k", "v", nil, 2)
		require.Equal(t, time.Second, time.Since(start))
		e := kv.AsError(err)
		require.Equal(t, kv.CodeDeadlineExceeded, e.Code)
		require.Equal(t, kv.OutcomeUnknown, e.Outcome)
		require.Equal(t, [2]int{2, 1}, [2]int{e.Required, e.Acked})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.failures[kv.OpPut]))

		time.Sleep(2 * time.Second)
		require.Equal(t, []string{"v"}, values(c.nodes[2].held("k")), "the fan-out goes on after the answer")
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.lateAcks))
	})
}

func TestLocalWriteIsAcknowledgedAtOneAndGoesToAll(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(50 * time.Millisecond)
		within(t, time.Millisecond, func() {
			res, err := c.do(2, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte("v"), Level: kv.LevelLocal}, kv.Quorum{})
			require.NoError(t, err)
			require.Equal(t, kv.LevelLocal, res.Level)
			require.Equal(t, []kv.NodeID{2}, res.Replicas)
			got, err := c.do(2, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelLocal}, kv.Quorum{})
			require.NoError(t, err)
			require.Equal(t, "v", string(got.Value))
			require.Equal(t, 1, got.Acks)
		})
		time.Sleep(60 * time.Millisecond)
		for id := range c.nodes {
			require.Equal(t, []string{"v"}, values(c.nodes[id].held("k")))
		}
	})
}

func TestRequestIsRefusedWithoutEffectWhenItCannotBeUnderstood(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		future := causal.Vector{{Node: 2, Time: causal.MakeHLC(time.Now().Add(time.Hour).UnixMilli(), 0)}}
		for _, context := range [][]byte{
			[]byte("nonsense"), causal.EncodeContext([]byte("another key"), nil), causal.EncodeContext([]byte("k"), future),
		} {
			_, err := c.put(1, "k", "v", context, 2)
			e := kv.AsError(err)
			require.Equal(t, kv.CodeBadRequest, e.Code)
			require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := c.nodes[1].coord.Do(ctx, Call{
			Request: &kv.Request{Op: kv.OpPut, Key: []byte("k"), Level: kv.LevelEventual}, Partition: 3,
			Owners: c.owners(), Quorum: kv.Quorum{N: 3, R: 2, W: 2}, Resolver: LWW{},
		})
		require.Equal(t, kv.CodeDeadlineExceeded, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		require.True(t, c.nodes[1].held("k").IsZero())
	})
}

func TestReplicaWithANewerMapIsNamedInTheFailure(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for id := kv.NodeID(2); id <= 3; id++ {
			c.setLink(1, id, link{refuse: &StaleEpochError{Epoch: kv.Epoch(5 + id)}})
		}
		for _, do := range []func() error{
			func() error { _, err := c.put(1, "k", "v", nil, 2); return err },
			func() error { _, err := c.get(1, "k", 2); return err },
		} {
			err := do()
			require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
			var stale *StaleEpochError
			require.ErrorAs(t, err, &stale)
			require.Equal(t, kv.Epoch(8), stale.Epoch)
		}
	})
}

func TestReplicaThatSwallowsEverythingIsCutOffAtTheLimit(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].coord.calls.perReplicaMax = 2
		c.setLink(1, 2, link{swallow: true})
		for i := range 5 {
			_, err := c.put(1, fmt.Sprint(i), "v", nil, 2)
			require.NoError(t, err)
		}
		require.Equal(t, 3.0, testutil.ToFloat64(c.nodes[1].coord.metrics.callsDropped))
		require.Equal(t, 2, c.nodes[1].coord.calls.outstanding())
		time.Sleep(DefaultConfig().ReplicaTimeout + time.Second)
		require.Zero(t, c.nodes[1].coord.calls.outstanding(), "calls end at their deadline")
	})
}

func TestCoordinatorRefusesAfterItsStop(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{swallow: true})
		_, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.Equal(t, 1, c.nodes[1].coord.calls.outstanding())
		c.nodes[1].shutdown() // waits for the call that is out
		require.Zero(t, c.nodes[1].coord.calls.outstanding())
		_, err = c.put(1, "k", "v", nil, 2)
		require.Equal(t, kv.CodeNotReady, kv.CodeOf(err))
	})
}

func TestCallsHaveAtLeastTheRequestsOwnTime(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		late := DefaultConfig().ReplicaTimeout + time.Second
		c.setLink(1, 2, link{delay: late})
		c.setLink(1, 3, link{delay: late})
		_, err := c.do(1, 2*late, &kv.Request{Op: kv.OpPut, Key: []byte("k")}, kv.Quorum{W: 2})
		require.NoError(t, err)
	})
}

func TestRequestWithoutADeadlineGetsOne(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{swallow: true})
		c.setLink(1, 3, link{swallow: true})
		start := time.Now()
		_, err := c.nodes[1].coord.Do(context.Background(), Call{
			Request: &kv.Request{Op: kv.OpPut, Key: []byte("k"), Level: kv.LevelEventual}, Partition: 3, Epoch: 1,
			Owners: c.owners(), Quorum: kv.Quorum{N: 3, R: 2, W: 2}, Resolver: LWW{},
		})
		require.Equal(t, kv.CodeDeadlineExceeded, kv.CodeOf(err))
		require.Equal(t, DefaultConfig().RequestTimeout, time.Since(start))
	})
}

func TestCallsAreCountedUntilTheyEnd(t *testing.T) {
	c := newCalls(2)
	require.True(t, c.begin(1))
	require.True(t, c.begin(1))
	require.False(t, c.begin(1), "one replica's limit")
	require.True(t, c.begin(2), "is not another's")
	idle := c.stop()
	require.False(t, c.begin(3), "after the stop nothing begins")
	c.end(1)
	c.end(1)
	require.Equal(t, 1, c.outstanding())
	select {
	case <-idle:
		t.Fatal("a call is outstanding")
	default:
	}
	c.end(2)
	<-idle
	<-newCalls(1).stop()
}

func TestOnlyProofOfRefusalIsADefiniteFailure(t *testing.T) {
	require.True(t, refused(&StaleEpochError{Epoch: 1}))
	require.True(t, refused(fmt.Errorf("node 2: %w", &StaleEpochError{Epoch: 1})))
	require.True(t, refused(kv.Errorf(kv.CodeOverloaded, "full")))
	require.False(t, refused(kv.Errorf(kv.CodeDeadlineExceeded, "no answer").WithOutcome(kv.OutcomeUnknown)))
	require.False(t, refused(context.DeadlineExceeded), "nobody classified it")
}
