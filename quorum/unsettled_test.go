package quorum

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func turnedAway(t *testing.T, n *testNode, w WriteRequest, why string) WriteReply {
	t.Helper()
	got := <-writeAsync(n.store, w)
	require.NoError(t, got.err, why)
	require.False(t, got.reply.Accepted, why)
	return got.reply
}

func peek(t *testing.T, n *testNode, key string, promise causal.HLC) ReadReply {
	t.Helper()
	reply, err := n.store.Peek(ReadRequest{Partition: 3, Epoch: 1, Key: []byte(key), Peek: true, Promise: promise})
	require.NoError(t, err)
	return reply
}

// tend lets the replica look after its unsettled keys for a while.
func (n *testNode) tend(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { n.store.Tend(ctx) })
	wg.Wait()
}

// logHas gives the node's replica a log whose last entry, not applied, writes every key.
func (n *testNode) logHas(p causal.Position) {
	n.position.Store(&p)
	n.store.deps.Fence = func(kv.GroupID, []byte) causal.Stamp { return causal.Stamp{Base: p} }
}

func TestAppendedEntryRefusesWhatIsStampedBelowItBeforeItIsApplied(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, now := c.nodes[1], time.Now().UnixMilli()
		n.logHas(causal.Position{Term: 1, Index: 7})
		reply := turnedAway(t, n, arriving("k", 2, now, "v"), "only a version that is based on the entry follows it")
		require.Equal(t, causal.Position{Term: 1, Index: 7}, reply.Highest.Base, "the next attempt has to be above the fence")
		require.Equal(t, causal.Position{Term: 1, Index: 7}, reply.Base, "and may be based on it")
		require.True(t, n.held("k").IsZero())
		above := arriving("k", 2, now, "v")
		above.Set.Siblings[0].Stamp.Base = causal.Position{Term: 1, Index: 7}
		accepted(t, n, above)
	})
}

// A repair may have brought the write before. Acknowledging it for that would acknowledge what the strong write has replaced.
func TestAttemptThatIsHeldAlreadyIsRefusedBelowTheFence(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		repair := w
		repair.New = causal.Dot{}
		accepted(t, n, repair)
		n.logHas(causal.Position{Term: 1, Index: 7})
		turnedAway(t, n, w, "the entry is above it")
		n.strong("k", storage.Strong{
			Value: []byte("s"), Revision: 7, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 7}}, Covered: []causal.Dot{w.New},
		})
		accepted(t, n, w) // by its write id, it has taken effect
	})
}

func TestCoordinatorWaitsForABaseRatherThanGuessIt(t *testing.T) {
	d := &draft{value: []byte("v")}
	v := &versions{fence: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}}}
	dot := causal.Dot{Node: 1, Time: causal.MakeHLC(1000, 0)}
	_, how, err := v.place(d, dot, causal.Position{Term: 1, Index: 5}, LWW{}, 64)
	require.NoError(t, err)
	require.Equal(t, placementBehind, how, "of the fence's term nothing may be based on yet")
	set, how, err := v.place(d, dot, causal.Position{Term: 2, Index: 9}, LWW{}, 64)
	require.NoError(t, err)
	require.Equal(t, placementMade, how)
	require.Equal(t, causal.Position{Term: 2, Index: 9}, set.Siblings[0].Stamp.Base)
}

func TestWriteThatTheStrongLaneTookInIsNotStampedAnew(t *testing.T) {
	id := causal.Dot{Node: 1, Time: causal.MakeHLC(900, 0)}
	v := &versions{hasStrong: true, strong: storage.Strong{Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 5}}, Covered: []causal.Dot{id}}}
	_, how, err := v.place(&draft{id: id}, causal.Dot{Node: 1, Time: causal.MakeHLC(1000, 0)}, causal.Position{Term: 1, Index: 5}, LWW{}, 64)
	require.NoError(t, err)
	require.Equal(t, placementCovered, how)
}

func TestPromiseOfAPeekOutlivesAPowerCut(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, promised := c.nodes[1], time.Now().UnixMilli()+100
		require.Empty(t, peek(t, n, "k", causal.MakeHLC(promised, 0)).Set.Siblings)
		reply := turnedAway(t, n, arriving("k", 2, promised, "v"), "it is stamped at the promise")
		require.GreaterOrEqual(t, reply.Highest.Time, causal.MakeHLC(promised, 0))
		c.powerCut(1)
		n = c.node(1)
		turnedAway(t, n, arriving("k", 2, promised, "v"), "the restart forgot the promise")
		time.Sleep(time.Second)
		accepted(t, n, arriving("k", 2, time.Now().UnixMilli(), "v"))
	})
}

// The promise and the look are one: whatever was accepted before is found, whatever comes after is refused.
func TestAttemptIsEitherFoundByAPeekOrRefusedByItsPromise(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, now := c.nodes[1], time.Now().UnixMilli()
		n.disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		early := writeAsync(n.store, arriving("k", 2, now, "early"))
		require.Len(t, peek(t, n, "k", causal.MakeHLC(now+1, 0)).Set.Siblings, 1, "it is on its way to the disk")
		turnedAway(t, n, arriving("k", 3, now+1, "late"), "promised")
		require.True(t, (<-early).reply.Accepted)
		accepted(t, n, arriving("other", 3, now, "another key's"))
	})
}

func TestPartitionPromisesOnlyWhatItsClockHasPersisted(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.tend(time.Second)
		accepted(t, n, arriving("elsewhere", 2, time.Now().UnixMilli(), "v"))
		_, none := n.store.Unsettled(3, 0)
		require.False(t, none, "it holds a version")
		require.False(t, func() bool { _, none := n.store.Unsettled(3, n.clock.Ceiling()); return none }(), "not durable")
		require.Zero(t, n.store.lanes.of(3).promise.Load(), "what is not kept is not promised")
	})
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.store.lanes.of(3)
		n.tend(time.Second)
		promised := time.Now().UnixMilli()
		_, err := n.clock.Now()
		require.NoError(t, err)
		_, none := n.store.Unsettled(3, causal.MakeHLC(promised, 0))
		require.True(t, none)
		turnedAway(t, n, arriving("any key", 2, promised, "v"), "promised for the whole partition")
		c.powerCut(1)
		turnedAway(t, c.node(1), arriving("any key", 2, promised, "v"), "the restart forgot the promise")
	})
}

func TestReplicaDoesNotKnowWhatIsUnsettledAfterARestartUntilItHasLooked(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		accepted(t, c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v"))
		c.powerCut(1)
		n := c.node(1)
		_, none := n.store.Unsettled(3, 0)
		require.False(t, none, "it has not looked")
		_, none = n.store.Unsettled(4, 0)
		require.False(t, none, "nor elsewhere")
		require.Equal(t, []string{"v"}, values(peek(t, n, "k", 0).Set), "asked for the key, it looks")
		n.tend(time.Second)
		_, none = n.store.Unsettled(3, 0)
		require.False(t, none, "it has found a version")
		_, none = n.store.Unsettled(4, 0)
		require.True(t, none, "it has found nothing")
		require.Equal(t, []string{"v"}, values(peek(t, n, "k", 0).Set))
	})
}

func TestWhatTheStateCoversIsNotUnsettledAndGoes(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n, w := c.nodes[1], arriving("k", 2, time.Now().UnixMilli(), "v")
		n.store.lanes.of(3)
		n.tend(time.Second)
		accepted(t, n, w)
		// The state's stamp is below the version's, which only its write id says to be in there.
		n.strong("k", storage.Strong{Value: []byte("v"), Revision: 7, Covered: []causal.Dot{w.New}})
		reply := peek(t, n, "k", 0)
		require.Empty(t, reply.Set.Siblings)
		require.EqualValues(t, 7, reply.Need, "the reader has to have the state that the answer depends on")
		n.store.Settled(3, [][]byte{[]byte("k")})
		n.tend(2 * time.Second)
		require.Empty(t, n.held("k").Siblings)
		need, none := n.store.Unsettled(3, 0)
		require.True(t, none)
		require.EqualValues(t, 7, need, "nor may the reader of the partition miss it")
	})
}

// Others would merge with it, and write over versions that are there.
func TestAPeekThatCannotReadAKeyDoesNotMakeItEmptyForOthers(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		accepted(t, n, arriving("k", 2, time.Now().UnixMilli(), "v"))
		require.NoError(t, n.engine.LoseSiblings(3, true, false, []byte("k")))
		other, known := n.store.pending.enter(3, []byte("k"))
		defer n.store.close(other)
		require.False(t, known)
		_, err := n.store.Peek(ReadRequest{Partition: 3, Epoch: 1, Key: []byte("k"), Peek: true})
		require.ErrorIs(t, err, storage.ErrCorruption)
		require.False(t, other.loaded)
	})
}

// The store loop tells of every write of the strong lane. Where nothing is unsettled there is nothing to look for.
func TestWritesOfAPartitionWithoutUnsettledKeysHaveNothingPruned(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.store.lanes.of(3)
		n.tend(time.Second)
		key := []byte("k")
		n.store.Settled(3, [][]byte{key, []byte("other")})
		require.Empty(t, n.store.prunes)
		accepted(t, n, arriving("k", 2, time.Now().UnixMilli(), "v"))
		n.store.Settled(3, [][]byte{[]byte("other"), key})
		require.Len(t, n.store.prunes, 1)
		key[0] = 'x' // it was only lent
		require.Equal(t, "k", string((<-n.store.prunes).key))
	})
}

func TestLaneOfAPartitionIsTheSameToAll(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		const askers, partitions = 8, 32
		var got [askers][partitions]*lane
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() {
				for p := range got[i] {
					got[i][p] = n.store.lanes.of(kv.PartitionID(p))
				}
			})
		}
		wg.Wait()
		for i := range got {
			require.True(t, got[0] == got[i])
		}
		require.Len(t, n.store.lanes.known(), partitions)
	})
}
