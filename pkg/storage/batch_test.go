package storage

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestABatchIsVisibleWhenItIsApplied(t *testing.T) {
	e := openMem(t)
	for name, apply := range map[string]func(*Batch) error{
		"no sync":      e.ApplyNoSync,
		"no sync wait": e.ApplyNoSyncWait,
		"sync":         e.ApplySync,
	} {
		b := e.NewBatch()
		require.True(t, b.Empty())
		b.SetNodeRow(name, []byte("v"))
		require.False(t, b.Empty())
		require.Greater(t, b.Len(), len(name)+1)
		_, found, err := e.NodeRow(name)
		require.NoError(t, err)
		require.False(t, found, "seen before it was applied")
		require.NoError(t, apply(b))
		v, found, err := e.NodeRow(name)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, []byte("v"), v)
		require.NoError(t, b.SyncWait())
		require.NoError(t, b.SyncWait(), "a second wait has nothing to wait for")
		b.Close()
		b.Close()
	}
}

func TestAnEmptyBatchIsApplied(t *testing.T) {
	e := openMem(t)
	b := e.NewBatch()
	defer b.Close()
	require.NoError(t, e.ApplySync(b))
}

func TestABatchIsClosedWithoutHavingBeenApplied(t *testing.T) {
	e := openMem(t)
	b := e.NewBatch()
	b.SetNodeRow("x", nil)
	b.Close()
	_, found, err := e.NodeRow("x")
	require.NoError(t, err)
	require.False(t, found)
	require.True(t, e.NewBatch().Empty(), "a reused batch still has rows")
}

func TestClosingABatchWaitsForItsSync(t *testing.T) {
	e := openMem(t)
	for range 200 {
		b := e.NewBatch()
		b.SetNodeRow("x", make([]byte, 1000))
		require.NoError(t, e.ApplyNoSyncWait(b))
		b.Close()
	}
}

func TestMisuseOfABatchIsAsserted(t *testing.T) {
	e, other := openMem(t), openMem(t)
	b := e.NewBatch()
	defer b.Close()
	b.SetNodeRow("x", nil)
	require.Panics(t, func() { _ = other.ApplySync(b) })
	require.Panics(t, func() { b.SetStrong(0, []byte("k"), Strong{}) })
	require.Panics(t, func() { b.SetStrong(1, []byte("k"), Strong{Deleted: true, Value: []byte("v")}) })
	require.NoError(t, e.ApplySync(b))
	require.Panics(t, func() { _ = e.ApplySync(b) })
	require.Panics(t, func() { b.SetNodeRow("x", nil) })
}

func TestBatchesLargerThanAMemtableAreApplied(t *testing.T) {
	e := openMem(t)
	value := make([]byte, 3*smallConfig().MemtableBytes)
	for i := range value {
		value[i] = byte(i * 7)
	}
	write(t, e, func(b *Batch) { b.SetStrong(1, []byte("k"), Strong{Value: value}) })
	s, found, err := e.State().Strong(1, []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, value, s.Value)
}

func TestManyGoroutinesWriteAndRead(t *testing.T) {
	e := openMem(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			key := []byte{byte(w)}
			for i := range uint64(100) {
				b := e.NewBatch()
				b.SetStrong(1, key, Strong{Revision: i, Value: key})
				b.AppendEntry(1, LogEntry{Index: uint64(w)<<32 | i})
				if err := e.ApplySync(b); err != nil {
					t.Error(err)
				}
				b.Close()
				s, found, err := e.State().Strong(1, key)
				if err != nil || !found || s.Revision != i {
					t.Errorf("writer %d reads %d, %v, %v after it wrote %d", w, s.Revision, found, err, i)
				}
				_ = e.Pressure()
			}
		})
	}
	wg.Wait()
}
