package consensus

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A leader that is cut off does not know it before it steps down. It must not keep reads and new writes waiting for that.
func TestLeaderOutOfTouchRefusesReadsAndNewWritesSoon(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		old, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		silence, ok := old.store.Silence(1)
		require.True(t, ok)
		require.LessOrEqual(t, silence, 300*time.Millisecond, "a group that works is never silent for longer than a heartbeat")

		c.net.isolate(old.id, c.others(old.id), true)
		start := time.Now()
		err := old.store.ReadBarrier(c.timeout(10*time.Second), 1)
		require.Equal(t, kv.CodeNoLeader, kv.CodeOf(err))
		require.Less(t, time.Since(start), 800*time.Millisecond, "the read that was under way")

		start = time.Now()
		_, err = old.store.Put(c.timeout(10*time.Second), 0, WriteOp{Key: []byte("k"), Value: []byte("x")})
		require.Equal(t, kv.CodeNoLeader, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		require.Less(t, time.Since(start), 10*time.Millisecond, "a new write")

		time.Sleep(5 * time.Second)
		c.net.isolate(old.id, c.others(old.id), false)
		time.Sleep(3 * time.Second)
		require.NoError(t, old.store.ReadBarrier(c.timeout(time.Second), 1), "a follower again, and in touch")
	})
}

func TestFollowerOutOfTouchRefusesReadsSoon(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		follower := c.others(leader.id)[0]
		c.net.isolate(follower, []kv.NodeID{leader.id, c.others(leader.id)[1]}, true)
		n := c.nodes[follower]
		start := time.Now()
		err := n.store.ReadBarrier(c.timeout(10*time.Second), 1)
		require.Equal(t, kv.CodeNoLeader, kv.CodeOf(err))
		require.Less(t, time.Since(start), 800*time.Millisecond)
		time.Sleep(10 * time.Second)
		silence, _ := n.store.Silence(1)
		require.Greater(t, silence, 10*time.Second, "elections that fail do not end a silence")
	})
}

// A group with a single voter hears of nobody, and needs nobody.
func TestSingleVoterIsNeverSilent(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(10 * time.Second)
		silence, _ := n.store.Silence(1)
		require.Zero(t, silence)
	})
}
