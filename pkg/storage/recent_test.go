package storage

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// openRecent opens an engine with a cache large enough that rows are kept.
func openRecent(t *testing.T) *Engine {
	t.Helper()
	e, err := OpenInMemory()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// numbered returns a set that tells which write it is from.
func numbered(n int) causal.SiblingSet {
	return causal.SiblingSet{}.Put(causal.Sibling{
		Dot: causal.Dot{Node: 1, Time: causal.HLC(n)}, Value: fmt.Appendf(nil, "value %d", n),
	}, nil)
}

// onDisk returns what Pebble has of the key.
func onDisk(t *testing.T, e *Engine, p kv.PartitionID, key []byte) (set causal.SiblingSet, found bool) {
	t.Helper()
	_, _, set, found, err := e.State().Both(p, key)
	require.NoError(t, err)
	return set, found
}

func TestWhatIsKeptOfRowsIsWhatPebbleHas(t *testing.T) {
	e := openRecent(t)
	keys := make([][]byte, 40)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "k%d", i)
	}
	// Several batches at a time change the same keys, and readers fill in what they read meanwhile.
	var running sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		running.Go(func() {
			for n := range 1500 {
				key := keys[rng.IntN(len(keys))]
				if w%2 == 0 {
					if _, _, err := e.State().Siblings(3, key); err != nil {
						t.Error(err)
					}
					continue
				}
				b := e.NewBatch()
				for range 1 + rng.IntN(3) {
					if rng.IntN(8) == 0 {
						b.DeleteSiblings(3, key)
					} else {
						b.SetSiblings(3, key, numbered(4*n+w+1))
					}
				}
				if err := e.ApplyNoSync(b); err != nil {
					t.Error(err)
				}
				b.Close()
			}
		})
	}
	running.Wait()
	for _, key := range keys {
		want, wantFound := onDisk(t, e, 3, key)
		for range 2 {
			got, found, err := e.State().Siblings(3, key)
			require.NoError(t, err)
			require.Equal(t, wantFound, found, "%s", key)
			require.True(t, got.Equal(want), "%s: %+v, on the disk %+v", key, got, want)
		}
	}
	hits, _ := e.recent.counts()
	require.Positive(t, hits)
}

func TestOfBatchesThatAreAppliedTogetherNoneIsTakenForTheNewest(t *testing.T) {
	e := openRecent(t)
	key := []byte("k")
	first, second := e.recent.begin(), e.recent.begin()
	changes := func(n int) []change {
		b := e.NewBatch()
		defer b.Close()
		b.SetSiblings(3, key, numbered(n))
		return append([]change(nil), b.changes...)
	}
	e.recent.end(second, changes(2), true)
	e.recent.end(first, changes(1), true)
	_, found, version := e.recent.get(3, key)
	require.False(t, found)

	// What was read before a batch ended is not kept behind it.
	e.recent.end(e.recent.begin(), changes(3), true)
	e.recent.forget(3)
	e.recent.keep(3, key, causal.AppendSet(nil, numbered(2)), numbered(2), version)
	_, found, _ = e.recent.get(3, key)
	require.False(t, found)

	e.recent.end(e.recent.begin(), changes(4), true)
	set, found, _ := e.recent.get(3, key)
	require.True(t, found)
	require.True(t, set.Equal(numbered(4)))
	e.recent.end(e.recent.begin(), changes(5), false)
	_, found, _ = e.recent.get(3, key)
	require.False(t, found, "a batch that failed may be there or not")
}

func TestAHealingReplicaLooksAtItsDisk(t *testing.T) {
	e := openRecent(t)
	key := []byte("k")
	write(t, e, func(b *Batch) { b.SetSiblings(3, key, numbered(1)) })
	require.NoError(t, e.LoseSiblings(3, false, false, key))
	require.NoError(t, e.BeginHealing(3))
	_, found, err := e.State().Siblings(3, key)
	require.NoError(t, err)
	require.False(t, found)
}

func TestKeptRowsHaveABound(t *testing.T) {
	e := openRecent(t)
	room := e.recent.generationBytes * recentGenerations * recentShards
	for i := range 4 * room / recentRowBytes / 10 {
		write(t, e, func(b *Batch) {
			for j := range 10 {
				b.SetSiblings(kv.PartitionID(j), fmt.Appendf(nil, "k%d", i), numbered(i+1))
			}
		})
	}
	write(t, e, func(b *Batch) {
		s := numbered(1)
		s.Siblings[0].Value = make([]byte, e.recent.generationBytes)
		b.SetSiblings(1, []byte("large"), s)
	})
	size, rows := 0, 0
	for i := range e.recent.shards {
		s := &e.recent.shards[i]
		for id, row := range s.young {
			size += len(id.key) + len(row.row) + recentRowBytes
		}
		require.LessOrEqual(t, s.bytes, e.recent.generationBytes)
		rows += len(s.young) + len(s.old)
	}
	require.LessOrEqual(t, size, room/recentGenerations)
	require.Less(t, rows, room/recentRowBytes)
	_, found, _ := e.recent.get(1, []byte("large"))
	require.False(t, found)
}

// Whoever is served without a goroutine of its own must not have to wait for the disk.
func TestKeyIsAtHandWhileItsSetIsKeptAndTheStrongLaneNeverWroteIt(t *testing.T) {
	e := openRecent(t)
	require.Eventually(t, e.absence.complete.Load, 10*time.Second, time.Millisecond)
	s, key := e.State(), []byte("k")
	change := func(f func(b *Batch)) {
		b := e.NewBatch()
		defer b.Close()
		f(b)
		require.NoError(t, e.ApplyNoSync(b))
	}
	require.False(t, s.AtHand(3, key), "nobody has looked for it")
	change(func(b *Batch) { b.SetSiblings(3, key, numbered(1)) })
	require.True(t, s.AtHand(3, key))
	require.False(t, s.AtHand(4, key), "it is another partition's")
	e.recent.forget(3)
	require.False(t, s.AtHand(3, key))
	_, found, err := s.Siblings(3, key)
	require.NoError(t, err)
	require.True(t, found)
	require.True(t, s.AtHand(3, key), "it was read")
	change(func(b *Batch) { b.SetStrong(kv.PartitionID(3).Group(), key, Strong{Value: []byte("v"), Revision: 7}) })
	require.False(t, s.AtHand(3, key), "the strong lane's state is in Pebble alone")
	hits, misses := e.recent.counts()
	require.EqualValues(t, []uint64{0, 1}, []uint64{hits, misses}, "asking is not looking")
}
