package quorum

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

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
			nodes, alive := c.nodes[want.self].coord.participants(&Call{Request: &kv.Request{Op: kv.OpGet}, Owners: c.owners(), Quorum: kv.Quorum{N: want.n}})
			require.Equal(t, want.nodes, nodes)
			require.Equal(t, want.alive, alive)
		}
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
