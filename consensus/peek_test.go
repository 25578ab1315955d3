package consensus

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// unsettledBy stands for what the nodes' eventual lanes hold.
type unsettledBy struct {
	mu       sync.Mutex
	holds    map[kv.NodeID]bool
	need     map[kv.NodeID]uint64
	promised map[kv.NodeID]causal.HLC
}

func (u *unsettledBy) of(id kv.NodeID) func(kv.GroupID, causal.HLC) (uint64, bool) {
	return func(_ kv.GroupID, promise causal.HLC) (uint64, bool) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.promised[id] = max(u.promised[id], promise)
		return u.need[id], !u.holds[id]
	}
}

func TestBarrierSaysWhetherAMajorityHoldsUnsettledVersions(t *testing.T) {
	u := &unsettledBy{holds: map[kv.NodeID]bool{}, need: map[kv.NodeID]uint64{}, promised: map[kv.NodeID]causal.HLC{}}
	peeking(t, u, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		_, err := leader.store.Put(c.timeout(time.Second), 0, WriteOp{Key: []byte("k"), Value: []byte("v")})
		require.NoError(t, err)
		time.Sleep(time.Second)
		others := c.others(leader.id)
		hold := func(ids ...kv.NodeID) {
			u.mu.Lock()
			defer u.mu.Unlock()
			clear(u.holds)
			for _, id := range ids {
				u.holds[id] = true
			}
		}
		for _, n := range c.nodes {
			hold()
			p, err := n.store.Peek(c.timeout(time.Second), 1, false)
			require.NoError(t, err)
			require.Equal(t, Peeked{Clean: true}, p, "node %d, leader %d", n.id, leader.id)
			hold(leader.id, others[0])
			p, err = n.store.Peek(c.timeout(time.Second), 1, false)
			require.NoError(t, err)
			require.False(t, p.Clean, "node %d, leader %d", n.id, leader.id)
		}

		hold()
		var p Peeked
		for range 3 { // the first may find that the clock has to ask the disk
			var err error
			p, err = leader.store.Peek(c.timeout(time.Second), 1, true)
			require.NoError(t, err)
			time.Sleep(time.Millisecond)
		}
		require.NotZero(t, p.Promised)
		promised := 0
		for _, id := range c.ids {
			u.mu.Lock()
			if u.promised[id] >= p.Promised {
				promised++
			}
			u.mu.Unlock()
		}
		require.GreaterOrEqual(t, promised, 2, "a majority")
	})
}

// What a replica without versions answers depends on a state that the reader must have.
func TestBarrierWaitsForTheStateThatAnAnswerDependsOn(t *testing.T) {
	u := &unsettledBy{holds: map[kv.NodeID]bool{}, need: map[kv.NodeID]uint64{}, promised: map[kv.NodeID]causal.HLC{}}
	peeking(t, u, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		u.mu.Lock()
		for _, id := range c.ids {
			u.need[id] = leader.store.Applied(1) + 1
		}
		u.mu.Unlock()
		read := make(chan error, 1)
		go func() {
			_, err := leader.store.Peek(c.timeout(5*time.Second), 1, false)
			read <- err
		}()
		time.Sleep(time.Second)
		require.Empty(t, read)
		_, err := leader.store.Put(c.timeout(time.Second), 0, WriteOp{Key: []byte("k"), Value: []byte("v")})
		require.NoError(t, err)
		require.NoError(t, <-read)
	})
}

// A fence stands from the append on, on every replica that has it, and is gone with an entry that is replaced.
func TestAppendedWritesFenceTheirKeysUntilTheyAreReplaced(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		key := []byte("k")
		before := leader.store.Base(1)
		c.net.isolate(leader.id, c.others(leader.id), true)
		go func() {
			_, _ = leader.store.Put(c.timeout(500*time.Millisecond), 0, WriteOp{Key: key, Value: []byte("lost")})
		}()
		time.Sleep(100 * time.Millisecond)
		fence := leader.store.Fence(1, key)
		require.Equal(t, before.Index+1, fence.Base.Index)
		require.Equal(t, fence.Base, leader.store.Base(1), "its term has committed something")
		time.Sleep(5 * time.Second)
		next, _ := c.awaitLeader(1, 5*time.Second)
		require.NotEqual(t, leader.id, next.id)
		_, err := next.store.Put(c.timeout(time.Second), 0, WriteOp{Key: []byte("other"), Value: []byte("v")})
		require.NoError(t, err)
		c.net.isolate(leader.id, c.others(leader.id), false)
		time.Sleep(5 * time.Second)
		require.NotEqual(t, fence, leader.store.Fence(1, key), "what was replaced fences nothing")
		require.Positive(t, leader.store.Base(1).Compare(fence.Base))
	})
}
