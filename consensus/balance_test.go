package consensus

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestLeadersReturnToTheirPreferredVoterOneByOne(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		groups := []kv.GroupID{1, 2, 3, 4, 5, 6}
		c.bootstrap(groups...)
		for _, g := range groups {
			c.awaitLeader(g, 5*time.Second)
		}
		n := c.nodes[1]
		n.store.TransferAll(c.timeout(10 * time.Second))
		for _, g := range groups {
			require.NotEqual(t, n.id, c.leader(g), "group %d", g)
		}
		w := c.startWriters(2, 0, 20*time.Millisecond, groups...)
		time.Sleep(29 * time.Second)
		for _, g := range groups {
			require.NotEqual(t, n.id, c.leader(g), "group %d came back before its new leader had led for a while", g)
		}
		returned := func() (count int) {
			for _, g := range groups {
				if c.voters(g)[0] == n.id && c.leader(g) == n.id {
					count++
				}
			}
			return count
		}
		time.Sleep(11 * time.Second)
		require.Equal(t, 2, returned(), "both groups that this node is preferred for")
		c.requireAll(w.end())
	})
}

func TestNoLeaderGoesToAReplicaThatDoesNotKeepUp(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		home, _ := c.awaitLeader(1, 5*time.Second)
		home.store.TransferAll(c.timeout(10 * time.Second))
		away, _ := c.awaitLeader(1, 5*time.Second)
		require.NotEqual(t, home.id, away.id)
		require.NoError(t, c.stop(home.id))
		time.Sleep(2 * time.Minute)
		require.Equal(t, away.id, c.leader(1))
		c.start(home.id)
		time.Sleep(10 * time.Second)
		require.Equal(t, home.id, c.leader(1), "it is back and keeps up")
	})
}

func TestNoLeaderGoesToANodeThatShouldNotLead(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		home, _ := c.awaitLeader(1, 5*time.Second)
		c.shunned.Store(home.id, true)
		c.shunned.Store(c.others(home.id)[0], true)
		home.store.TransferAll(c.timeout(10 * time.Second))
		next, _ := c.awaitLeader(1, 5*time.Second)
		require.Equal(t, c.others(home.id)[1], next.id, "the one that may lead")
		time.Sleep(2 * time.Minute)
		require.Equal(t, c.others(home.id)[1], c.leader(1))
		c.shunned.Delete(home.id)
		time.Sleep(time.Minute)
		require.Equal(t, home.id, c.leader(1))
	})
}

func TestTwoWhoDrainAtOnceBothWaitUntilNothingIsLed(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1, 2, 3, 4)
		for g := range kv.GroupID(4) {
			c.awaitLeader(g+1, 5*time.Second)
		}
		n := c.nodes[1]
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				n.store.TransferAll(c.timeout(10 * time.Second))
				for g := range kv.GroupID(4) {
					if n.store.Leader(g+1) == n.id {
						t.Errorf("it still leads group %d", g+1)
					}
				}
			})
		}
		both.Wait()
	})
}
