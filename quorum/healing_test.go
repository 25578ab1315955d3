package quorum

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// requireUncounted checks that a request failed because a replica has lost rows, and says so, whatever else has failed.
func requireUncounted(t *testing.T, err error, outcome kv.Outcome) {
	t.Helper()
	require.ErrorIs(t, err, errLost)
	require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
	require.Equal(t, outcome, kv.AsError(err).Outcome)
	require.True(t, kv.AsError(err).Retryable)
}

func TestReplicaThatHealsStoresAndCountsForNothing(t *testing.T) {
	for _, healing := range []kv.NodeID{1, 2} { // the coordinator itself, and another one
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			_, err := c.put(1, "before", "v", nil, 3)
			require.NoError(t, err)
			require.NoError(t, c.nodes[healing].engine.BeginHealing(3))

			res, err := c.put(1, "k", "v", nil, 2)
			require.NoError(t, err)
			require.Equal(t, 2, res.Acks)
			require.NotContains(t, res.Replicas, healing)
			synctest.Wait()
			require.Equal(t, []string{"v"}, values(c.nodes[healing].held("k")), "it stores what it is sent")
			_, err = c.put(1, "k", "all", nil, 3)
			requireUncounted(t, err, kv.OutcomeUnknown)

			for _, at := range []kv.NodeID{1, 2, 3} {
				for r := range 2 {
					res, err = c.get(at, "before", r+1)
					require.NoError(t, err)
					require.Equal(t, "v", string(res.Value))
					require.NotContains(t, res.Replicas, healing)
				}
				_, err = c.get(at, "before", 3)
				requireUncounted(t, err, kv.OutcomeNotApplied)
			}
			c.kill(3)
			_, err = c.get(1, "before", 2)
			requireUncounted(t, err, kv.OutcomeNotApplied)
			_, err = c.put(1, "k", "late", nil, 2)
			requireUncounted(t, err, kv.OutcomeUnknown)
			list := &kv.Request{Op: kv.OpList, Level: kv.LevelEventual, List: &kv.ListQuery{Limit: 10}}
			_, err = c.do(1, time.Second, list, kv.Quorum{R: 2})
			requireUncounted(t, err, kv.OutcomeNotApplied)

			res, err = c.do(healing, time.Second, &kv.Request{Op: kv.OpGet, Level: kv.LevelLocal, Key: []byte("before")}, kv.Quorum{})
			require.NoError(t, err, "level local asks for what this replica has")
			require.Equal(t, "v", string(res.Value))

			done, err := c.nodes[healing].engine.EndHealing(3, c.nodes[healing].engine.Losses(3))
			require.NoError(t, err)
			require.True(t, done)
			res, err = c.put(1, "k", "healed", nil, 2)
			require.NoError(t, err)
			require.Contains(t, res.Replicas, healing)
			_, err = c.get(1, "k", 2)
			require.NoError(t, err)
		})
	}
}

// What the replica lost may be what it would have refused the attempt for.
func TestReplicaThatHealsDoesNotAcknowledgeBelowWhatItForgot(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		now := time.Now().UnixMilli()
		n := c.nodes[2]
		require.NoError(t, n.engine.BeginHealing(3))
		for _, again := range []bool{false, true} {
			got := <-writeAsync(n.store, arriving("k", 1, now, "v"))
			require.NoError(t, got.err)
			require.Equal(t, WriteReply{Accepted: true, Healing: true}, got.reply, "repeated: %t", again)
		}
	})
}

// A sloppy write turns to a node beyond the replicas for one that does not count, as for one that is down.
func TestSloppyWriteTurnsAwayFromAReplicaThatHeals(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, c *cluster) {
		c.spare = 1
		require.NoError(t, c.nodes[2].engine.BeginHealing(3))
		c.kill(3)
		r := &kv.Request{Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte("k"), Value: []byte("v"), Sloppy: true}
		res, err := c.do(1, time.Second, r, kv.Quorum{W: 2})
		require.NoError(t, err)
		require.Equal(t, 1, res.Hinted)
		require.Equal(t, []kv.NodeID{1}, res.Replicas)
	})
}
