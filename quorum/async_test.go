package quorum

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// slowDisks has every sync take the time.
func (c *cluster) slowDisks(d time.Duration) {
	for _, n := range c.nodes {
		n.disk.set(func(disk *testDisk) { disk.sync = d })
	}
}

func TestAsyncWriteIsAcknowledgedBeforeItsSyncAndReadAtOnce(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.slowDisks(300 * time.Millisecond)
		began := time.Now()
		_, err := c.put(1, "async:k", "v", nil, 3)
		require.NoError(t, err)
		require.Less(t, time.Since(began), 10*time.Millisecond)
		for at := range c.nodes {
			res, err := c.get(at, "async:k", 1)
			require.NoError(t, err)
			require.Equal(t, "v", string(res.Value))
		}
		began = time.Now()
		_, err = c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	})
}

// Where versions are kept beside one another a lost one would be taken for replaced, and with it what it replaced.
func TestVersionsKeptBesideOneAnotherAreAlwaysDurable(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowDisks(300 * time.Millisecond)
		began := time.Now()
		_, err := c.put(1, "async:k", "v", nil, 2)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	})
}

// Somebody strikes off what a repair brings once it is acknowledged.
func TestRepairOfAnAsyncKeyIsAcknowledgedWhenItIsDurable(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.mute(1)
		_, err := c.put(1, "async:k", "v", nil, 1)
		require.NoError(t, err)
		c.slowDisks(300 * time.Millisecond)
		began, done := time.Now(), make(chan error, 1)
		w := WriteRequest{Partition: 3, Epoch: 1, Key: []byte("async:k"), Set: c.nodes[1].held("async:k")}
		c.nodes[2].store.Write(w, func(_ WriteReply, err error) { done <- err })
		require.NoError(t, <-done)
		require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	})
}

// A power cut takes an acknowledged write of an async key, whose node then goes on: nothing of its earlier life comes twice, and nothing of
// another key is gone.
func TestPowerCutTakesAsyncWritesAlone(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.mute(1)
		_, err := c.put(1, "sync", "v", nil, 1)
		require.NoError(t, err)
		c.slowDisks(300 * time.Millisecond)
		_, err = c.put(1, "async:k", "lost", nil, 1)
		require.NoError(t, err)
		lost := c.nodes[1].held("async:k").Siblings[0].Dot
		c.powerCut(1)
		res, err := c.get(1, "sync", 1)
		require.NoError(t, err)
		require.Equal(t, "v", string(res.Value))
		res, err = c.get(1, "async:k", 1)
		require.NoError(t, err)
		require.False(t, res.Found, "it was synced: the test shows nothing")
		c.slowLinks(time.Millisecond)
		_, err = c.put(1, "async:k", "next", nil, 2)
		require.NoError(t, err)
		next := c.node(1).held("async:k").Siblings[0].Dot
		require.Equal(t, kv.NodeID(1), next.Node)
		require.Greater(t, next.Time, lost.Time)
		res, err = c.get(2, "async:k", 3)
		require.NoError(t, err)
		require.Equal(t, "next", string(res.Value))
	})
}

// A failed commit of a write that was acknowledged is the disk's failure, and nobody is told twice.
func TestAsyncWriteThatCannotBeMadeVisibleIsRefused(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		c.nodes[1].disk.set(func(d *testDisk) { d.drop = kv.Errorf(kv.CodeOverloaded, "full") })
		_, err := c.put(1, "async:k", "v", nil, 1)
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		c.nodes[1].disk.set(func(d *testDisk) { d.drop, d.refuse = nil, kv.Errorf(kv.CodeOverloaded, "full") })
		_, err = c.put(1, "async:k", "v", nil, 1)
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		c.nodes[1].disk.set(func(d *testDisk) { d.refuse = nil })
		_, err = c.put(1, "async:k", "v", nil, 1)
		require.NoError(t, err)
	})
}
