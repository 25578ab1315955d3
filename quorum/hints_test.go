package quorum

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// metric returns the sum of a node's metric over its labels, or over the one label value that is given.
func (n *testNode) metric(name, label string) float64 {
	families, err := n.reg.Gather()
	require.NoError(n.c.t, err)
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || labelled(m, label)) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func labelled(m *dto.Metric, value string) bool {
	for _, l := range m.GetLabel() {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

// pending returns the hints that a node keeps for another one, as its disk has them, in order.
func (n *testNode) pending(target kv.NodeID) (out []storage.Hint) {
	require.NoError(n.c.t, n.engine.State().ScanHints(storage.HintID{Target: target, Partition: 3}, func(h storage.Hint, damaged error) bool {
		require.NoError(n.c.t, damaged)
		out = append(out, h)
		return true
	}))
	return out
}

// revive makes a killed node reachable again.
func (c *cluster) revive(id kv.NodeID) {
	for from := range c.nodes {
		c.setLink(from, id, link{delay: time.Millisecond})
	}
	c.node(id).dead.Store(false)
}

func (c *cluster) mustPut(at kv.NodeID, key, value string, w int) kv.Response {
	c.t.Helper()
	res, err := c.put(at, key, value, nil, w)
	require.NoError(c.t, err)
	return res
}

func TestDeadReplicaGetsWhatItMissedOnceItIsBack(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.kill(3)
		c.node(3).dead.Store(true)
		for i := range 200 {
			c.mustPut(1, fmt.Sprintf("k%03d", i), "v", 2)
		}
		time.Sleep(time.Minute)
		require.Len(t, c.node(1).pending(3), 200)
		require.Equal(t, 200.0, c.node(1).metric("kvstore_hints_pending", "n3"))
		require.InDelta(t, 60, c.node(1).metric("kvstore_hints_oldest_seconds", "n3"), 2)
		require.Positive(t, c.node(1).metric("kvstore_hints_bytes", "n3"))
		c.revive(3)
		time.Sleep(5 * time.Second)
		for i := range 200 {
			require.Equal(t, []string{"v"}, values(c.node(3).held(fmt.Sprintf("k%03d", i))))
		}
		require.Empty(t, c.node(1).pending(3))
		require.Equal(t, 200.0, c.node(1).metric("kvstore_hints_replayed_total", ""))
		require.Zero(t, c.node(1).metric("kvstore_hints_dropped_total", ""))
		require.Zero(t, c.node(1).metric("kvstore_hints_bytes", "n3"))
		require.Empty(t, c.node(1).hints.Status())
	})
}

func TestReplicaThatSwallowsWritesGetsAHintOnceItsTimeIsUp(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 3, link{swallow: true})
		c.mustPut(1, "k", "v", 2)
		time.Sleep(c.node(1).coord.cfg.ReplicaTimeout / 2)
		require.Empty(t, c.node(1).pending(3), "it may still answer")
		time.Sleep(c.node(1).coord.cfg.ReplicaTimeout)
		require.Len(t, c.node(1).pending(3), 1)
		c.revive(3)
		time.Sleep(30 * time.Second)
		require.Equal(t, []string{"v"}, values(c.node(3).held("k")))
	})
}

func TestHintIsKeptUntilItsTargetHasAcknowledgedIt(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(3)
		c.mustPut(1, "k", "v", 2)
		c.setLink(1, 3, link{swallow: true}) // alive, and nothing arrives
		time.Sleep(time.Minute)
		require.Len(t, c.node(1).pending(3), 1)
		require.Positive(t, c.node(1).metric("kvstore_hints_replay_failures_total", ""))
		c.setLink(1, 3, link{dropReply: true}) // it arrives, and the acknowledgement does not
		time.Sleep(time.Minute)
		require.Len(t, c.node(1).pending(3), 1)
		require.Equal(t, []string{"v"}, values(c.node(3).held("k")))
		c.revive(3)
		time.Sleep(time.Minute)
		require.Empty(t, c.node(1).pending(3))
	})
}

func TestHintIsNoAcknowledgementOfItsTarget(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(2)
		c.kill(3)
		_, err := c.put(1, "k", "v", nil, 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeQuorumUnavailable, e.Code)
		require.Equal(t, kv.OutcomeUnknown, e.Outcome)
		require.Less(t, e.Acked, 2)
		time.Sleep(time.Second)
		require.Len(t, c.node(1).pending(2), 1, "what was written here reaches the others all the same")
	})
}

func TestHintsSurviveAPowerCutOfTheirHolder(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(3)
		c.node(3).dead.Store(true)
		for i := range 10 {
			c.mustPut(1, fmt.Sprintf("k%d", i), "v", 2)
		}
		time.Sleep(time.Second)
		c.powerCut(1)
		require.Equal(t, 10, c.node(1).hints.Status()[0].Hints)
		c.revive(3)
		time.Sleep(10 * time.Second)
		require.Empty(t, c.node(1).pending(3))
		require.Equal(t, []string{"v"}, values(c.node(3).held("k7")))
	})
}

// A write that is answered has W durable copies, whatever becomes of the hint for the replica that was away: a power cut
// between the two costs the hint and nothing that was promised.
func TestPowerCutBetweenAcknowledgementAndHintLosesNoAcknowledgedWrite(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 3, link{swallow: true})
		c.mustPut(1, "k", "v", 2)
		c.powerCut(1)
		require.Empty(t, c.node(1).pending(3))
		c.revive(3)
		time.Sleep(time.Minute)
		require.Empty(t, values(c.node(3).held("k")), "the hint was lost; anti-entropy is for that")
		for id := kv.NodeID(1); id <= 2; id++ {
			require.Equal(t, []string{"v"}, values(c.node(id).held("k")))
		}
	})
}

func TestPowerCutDuringReplayOnlyRepeatsHints(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.hinting.PageHintsMax = 4
		c.kill(3)
		c.node(3).dead.Store(true)
		for i := range 40 {
			c.mustPut(2, fmt.Sprintf("k%02d", i), "v", 2)
		}
		time.Sleep(time.Second)
		c.powerCut(2)
		c.node(2).disk.set(func(d *testDisk) { d.sync = 50 * time.Millisecond })
		c.revive(3)
		left := 40
		for waited := time.Duration(0); left == 40 && waited < 5*time.Second; waited += 10 * time.Millisecond {
			time.Sleep(10 * time.Millisecond) // less than a page takes to be struck out
			left = len(c.node(2).pending(3))
		}
		require.Less(t, left, 40)
		require.Positive(t, left)
		c.node(3).disk.set(func(d *testDisk) { d.fail = fmt.Errorf("lost") })
		time.Sleep(5 * time.Second)
		require.Positive(t, len(c.node(2).pending(3)), "what the target could not keep is not dropped")
		c.node(3).disk.set(func(d *testDisk) { d.fail = nil })
		time.Sleep(30 * time.Second)
		require.Empty(t, c.node(2).pending(3))
		for i := range 40 {
			require.Equal(t, []string{"v"}, values(c.node(3).held(fmt.Sprintf("k%02d", i))))
		}
	})
}

func TestHintsOfOneKeyAreOneHintThatHoldsEverything(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.kill(3)
		c.node(3).dead.Store(true)
		for i := range 20 {
			c.mustPut(1, "k", fmt.Sprint(i), 2)
			time.Sleep(time.Duration(i%3) * 10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		require.Len(t, c.node(1).pending(3), 1)
		require.Len(t, c.node(1).pending(3)[0].Set.Siblings, 20)
		require.Equal(t, 1, c.node(1).hints.Status()[0].Hints)
		require.EqualValues(t, c.node(1).pending(3)[0].Bytes, c.node(1).hints.Status()[0].Bytes)
		c.revive(3)
		time.Sleep(5 * time.Second)
		require.Len(t, c.node(3).held("k").Siblings, 20)
		require.Empty(t, c.node(1).hints.Status())
	})
}

// Many writes of few keys while the target comes and goes: what is accounted is what the disk holds, and in the end nothing.
func TestHintsThatAreReplacedWhileTheyAreHandedOverAreNeitherLostNorLeft(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(2 * time.Millisecond)
		c.node(1).disk.set(func(d *testDisk) { d.sync = 3 * time.Millisecond })
		for i := range 600 {
			switch i % 60 {
			case 0:
				c.setLink(1, 3, link{refuse: kv.Errorf(kv.CodeNotReady, "no connection")})
			case 40:
				c.setLink(1, 3, link{delay: 5 * time.Millisecond})
			}
			c.mustPut(1, fmt.Sprintf("k%d", i%5), fmt.Sprint(i), 2)
			time.Sleep(20 * time.Millisecond)
		}
		c.revive(3)
		time.Sleep(30 * time.Second)
		require.Empty(t, c.node(1).pending(3))
		require.Empty(t, c.node(1).hints.Status())
		require.Positive(t, c.node(1).metric("kvstore_hints_replayed_total", ""))
		for i := range 5 {
			require.Equal(t, []string{fmt.Sprint(595 + i)}, values(c.node(3).held(fmt.Sprintf("k%d", i))))
		}
	})
}

func TestHintsBeyondTheCapAreDroppedAndCounted(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		n := c.node(1)
		n.hints.cfg.BytesMax = 1000
		c.kill(3)
		for i := range 50 {
			c.mustPut(1, fmt.Sprintf("k%02d", i), "v", 2)
		}
		time.Sleep(time.Second)
		st := n.hints.Status()[0]
		require.LessOrEqual(t, st.Bytes, int64(1000))
		require.Positive(t, st.Hints)
		require.Equal(t, 50.0-float64(st.Hints), n.metric("kvstore_hints_dropped_total", dropBytes))
		first := n.pending(3)[0]
		c.mustPut(1, string(first.Key), "v", 2)
		time.Sleep(time.Second)
		require.Len(t, n.pending(3), st.Hints, "the newest hint of a key takes the older one's room")
	})
}

func TestHintsThatAreTooOldAreDroppedAndCounted(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		n := c.node(1)
		c.kill(3)
		c.node(3).dead.Store(true)
		c.mustPut(1, "old", "v", 2)
		time.Sleep(2 * time.Hour)
		c.mustPut(1, "new", "v", 2)
		time.Sleep(time.Hour + time.Minute)
		require.Len(t, n.pending(3), 1)
		require.Equal(t, "new", string(n.pending(3)[0].Key))
		require.Equal(t, 1.0, n.metric("kvstore_hints_dropped_total", dropAge))
		require.InDelta(t, 3660, n.metric("kvstore_hints_oldest_seconds", "n3"), 5)
	})
}

func TestHintsOfANodeThatLeftAreDroppedAndCounted(t *testing.T) {
	for standing, reason := range map[Standing]string{StandingLeft: dropLeft, StandingMoved: dropMoved} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			n := c.node(1)
			c.kill(3)
			c.mustPut(1, "k", "v", 2)
			time.Sleep(500 * time.Millisecond)
			require.Len(t, n.pending(3), 1)
			c.standing.Store(uint32(standing))
			time.Sleep(2 * time.Second)
			require.Empty(t, n.pending(3))
			require.Equal(t, 1.0, n.metric("kvstore_hints_dropped_total", reason))
		})
	}
}

func TestHintObeysTheDropRuleAtItsTarget(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.kill(3)
		c.node(3).dead.Store(true)
		c.mustPut(1, "k", "overwritten", 2)
		time.Sleep(time.Second)
		c.node(3).strong("k", storage.Strong{
			Value: []byte("strong"), Revision: 7, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 7}, Time: 1, Node: 1},
		})
		c.revive(3)
		time.Sleep(5 * time.Second)
		require.Empty(t, c.node(1).pending(3))
		require.Empty(t, c.node(3).held("k").Siblings)
	})
}

func TestReplayIsPaced(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		n := c.node(1)
		n.hints.cfg.RateBytes = 2000
		c.kill(3)
		c.node(3).dead.Store(true)
		for i := range 300 {
			c.mustPut(1, fmt.Sprintf("k%03d", i), "v", 2)
		}
		time.Sleep(time.Second)
		bytes := n.hints.Status()[0].Bytes
		c.revive(3)
		began := time.Now()
		for len(n.hints.Status()) > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		perfect := time.Duration(bytes) * time.Second / 2000
		require.Greater(t, time.Since(began), perfect*3/4)
		require.Less(t, time.Since(began), perfect*2)
	})
}

func TestWatermarkWaitsForHintsFromBeforeItAndNoneIsTakenAfter(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		n := c.node(1)
		settled := func(upTo causal.HLC) bool {
			ok, err := n.hints.Settled(t.Context(), 3, upTo)
			require.NoError(t, err)
			return ok
		}
		before := n.clock.Last()
		c.kill(3)
		c.node(3).dead.Store(true)
		c.mustPut(1, "k", "v", 2)
		time.Sleep(time.Second)
		require.True(t, settled(before))
		now, err := n.clock.Now()
		require.NoError(t, err)
		require.False(t, settled(now))
		c.revive(3)
		time.Sleep(5 * time.Second)
		require.True(t, settled(now))
		set := c.node(2).held("k")
		n.hints.Keep(3, 3, []byte("k"), set, set.Siblings[0].Dot)
		synctest.Wait()
		require.Equal(t, 1.0, n.metric("kvstore_hints_dropped_total", dropWatermark))
	})
}
