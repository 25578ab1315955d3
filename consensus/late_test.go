package consensus

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/storage"
)

// lateWrite hands the store a write that does not wait for the disk, and returns when reads found it and what became of it.
func lateWrite(t *testing.T, s *Store, key string) (visible chan struct{}, done chan error) {
	t.Helper()
	dot := causal.Dot{Node: 1, Time: 1}
	set := causal.SiblingSet{}.Put(causal.Sibling{ID: dot, Dot: dot, Value: []byte(key)}, nil)
	visible, done = make(chan struct{}, 1), make(chan error, 1)
	require.NoError(t, s.CommitAsync(func(b *storage.Batch) { b.SetSiblings(3, []byte(key), set) },
		func() { visible <- struct{}{} }, func(err error) { done <- err }))
	return visible, done
}

func holds(t *testing.T, n *node, key string) bool {
	t.Helper()
	_, found, err := n.engine.State().Siblings(3, []byte(key))
	require.NoError(t, err)
	return found
}

// Nothing else is written: the sync that makes it durable is its own.
func TestAsyncWriteIsReadAtOnceAndSyncedWithinTheBound(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		n := c.nodes[1]
		time.Sleep(time.Second)
		began := time.Now()
		visible, done := lateWrite(t, n.store, "a")
		<-visible
		require.True(t, holds(t, n, "a"))
		require.Zero(t, time.Since(began))
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(began), c.cfg.LateMax+10*time.Millisecond)
		require.GreaterOrEqual(t, time.Since(began), c.cfg.LateMax)
		c.powerCut(0, nil, 1)
		c.start(1)
		require.True(t, holds(t, c.nodes[1], "a"), "a mark of the log made nothing durable")
	})
}

func TestPowerCutTakesAsyncWritesOfTheLastMomentOnly(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		n := c.nodes[1]
		time.Sleep(time.Second)
		visible, done := lateWrite(t, n.store, "old")
		<-visible
		require.NoError(t, <-done)
		visible, _ = lateWrite(t, n.store, "new")
		<-visible
		require.True(t, holds(t, n, "new"))
		c.powerCut(0, nil, 1)
		c.start(1)
		require.True(t, holds(t, c.nodes[1], "old"))
		require.False(t, holds(t, c.nodes[1], "new"), "it was synced: the test shows nothing")
	})
}

// An empty commit tells its caller that all that was committed before is durable.
func TestWhatIsCommittedLaterIsNotDurableBefore(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		n := c.nodes[1]
		visible, late := lateWrite(t, n.store, "a")
		flushed := make(chan error, 1)
		require.NoError(t, n.store.Commit(func(*storage.Batch) {}, func(err error) { flushed <- err }))
		require.NoError(t, <-flushed)
		<-visible
		c.powerCut(0, nil, 1)
		require.NoError(t, <-late)
		c.start(1)
		require.True(t, holds(t, c.nodes[1], "a"))
	})
}

func TestStopSyncsWhatWasAnswered(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		visible, done := lateWrite(t, c.nodes[1].store, "a")
		<-visible
		require.NoError(t, c.stop(1))
		require.NoError(t, <-done)
	})
}
