package quorum

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// atMark sets the replica's promise and watermark, in milliseconds.
func atMark(t *testing.T, n *testNode, promised, committed int64) {
	t.Helper()
	require.NoError(t, n.engine.ChangeRepair(3, func(r *storage.RepairState) {
		r.Promised, r.Committed = causal.MakeHLC(promised, 0), causal.MakeHLC(committed, 0)
	}))
}

// tombstone makes a repair that brings a tombstone.
func tombstone(key string, node kv.NodeID, ms int64, base causal.Position) WriteRequest {
	w := arriving(key, node, ms, "")
	w.New = causal.Dot{}
	w.Set.Siblings[0].Deleted, w.Set.Siblings[0].Value, w.Set.Siblings[0].Stamp.Base = true, nil, base
	return w
}

func accepted(t *testing.T, n *testNode, w WriteRequest) {
	t.Helper()
	got := <-writeAsync(n.store, w)
	require.NoError(t, got.err)
	require.True(t, got.reply.Accepted)
}

func collect(n *testNode, key string, applied uint64) bool {
	ch := make(chan bool, 1)
	n.store.Collect(3, []byte(key), applied, func(gone bool, err error) { ch <- gone && err == nil })
	return <-ch
}

func TestAttemptFromBeforeThePromiseIsRefusedAndStampedAnew(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		now := time.Now().UnixMilli()
		atMark(t, c.nodes[1], now-1000, 0)
		got := <-writeAsync(c.nodes[1].store, arriving("k", 2, now-1000, "v"))
		require.NoError(t, got.err)
		require.False(t, got.reply.Accepted)
		require.GreaterOrEqual(t, got.reply.Highest.Time, causal.MakeHLC(now-1000, 0), "the next attempt must be above the promise")
		accepted(t, c.nodes[1], arriving("k", 2, now-999, "v"))
		repair := arriving("old", 2, now-5000, "v")
		repair.New = causal.Dot{}
		accepted(t, c.nodes[1], repair)
		require.Len(t, c.nodes[1].held("old").Siblings, 1, "repairs pass the promise")
		_, err := c.put(1, "new", "v", nil, 3)
		require.NoError(t, err)
	})
}

func TestLateVersionFromBeforeTheWatermarkIsDiscarded(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, now := c.nodes[1], time.Now().UnixMilli()
		held := arriving("held", 2, now-5000, "v")
		held.New = causal.Dot{}
		accepted(t, n, held)
		atMark(t, n, now-1000, now-1000)
		late := arriving("k", 2, now-2000, "v")
		late.New = causal.Dot{}
		accepted(t, n, late)
		require.True(t, n.held("k").IsZero(), "nothing is kept of it")
		accepted(t, n, held)
		require.Len(t, n.held("held").Siblings, 1, "what is held stays")

		// A new version that comes along with an old one is taken.
		both := arriving("k", 3, now, "new")
		both.Set = causal.Merge(both.Set, late.Set)
		both.New = causal.Dot{}
		accepted(t, n, both)
		require.Len(t, n.held("k").Siblings, 1)
		require.Equal(t, "new", string(n.held("k").Siblings[0].Value))

		// A replica that has lost rows takes old versions from who has not.
		require.NoError(t, n.engine.BeginHealing(3))
		lost := arriving("lost", 2, now-3000, "v")
		lost.New = causal.Dot{}
		accepted(t, n, lost)
		require.True(t, n.held("lost").IsZero(), "not from anybody")
		done := make(chan error, 1)
		n.store.Heal(lost, func(_ WriteReply, err error) { done <- err })
		require.NoError(t, <-done)
		require.Len(t, n.held("lost").Siblings, 1)
		n.store.Renounce(3, []byte("lost"), causal.SiblingSet{}, causal.MakeHLC(now-1000, 0), func(err error) { done <- err })
		require.NoError(t, <-done)
		require.True(t, n.held("lost").IsZero())
	})
}

func TestOnlyWhatNobodyNeedsIsCollected(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, now := c.nodes[1], time.Now().UnixMilli()
		base := causal.Position{Term: 1, Index: 9}
		accepted(t, n, tombstone("old", 2, now-5000, base))
		accepted(t, n, tombstone("new", 2, now-500, base))
		accepted(t, n, tombstone("live below", 2, now-5000, base))
		value := arriving("value", 2, now-5000, "v")
		value.New = causal.Dot{}
		accepted(t, n, value)
		b := n.engine.NewBatch()
		b.SetStrong(kv.PartitionID(3).Group(), []byte("live below"), storage.Strong{Value: []byte("s"), Revision: 5, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 5}}})
		require.NoError(t, n.engine.ApplySync(b))
		b.Close()

		require.False(t, collect(n, "old", 9), "no watermark yet")
		atMark(t, n, now-1000, now-1000)
		require.False(t, collect(n, "old", 8), "a strong write below the tombstone may not be applied yet")
		require.False(t, collect(n, "new", 9))
		require.False(t, collect(n, "value", 9))
		require.False(t, collect(n, "live below", 9), "the tombstone hides a value of the strong lane")
		require.NoError(t, n.engine.BeginHealing(3))
		require.False(t, collect(n, "old", 9), "a replica that heals collects nothing")
		require.NoError(t, n.engine.ChangeRepair(3, func(r *storage.RepairState) { r.Healing = false }))
		require.True(t, collect(n, "old", 9))
		require.True(t, n.held("old").IsZero())
		_, found, err := n.engine.State().Siblings(3, []byte("old"))
		require.NoError(t, err)
		require.False(t, found)
		require.Empty(t, n.entries())
	})
}

func TestFlushWaitsForAllThatWasAccepted(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		write := writeAsync(n.store, arriving("k", 2, time.Now().UnixMilli(), "v"))
		flushed := make(chan error, 1)
		go func() { flushed <- n.store.Flush(t.Context(), 3) }()
		other := make(chan error, 1)
		go func() { other <- n.store.Flush(t.Context(), 4) }()
		synctest.Wait()
		require.NoError(t, <-other, "another partition waits for nothing")
		require.Empty(t, flushed)
		require.NoError(t, <-flushed)
		require.Len(t, write, 1, "the write was acknowledged by then")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = writeAsync(n.store, arriving("k", 2, time.Now().UnixMilli()+1, "v"))
		require.ErrorIs(t, n.store.Flush(ctx, 3), context.Canceled)
		time.Sleep(time.Second)
	})
}

func TestReplicaThatLostRowsStampsNothingBesideSiblings(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		require.NoError(t, c.nodes[1].engine.BeginHealing(3))
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err, "the last writer wins over whatever was lost")
		require.ElementsMatch(t, []kv.NodeID{2, 3}, res.Replicas)
		c.keeps = true
		_, err = c.put(1, "k", "v", nil, 1)
		require.Equal(t, kv.CodeNotReady, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		require.NoError(t, c.nodes[1].engine.ChangeRepair(3, func(r *storage.RepairState) { r.Quarantined = true }))
		_, err = c.nodes[1].store.Read(ReadRequest{Partition: 3, Key: []byte("k")})
		require.Equal(t, kv.CodeNotReady, kv.CodeOf(err))
	})
}

// What the strong lane dropped at one replica vanishes at another that has not applied as much. Only the mark says so, and it
// stays until the strong lane has arrived there.
func TestWhatTheStrongLaneDroppedSaysSoUntilItHasArrived(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *cluster) {
		ahead, behind, now := c.nodes[1], c.nodes[2], time.Now().UnixMilli()
		dropped := arriving("k", 2, now-5000, "v")
		dropped.New = causal.Dot{}
		accepted(t, behind, dropped)
		strong := storage.Strong{Value: []byte("s"), Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 9}}}
		apply := func(n *testNode) {
			b := n.engine.NewBatch()
			b.SetStrong(kv.PartitionID(3).Group(), []byte("k"), strong)
			require.NoError(t, n.engine.ApplySync(b))
			b.Close()
		}
		apply(ahead)
		accepted(t, ahead, dropped)
		set := ahead.held("k")
		require.Empty(t, set.Siblings)
		require.EqualValues(t, 9, set.Pruned)

		repair := WriteRequest{Partition: 3, Key: []byte("k"), Set: set}
		accepted(t, behind, repair)
		require.Empty(t, behind.held("k").Siblings)
		require.EqualValues(t, 9, behind.held("k").Pruned)
		atMark(t, behind, now-1000, now-1000)
		require.False(t, collect(behind, "k", 8), "a reader of this replica has to learn that it lacks a version")
		require.True(t, collect(behind, "k", 9))
		accepted(t, behind, repair)
		require.EqualValues(t, 9, behind.held("k").Pruned, "it is taken while the state is not here")
		require.True(t, collect(behind, "k", 9))
		apply(behind)
		accepted(t, behind, repair)
		require.True(t, behind.held("k").IsZero(), "it is of no use any more")
	})
}
