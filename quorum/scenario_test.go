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
	"github.com/caprockdb/caprock/pkg/storage"
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

func TestReadSeesAcknowledgedWriteFromAnyCoordinator(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.Equal(t, kv.OutcomeApplied, res.Outcome)
		require.GreaterOrEqual(t, res.Acks, 2)
		require.Contains(t, res.Replicas, kv.NodeID(1))
		require.Equal(t, kv.NodeID(1), res.Coordinator)
		require.False(t, res.Found, "there was nothing before")
		require.NotEmpty(t, res.Context)
		for at := kv.NodeID(1); at <= 3; at++ {
			got, err := c.get(at, "k", 2)
			require.NoError(t, err)
			require.True(t, got.Found)
			require.Equal(t, "v", string(got.Value))
			require.False(t, got.Settled)
			require.Zero(t, got.Version)
			require.GreaterOrEqual(t, got.Acks, 2)
			require.False(t, got.Timestamp.IsZero())
		}
	})
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

func TestSlowReplicaCostsAReadNoMoreThanTheHedgeDelay(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		_, err := c.put(1, "k", "v", nil, 3)
		require.NoError(t, err)
		c.setLink(1, 2, link{delay: 300 * time.Millisecond})
		within(t, DefaultConfig().HedgeDelay+5*time.Millisecond, func() {
			res, err := c.get(1, "k", 2)
			require.NoError(t, err)
			require.ElementsMatch(t, []kv.NodeID{1, 3}, res.Replicas)
		})
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.hedges))
	})
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

func TestReadThatMissesItsQuorumAtTheDeadlineSaysSo(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{swallow: true})
		c.setLink(1, 3, link{swallow: true})
		_, err := c.get(1, "k", 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeDeadlineExceeded, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome, "a read changes nothing")
		require.Equal(t, [2]int{2, 1}, [2]int{e.Required, e.Acked})

		c.kill(2)
		c.kill(3)
		within(t, time.Millisecond, func() {
			_, err := c.get(1, "k", 2)
			require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
		})
	})
}

func TestRefusedWriteIsStampedAnewWithItsWriteID(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		// Nodes 2 and 3 have applied a strong write that node 1 has not heard of.
		for id := kv.NodeID(2); id <= 3; id++ {
			c.nodes[id].strong("k", storage.Strong{
				Value: []byte("strong"), Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}, Time: 1, Node: 2},
			})
			c.nodes[id].position.Store(&causal.Position{Term: 2, Index: 11})
		}
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.Equal(t, kv.OutcomeApplied, res.Outcome)
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.restamps))
		time.Sleep(time.Second)
		for id := kv.NodeID(1); id <= 3; id++ {
			set := c.nodes[id].held("k")
			require.Len(t, set.Siblings, 1, "the second attempt takes the place of the first, node %d", id)
			w := set.Siblings[0]
			require.NotEqual(t, w.Dot, w.ID)
			require.Less(t, w.ID.Time, w.Dot.Time)
			require.Equal(t, causal.Position{Term: 2, Index: 11}, w.Stamp.Base, "a position really appended at the replica that refused")
			require.True(t, set.Covers(w.ID), "the first attempt is superseded")
		}
		got, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
	})
}

func TestWriteGivesUpAfterItsAttempts(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *cluster) {
		// Each time an attempt arrives, node 2 turns out to have applied one more strong write.
		revision := uint64(10)
		ahead := func() {
			revision += 10
			c.nodes[2].strong("k", storage.Strong{Revision: revision, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: revision}}})
		}
		ahead()
		moving := movingTarget{wires: wires{c, c.nodes[1]}, before: ahead}
		c.nodes[1].coord.deps.Replicas = moving
		_, err := c.put(1, "k", "v", nil, 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeQuorumUnavailable, e.Code)
		require.Equal(t, kv.OutcomeUnknown, e.Outcome)
		require.True(t, e.Retryable)
		require.Equal(t, float64(DefaultConfig().AttemptsMax-1), testutil.ToFloat64(c.nodes[1].coord.metrics.restamps))
		time.Sleep(time.Second)
		require.Len(t, c.nodes[1].held("k").Siblings, 1)
	})
}

// movingTarget runs a function before each write it carries.
type movingTarget struct {
	wires
	before func()
}

func (m movingTarget) Write(ctx context.Context, to kv.NodeID, w WriteRequest, done func(WriteReply, error)) {
	m.before()
	m.wires.Write(ctx, to, w, done)
}

func TestRefusalWaitsForTheOthersOnlyAsLongAsTheHedgeDelay(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[2].strong("k", storage.Strong{Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}}})
		c.setLink(1, 3, link{swallow: true})
		within(t, DefaultConfig().HedgeDelay+5*time.Millisecond, func() {
			res, err := c.put(1, "k", "v", nil, 2)
			require.NoError(t, err)
			require.ElementsMatch(t, []kv.NodeID{1, 2}, res.Replicas)
		})
	})
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[2].strong("k", storage.Strong{Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}}})
		c.setLink(1, 3, link{delay: 5 * time.Millisecond})
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.ElementsMatch(t, []kv.NodeID{1, 3}, res.Replicas, "the third's acknowledgement came in time")
		require.Zero(t, testutil.ToFloat64(c.nodes[1].coord.metrics.restamps))
	})
}

func TestConcurrentWritesOfTwoCoordinatorsStayTogetherAsSiblings(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(time.Millisecond)
		c.concurrently(t, func(at kv.NodeID) {
			_, err := c.put(at, "k", fmt.Sprintf("from %d", at), nil, 2)
			require.NoError(t, err)
		})
		time.Sleep(time.Second)
		res, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Len(t, res.Siblings, 2)
		require.True(t, res.Found)
		for id := range c.nodes {
			require.ElementsMatch(t, []string{"from 1", "from 2"}, values(c.nodes[id].held("k")))
		}

		_, err = c.do(3, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Siblings: kv.SiblingsError}, kv.Quorum{})
		require.Equal(t, kv.CodeSiblings, kv.CodeOf(err))
		one, err := c.do(3, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Siblings: kv.SiblingsResolve}, kv.Quorum{})
		require.NoError(t, err)
		require.Equal(t, 2, one.Concurrent)
		require.Empty(t, one.Siblings)

		// The context of one answer covers all of them.
		_, err = c.put(2, "k", "merged", res.Context, 2)
		require.NoError(t, err)
		time.Sleep(time.Second)
		for id := range c.nodes {
			require.Equal(t, []string{"merged"}, values(c.nodes[id].held("k")))
		}
	})
}

// concurrently runs f at nodes 1 and 2 at the same virtual time.
func (c *cluster) concurrently(_ *testing.T, f func(at kv.NodeID)) {
	done := make(chan struct{})
	for at := kv.NodeID(1); at <= 2; at++ {
		go func() {
			f(at)
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

func TestLastWriterOfTwoCoordinatorsIsTheSameEverywhere(t *testing.T) {
	for _, skew := range []time.Duration{0, 200 * time.Millisecond, -200 * time.Millisecond} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.nodes[1].skew = skew
			c.slowLinks(time.Millisecond)
			for round := range 10 {
				c.concurrently(t, func(at kv.NodeID) {
					_, err := c.put(at, "k", fmt.Sprintf("from %d in round %d", at, round), nil, 2)
					require.NoError(t, err)
				})
			}
			time.Sleep(time.Second)
			// A read of all leaves nobody behind.
			first, err := c.get(1, "k", 3)
			require.NoError(t, err)
			time.Sleep(time.Second)
			for at := kv.NodeID(1); at <= 3; at++ {
				got, err := c.do(at, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelLocal}, kv.Quorum{})
				require.NoError(t, err)
				require.Equal(t, string(first.Value), string(got.Value), "node %d, skew %v", at, skew)
			}
		})
	}
}

func TestAcknowledgedWriteIsNotLostToAClockThatIsBehind(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].skew = -400 * time.Millisecond
		for i := range 10 {
			_, err := c.put(kv.NodeID(i%3+1), "k", fmt.Sprint(i), nil, 2)
			require.NoError(t, err)
			got, err := c.get(kv.NodeID((i+1)%3+1), "k", 2)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), string(got.Value))
		}
	})
}

func TestLateDuplicateAcknowledgesWithoutReviving(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.keeps = keeps
			c.setLink(1, 2, link{twice: 500 * time.Millisecond})
			first, err := c.put(1, "k", "old", nil, 3)
			require.NoError(t, err)
			c.setLink(1, 2, link{})
			_, err = c.put(3, "k", "new", first.Context, 3)
			require.NoError(t, err)
			time.Sleep(time.Second) // the duplicate of "old" arrives
			require.Equal(t, []string{"new"}, values(c.nodes[2].held("k")))
			require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[2].store.metrics.verdicts[verdictHeld]))
		})
	}
}

func TestDeletedKeyIsNotRevivedByALateWrite(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 3, link{delay: 500 * time.Millisecond})
		_, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		res, err := c.del(2, "k", nil, 2)
		require.NoError(t, err)
		require.True(t, res.Found, "there was a value to delete")
		time.Sleep(time.Second) // the put arrives at node 3, after the tombstone
		for at := kv.NodeID(1); at <= 3; at++ {
			got, err := c.get(at, "k", 2)
			require.NoError(t, err)
			require.False(t, got.Found, "node %d", at)
			require.NotEmpty(t, got.Context, "a tombstone has a context too")
			require.True(t, got.Timestamp.IsZero())
		}
		again, err := c.del(2, "k", nil, 2)
		require.NoError(t, err)
		require.False(t, again.Found)
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

func TestReadRepairsWhoWasBehind(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(3)
		_, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		c.slowLinks(0)
		_, err = c.get(1, "k", 3)
		require.NoError(t, err)
		time.Sleep(time.Second)
		require.Equal(t, []string{"v"}, values(c.nodes[3].held("k")))
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.repairs))
		_, err = c.get(1, "k", 3)
		require.NoError(t, err)
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.repairs), "nobody is behind any more")
	})
}

func TestReadRepairsTheCoordinatorItself(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(3)
		_, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		c.slowLinks(0)
		got, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
		time.Sleep(time.Second)
		require.Equal(t, []string{"v"}, values(c.nodes[3].held("k")))
	})
}

func TestAnswerThatComesAfterTheReadStillRepairs(t *testing.T) {
	for _, newer := range []string{"late replica", "others"} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			writer, missed := kv.NodeID(1), kv.NodeID(2)
			if newer == "others" {
				writer, missed = 2, 1
			}
			for id := range c.nodes {
				if id != writer {
					c.setLink(writer, id, link{swallow: true})
				}
			}
			_, err := c.put(writer, "k", "v", nil, 1)
			require.NoError(t, err)
			c.slowLinks(0)
			// Node 2 answers long after nodes 1 and 3 did.
			c.setLink(1, 2, link{delay: 100 * time.Millisecond})
			_, err = c.get(1, "k", 2)
			require.NoError(t, err)
			c.slowLinks(0)
			time.Sleep(time.Second)
			require.Equal(t, []string{"v"}, values(c.nodes[missed].held("k")))
			require.Equal(t, []string{"v"}, values(c.nodes[3].held("k")))
		})
	}
}

func TestReadRepairsBeyondTheLimitAreDroppedAndCounted(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].coord.cfg.RepairsMax = 1
		c.kill(2)
		for i := range 3 {
			_, err := c.put(1, fmt.Sprint(i), "v", nil, 2)
			require.NoError(t, err)
		}
		c.slowLinks(0)
		c.nodes[2].disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		for i := range 3 {
			_, err := c.get(1, fmt.Sprint(i), 3)
			require.NoError(t, err)
		}
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.repairs))
		require.Equal(t, 2.0, testutil.ToFloat64(c.nodes[1].coord.metrics.repairsDropped))
		time.Sleep(time.Second)
		require.Zero(t, c.nodes[1].coord.repairing.Load())
	})
}

func TestSiblingsAreRefusedBeyondTheLimitBeforeAnythingIsWritten(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		for i := range DefaultConfig().SiblingsMax {
			_, err := c.put(1, "k", fmt.Sprint(i), nil, 2)
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		before := c.nodes[2].held("k")
		_, err := c.put(1, "k", "one too many", nil, 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeSiblings, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		time.Sleep(time.Second)
		require.True(t, before.Equal(c.nodes[2].held("k")))

		got, err := c.get(2, "k", 2)
		require.NoError(t, err)
		_, err = c.put(1, "k", "all", got.Context, 2)
		require.NoError(t, err, "a write that has read them replaces them")
		require.Equal(t, []string{"all"}, values(c.nodes[1].held("k")))
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

func TestRefusalMovesTheClockAboveWhatRefused(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].skew = -200 * time.Millisecond
		ahead := time.Now().Add(100 * time.Millisecond)
		for id := kv.NodeID(2); id <= 3; id++ {
			require.True(t, (<-writeAsync(c.nodes[id].store, arriving("k", 2, ahead.UnixMilli(), "ahead"))).reply.Accepted)
		}
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.True(t, res.Timestamp.Compare(ahead.Truncate(time.Millisecond)) >= 0)
		got, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
	})
}

func TestReadAnswersTheNewestStrongStateOfAllAsked(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for id := kv.NodeID(1); id <= 3; id++ {
			c.nodes[id].strong("k", storage.Strong{
				Value: fmt.Append(nil, "revision ", 10-id), Revision: uint64(10 - id),
				Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: uint64(10 - id)}, Time: 1},
			})
		}
		// Stamped between the states of nodes 1 and 2: it is the answer at node 2 and replaced at node 1.
		w := arriving("k", 2, time.Now().UnixMilli(), "between")
		w.Set.Siblings[0].Stamp.Base.Index = 8
		require.True(t, (<-writeAsync(c.nodes[2].store, w)).reply.Accepted)
		for at := kv.NodeID(1); at <= 3; at++ {
			got, err := c.get(at, "k", 3)
			require.NoError(t, err)
			require.Equal(t, "revision 9", string(got.Value), "asked at node %d", at)
			require.Equal(t, uint64(9), got.Version)
			require.True(t, got.Settled)
		}
		got, err := c.do(2, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelLocal}, kv.Quorum{})
		require.NoError(t, err)
		require.Equal(t, "between", string(got.Value))
	})
}

func TestReadThatTooFewCanAnswerIsRefusedBeforeAnythingIsSent(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{swallow: true})
		c.nodes[2].dead.Store(true)
		within(t, time.Millisecond, func() {
			_, err := c.get(1, "k", 3)
			require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
			require.Equal(t, [2]int{3, 2}, [2]int{kv.AsError(err).Required, kv.AsError(err).Alive})
		})
		require.Zero(t, c.nodes[1].coord.calls.outstanding())
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

func TestReplicasTakePartByPreferenceAndAreAskedAliveFirst(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *cluster) {
		c.nodes[2].dead.Store(true)
		for _, want := range []struct {
			self  kv.NodeID
			n     int
			nodes []kv.NodeID
			alive int
		}{
			{1, 5, []kv.NodeID{1, 3, 4, 5, 2}, 4},
			{4, 5, []kv.NodeID{4, 5, 1, 3, 2}, 4},
			{3, 3, []kv.NodeID{3, 1, 2}, 2},
			{4, 3, []kv.NodeID{4, 1, 2}, 2}, // not among the first 3: it takes the third's place
			{5, 1, []kv.NodeID{5}, 1},
		} {
			nodes, alive := c.nodes[want.self].coord.participants(&Call{Owners: c.owners(), Quorum: kv.Quorum{N: want.n}})
			require.Equal(t, want.nodes, nodes)
			require.Equal(t, want.alive, alive)
		}
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

func TestReplicaThatCannotReadItsDiskIsLeftOut(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		_, err := c.put(1, "k", "v", nil, 3)
		require.NoError(t, err)
		// A closed engine stands for one that cannot read.
		require.NoError(t, c.nodes[1].engine.Close())
		got, err := c.get(1, "k", 1)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
		require.NotContains(t, got.Replicas, kv.NodeID(1))
		_, err = c.put(1, "k", "w", nil, 1)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeInternal, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
	})
}
