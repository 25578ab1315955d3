package storage

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// oneSibling is a set with one version, written by node at time.
func oneSibling(node kv.NodeID, time causal.HLC, value string) causal.SiblingSet {
	d := causal.Dot{Node: node, Time: time}
	return causal.SiblingSet{}.Put(causal.Sibling{
		ID: d, Dot: d, Stamp: causal.Stamp{Time: time, Node: node}, Value: []byte(value),
	}, nil)
}

func TestStrongAndSiblingsAreTheCallersOwn(t *testing.T) {
	e := openMem(t)
	k := []byte("k")
	write(t, e, func(b *Batch) {
		b.SetStrong(1, k, Strong{Value: []byte("strong"), Covered: []causal.Dot{{Node: 1, Time: 2}}})
		b.SetSiblings(0, k, oneSibling(1, 2, "sibling"))
	})
	for range 2 {
		s, _, err := e.State().Strong(1, k)
		require.NoError(t, err)
		require.Equal(t, "strong", string(s.Value))
		set, _, err := e.State().Siblings(0, k)
		require.NoError(t, err)
		require.Equal(t, "sibling", string(set.Siblings[0].Value))
		copy(s.Value, "XXXXXX")
		copy(set.Siblings[0].Value, "XXXXXXX")
		s, _, set, _, err = e.State().Both(0, k)
		require.NoError(t, err)
		require.Equal(t, "strong", string(s.Value))
		require.Equal(t, "sibling", string(set.Siblings[0].Value))
		copy(s.Value, "XXXXXX")
		copy(set.Siblings[0].Value, "XXXXXXX")
	}
}

func TestTombstonesAreFoundAndDeletedRowsAreNot(t *testing.T) {
	e := openMem(t)
	k := []byte("k")
	write(t, e, func(b *Batch) {
		b.SetStrong(1, k, Strong{Deleted: true, Revision: 4})
		b.SetSiblings(0, k, causal.SiblingSet{Context: causal.Vector{{Node: 1, Time: 2}}})
		b.SetDedup(1, k, []byte("r"))
		b.SetMetaValue("k", []byte("m"))
	})
	s, found, err := e.State().Strong(1, k)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, Strong{Deleted: true, Revision: 4}, s)
	set, found, err := e.State().Siblings(0, k)
	require.NoError(t, err)
	require.True(t, found)
	require.Empty(t, set.Siblings)
	require.Len(t, set.Context, 1)
	write(t, e, func(b *Batch) {
		removeStrong(b, 1, k)
		b.DeleteSiblings(0, k)
		b.DeleteDedup(1, k)
	})
	_, hasS, _, hasE, err := e.State().Both(0, k)
	require.NoError(t, err)
	require.False(t, hasS || hasE)
	_, found, err = e.State().Dedup(1, k)
	require.NoError(t, err)
	require.False(t, found)
	_, found, err = e.State().MetaValue("k")
	require.NoError(t, err)
	require.True(t, found)
}

// removeStrong has a batch remove the strong lane's state of a key, as if it had never been written.
func removeStrong(b *Batch, g kv.GroupID, key []byte) {
	b.key = appendStateKey(b.key[:0], g, key)
	b.remove()
}

// TestBothSeesOneView moves a value from E to S and back, always in one batch, while Both reads. A view that mixed two
// batches would find it in neither or in both.
func TestBothSeesOneView(t *testing.T) {
	e := openMem(t)
	k := []byte("k")
	set := oneSibling(1, 2, "v")
	write(t, e, func(b *Batch) { b.SetSiblings(0, k, set) })
	const readsMin, movesMin, movesMax = 300, 300, 200_000
	var wg sync.WaitGroup
	var moves, reads atomic.Int64
	wg.Go(func() {
		for i := range movesMax {
			if i >= movesMin && reads.Load() >= readsMin {
				break
			}
			b := e.NewBatch()
			if i%2 == 0 {
				b.SetStrong(1, k, Strong{Value: []byte("v")})
				b.DeleteSiblings(0, k)
			} else {
				removeStrong(b, 1, k)
				b.SetSiblings(0, k, set)
			}
			if err := e.ApplyNoSync(b); err != nil {
				t.Error(err)
			}
			b.Close()
			moves.Add(1)
		}
	})
	for reads.Load() < readsMin || moves.Load() < movesMin {
		_, hasS, _, hasE, err := e.State().Both(0, k)
		require.NoError(t, err)
		require.NotEqual(t, hasS, hasE, "read %d, move %d", reads.Load(), moves.Load())
		reads.Add(1)
	}
	wg.Wait()
}

func TestScansVisitOneOwnerInOrderFromAKeyOn(t *testing.T) {
	e := openMem(t)
	keys := []string{"", "\x00", "a", "a\x00", "ab", "b", "\xff", "\xff\xff"}
	write(t, e, func(b *Batch) {
		for _, k := range keys {
			for owner := range kv.PartitionID(3) {
				b.SetStrong(owner.Group(), []byte(k), Strong{Value: fmt.Appendf(nil, "%d/%s", owner, k)})
				b.SetSiblings(owner, []byte(k), oneSibling(1, 2, fmt.Sprintf("%d/%s", owner, k)))
			}
		}
		b.SetDedup(2, []byte("op"), nil)
		b.AppendEntry(3, LogEntry{Index: 1})
	})
	for i, from := range keys {
		var strong, eventual []string
		require.NoError(t, e.State().ScanStrong(2, []byte(from), func(key []byte, s Strong) (bool, error) {
			require.Equal(t, "1/"+string(key), string(s.Value))
			strong = append(strong, string(key))
			return true, nil
		}))
		require.NoError(t, e.State().ScanSiblings(1, []byte(from), func(key []byte, set causal.SiblingSet) (bool, error) {
			require.Equal(t, "1/"+string(key), string(set.Siblings[0].Value))
			eventual = append(eventual, string(key))
			return true, nil
		}))
		require.Equal(t, keys[i:], strong)
		require.Equal(t, keys[i:], eventual)
	}
	require.NoError(t, e.State().ScanStrong(9, nil, func([]byte, Strong) (bool, error) {
		t.Error("a group without keys has one")
		return true, nil
	}))
}

func TestScansStopWhenToldTo(t *testing.T) {
	e := openMem(t)
	write(t, e, func(b *Batch) {
		for i := range 10 {
			b.SetStrong(1, []byte{byte(i)}, Strong{})
		}
	})
	seen := 0
	require.NoError(t, e.State().ScanStrong(1, nil, func([]byte, Strong) (bool, error) {
		seen++
		return seen < 3, nil
	}))
	require.Equal(t, 3, seen)
	errStop := errors.New("stop")
	require.ErrorIs(t, e.State().ScanStrong(1, nil, func([]byte, Strong) (bool, error) { return true, errStop }), errStop)
}

func TestScannedKeysAndValuesMayBeKept(t *testing.T) {
	e := openMem(t)
	write(t, e, func(b *Batch) {
		for i := range 500 {
			b.SetStrong(1, fmt.Appendf(nil, "%04d", i), Strong{Value: fmt.Appendf(nil, "value %04d", i)})
		}
	})
	require.NoError(t, e.db.Flush())
	kept := map[string]string{}
	var keys, values [][]byte
	require.NoError(t, e.State().ScanStrong(1, nil, func(key []byte, s Strong) (bool, error) {
		keys, values = append(keys, key), append(values, s.Value)
		return true, nil
	}))
	for i := range keys {
		kept[string(keys[i])] = string(values[i])
	}
	require.Len(t, kept, 500)
	for k, v := range kept {
		require.Equal(t, "value "+k, v)
	}
}

// TestStateEqualsItsDumbTwin applies random batches to the engine and to two maps.
func TestStateEqualsItsDumbTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, err := OpenInMemory()
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		strong, eventual := map[string]Strong{}, map[string]causal.SiblingSet{}
		for batch := range rapid.IntRange(1, 5).Draw(t, "batches") {
			applyRandomChanges(t, e, causal.HLC(100*batch), strong, eventual)
			compareState(t, e, strong, eventual)
		}
	})
}

func applyRandomChanges(
	t *rapid.T, e *Engine, now causal.HLC, strong map[string]Strong, eventual map[string]causal.SiblingSet,
) {
	b := e.NewBatch()
	defer b.Close()
	for range rapid.IntRange(1, 6).Draw(t, "changes") {
		k := rapid.StringOfN(rapid.RuneFrom([]rune{'a', 'b', 0}), 0, 3, -1).Draw(t, "key")
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 0:
			strong[k] = genStrong(t)
			b.SetStrong(5, []byte(k), strong[k])
		case 1:
			delete(strong, k)
			removeStrong(b, 5, []byte(k))
		case 2:
			now++
			d := causal.Dot{Node: kv.NodeID(now), Time: now}
			eventual[k] = eventual[k].Put(causal.Sibling{ID: d, Dot: d, Stamp: genStamp(t), Value: []byte(k)}, nil)
			b.SetSiblings(4, []byte(k), eventual[k])
		case 3:
			delete(eventual, k)
			b.DeleteSiblings(4, []byte(k))
		}
	}
	require.NoError(t, e.ApplyNoSync(b))
}

func compareState(t *rapid.T, e *Engine, strong map[string]Strong, eventual map[string]causal.SiblingSet) {
	seen := 0
	require.NoError(t, e.State().ScanStrong(5, nil, func(key []byte, s Strong) (bool, error) {
		seen++
		require.Equal(t, strong[string(key)], s)
		return true, nil
	}))
	require.Equal(t, len(strong), seen)
	seen = 0
	require.NoError(t, e.State().ScanSiblings(4, nil, func(key []byte, set causal.SiblingSet) (bool, error) {
		seen++
		require.True(t, eventual[string(key)].Equal(set))
		return true, nil
	}))
	require.Equal(t, len(eventual), seen)
	for _, k := range append(slices.Collect(maps.Keys(strong)), slices.Collect(maps.Keys(eventual))...) {
		s, hasS, set, hasE, err := e.State().Both(4, []byte(k))
		require.NoError(t, err)
		wantS, wantHasS := strong[k]
		wantE, wantHasE := eventual[k]
		require.Equal(t, wantHasS, hasS)
		require.Equal(t, wantHasE, hasE)
		require.True(t, bytes.Equal(wantS.Value, s.Value) && wantE.Equal(set))
	}
}
