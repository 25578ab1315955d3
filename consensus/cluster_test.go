package consensus

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

func TestPreferredVoterLeadsAtOnceAfterBootstrap(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		groups := []kv.GroupID{1, 2, 3, 4, 5, 6}
		c.bootstrap(groups...)
		for _, g := range groups {
			n, took := c.awaitLeader(g, 5*time.Second)
			require.Equal(t, c.voters(g)[0], n.id, "group %d", g)
			require.Less(t, took, time.Second)
		}
	})
}

func TestPreferredVoterKeepsAskingUntilTheOthersExist(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		voters := []kv.NodeID{1, 2, 3}
		require.NoError(t, c.nodes[1].store.Bootstrap(1, voters))
		time.Sleep(2500 * time.Millisecond)
		require.Equal(t, kv.NoNode, c.nodes[1].store.Leader(1))
		require.NoError(t, c.nodes[2].store.Bootstrap(1, voters))
		time.Sleep(400 * time.Millisecond)
		require.Equal(t, kv.NodeID(1), c.nodes[1].store.Leader(1))
		require.Equal(t, kv.NodeID(1), c.nodes[2].store.Leader(1))
	})
}

func TestBootstrapIsIdempotentAndRefusesNonsense(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		s := c.nodes[1].store
		require.NoError(t, s.Bootstrap(1, []kv.NodeID{1}))
		require.NoError(t, s.Bootstrap(1, []kv.NodeID{1}))
		require.Error(t, s.Bootstrap(2, []kv.NodeID{2, 3}), "not a voter itself")
		require.Error(t, s.Bootstrap(2, []kv.NodeID{1, 1}))
		require.Error(t, s.Bootstrap(2, nil))
		require.Error(t, s.Bootstrap(0, []kv.NodeID{1}), "no machine for the metadata group")
		require.Equal(t, causal.Position{}, s.Base(2))
		st, ok := s.Status(1)
		require.True(t, ok)
		require.Equal(t, []kv.NodeID{1}, st.Voters)
		_, ok = s.Status(2)
		require.False(t, ok)
	})
}

func TestWriteThenReadOnTheLeader(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		ctx := c.timeout(5 * time.Second)
		put := func(op WriteOp) WriteReply {
			r, err := n.store.Write(ctx, 0, op)
			require.NoError(t, err)
			return r
		}
		first := put(WriteOp{Key: []byte("k"), Value: []byte("v1")})
		require.True(t, first.Applied)
		require.False(t, first.Found)
		require.Equal(t, 2, first.Acks)
		require.Equal(t, first.Revision, first.Stamp.Base.Index)
		require.Equal(t, n.id, first.Stamp.Node)

		missed := put(WriteOp{Key: []byte("k"), Value: []byte("x"), Condition: kv.Condition{Kind: kv.ConditionVersion, Version: first.Revision + 7}})
		require.False(t, missed.Applied)
		require.Equal(t, first.Revision, missed.Revision)

		second := put(WriteOp{Key: []byte("k"), Value: []byte("v2"), Condition: kv.Condition{Kind: kv.ConditionVersion, Version: first.Revision}})
		require.True(t, second.Applied)
		require.True(t, second.Found)
		require.Greater(t, second.Revision, first.Revision)
		require.True(t, second.Stamp.After(first.Stamp))
		s, found, err := c.get(ctx, 0, "k")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "v2", string(s.Value))
		require.Equal(t, second.Revision, s.Revision)
		require.Equal(t, second.Stamp, s.Stamp)

		gone := put(WriteOp{Key: []byte("k"), Delete: true})
		require.True(t, gone.Found)
		_, found, err = c.get(ctx, 0, "k")
		require.NoError(t, err)
		require.False(t, found)
		again := put(WriteOp{Key: []byte("k"), Delete: true})
		require.True(t, again.Applied)
		require.False(t, again.Found)

		require.False(t, put(WriteOp{Key: []byte("k"), Value: []byte("v"), Condition: kv.Condition{Kind: kv.ConditionExists}}).Applied)
		require.True(t, put(WriteOp{Key: []byte("k"), Value: []byte("v3"), Condition: kv.Condition{Kind: kv.ConditionVersion}}).Applied, "a deleted key is at version 0")
	})
}

func TestFollowersRefuseWritesAndNameTheLeader(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		for _, n := range c.nodes {
			if n == leader {
				continue
			}
			ctx := c.timeout(time.Second)
			_, err := n.store.Put(ctx, 0, WriteOp{Key: []byte("k")})
			e := kv.AsError(err)
			require.Equal(t, kv.CodeNoLeader, e.Code)
			require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
			require.ErrorAs(t, err, &ErrNotLeader{})
			require.ErrorIs(t, err, ErrNotLeader{Group: 1, Leader: leader.id})
			require.ErrorIs(t, n.store.ReadBarrier(ctx, 10), ErrNotLeader{Group: 10}, "it holds no replica of it")
			_, err = n.store.Put(ctx, 9, WriteOp{Key: []byte("k")})
			require.ErrorIs(t, err, ErrNotLeader{Group: 10})
		}
	})
}

func TestFollowersReadWhatWasAcknowledgedBefore(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		for i := range 50 {
			_, err := leader.store.Put(c.timeout(time.Second), 0, WriteOp{Key: []byte("k"), Value: []byte(value(i))})
			require.NoError(t, err)
			for _, n := range c.nodes {
				require.NoError(t, n.store.ReadBarrier(c.timeout(time.Second), 1))
				row, _, err := n.strong(n.store, 1, "k")
				require.NoError(t, err)
				require.Equal(t, value(i), string(row.Value), "at node %d, leader %d", n.id, leader.id)
			}
		}
	})
}

func TestFollowersBarrierFailsSoonWithItsLeaderAndWorksWithTheNext(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		follower := c.nodes[c.others(leader.id)[0]]
		require.NoError(t, c.stop(leader.id))
		start := time.Now()
		err := follower.store.ReadBarrier(c.timeout(time.Minute), 1)
		require.ErrorAs(t, err, &ErrNotLeader{}, "it waits no longer than the follower believes in the dead leader")
		require.Less(t, time.Since(start), 3*time.Second)
		c.awaitLeader(1, 5*time.Second)
		require.NoError(t, follower.store.ReadBarrier(c.timeout(time.Second), 1))
	})
}

func TestNewLeaderWithinThreeSecondsOfALeadersDeath(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		groups := []kv.GroupID{1, 2, 3, 4}
		c.bootstrap(groups...)
		for _, g := range groups {
			c.awaitLeader(g, 5*time.Second)
		}
		victim := c.leader(1)
		ctx := c.timeout(10 * time.Second)
		_, err := c.put(ctx, 0, "k", "before")
		require.NoError(t, err)
		c.powerCut(0, nil, victim)
		start := time.Now()
		for _, g := range groups {
			n, _ := c.awaitLeader(g, 3*time.Second)
			require.NotEqual(t, victim, n.id)
		}
		_, err = c.put(ctx, 0, "k", "after")
		require.NoError(t, err)
		require.Less(t, time.Since(start), 3*time.Second)
		s, found, err := c.get(ctx, 0, "k")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "after", string(s.Value))
	})
}

func TestReplicasHoldTheSameState(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		ctx := c.timeout(20 * time.Second)
		for i := range 100 {
			_, err := c.put(ctx, 0, value(i%17), value(i))
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		want := c.dump(1, c.ids[0])
		require.Len(t, want, 17)
		for _, id := range c.ids[1:] {
			require.Equal(t, want, c.dump(1, id))
		}
	})
}

func TestMetadataGroupUsesItsOwnMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.meta = true
		defer c.close()
		c.startAll()
		c.bootstrap(0)
		n, _ := c.awaitLeader(0, 5*time.Second)
		for i := range 5 {
			res, err := n.store.Propose(c.timeout(time.Second), 0, Proposal{Command: []byte(value(i))})
			require.NoError(t, err)
			require.Equal(t, i+1, res.Reply)
		}
		require.Equal(t, []string{value(0), value(1), value(2), value(3), value(4)}, n.meta.list())
	})
}
