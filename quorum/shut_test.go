package quorum

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// shuts has a node refuse what is accepted eventually from now on.
func (n *testNode) shuts(repairs bool) {
	n.store.deps.Shut = func([]byte) (bool, bool) { return true, repairs }
}

// It was admitted before the policy changed, and held up on its way.
func TestLateWriteOfAnOlderPolicyGetsNoAcknowledgement(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		n.shuts(false)
		out := <-writeAsync(n.store, w)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(out.err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(out.err).Outcome)
		require.True(t, n.held("k").IsZero())

		repair := w
		repair.New = causal.Dot{}
		accepted(t, n, repair) // somebody holds it, and the sweep has to find it
		out = <-writeAsync(n.store, w)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(out.err), "that it is held is no acknowledgement")

		n.strong("k", storage.Strong{Value: []byte("v"), Revision: 7, Stamp: w.Set.Siblings[0].Stamp, Covered: []causal.Dot{w.New}})
		accepted(t, n, w) // it has taken effect
	})
}

func TestWriteIsRefusedWhereItWouldBePlacedOncePolicyForbidsIt(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for _, n := range c.nodes {
			n.shuts(false)
		}
		_, err := c.put(1, "k", "v", nil, 2)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
	})
}

// The coordinator has not heard of the policy, and the others have: nobody can say yet what becomes of the write.
func TestWriteThatOthersRefuseForAPolicyHasAnUnknownOutcome(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[2].shuts(false)
		c.nodes[3].shuts(false)
		_, err := c.put(1, "k", "v", nil, 2)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeUnknown, kv.AsError(err).Outcome)
	})
}

func TestRepairBringsNothingToWhereNothingWasLeft(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		n.shuts(true)
		w.New = causal.Dot{}
		accepted(t, n, w)
		require.Empty(t, n.held("k").Siblings)
	})
}

func TestAttemptsUpToTheFloorAreStampedAnew(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		n.store.deps.Floor = func() causal.HLC { return w.New.Time }
		reply := turnedAway(t, n, w, "a conditional write may have been stamped there")
		require.GreaterOrEqual(t, reply.Highest.Time, w.New.Time)
		accepted(t, n, arriving("k", 2, time.Now().UnixMilli()+1, "v"))
	})
}

// Group 0 is applied while the write is looked at.
func TestWriteThatAnOpeningLetsInIsHeldAgainstItsFloor(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		var floor causal.HLC
		n.store.deps.Shut = func([]byte) (bool, bool) { floor = w.New.Time; return false, false }
		n.store.deps.Floor = func() causal.HLC { return floor }
		turnedAway(t, n, w, "a conditional write may have been stamped there")
	})
}

func TestHintsAreRefusedWhereEventualWritesAre(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		c.nodes[2].dead.Store(true)
		all := func([]byte) bool { return true }
		n.hints.Keep(2, 3, []byte("k"), w.Set, w.New)
		count, err := n.hints.Count(all, 10)
		require.NoError(t, err)
		require.Equal(t, 1, count, "it is counted before it is on the disk")
		n.hints.deps.Shut = func(key []byte) bool { return string(key) == "other" }
		n.hints.Keep(2, 3, []byte("other"), w.Set, w.New)
		time.Sleep(time.Second)
		count, err = n.hints.Count(all, 10)
		require.NoError(t, err)
		require.Equal(t, 1, count)
	})
}
