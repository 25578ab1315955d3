package storage

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

func absenceConfig() Config {
	cfg := DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 8<<20, 4<<20
	return cfg
}

// awaitAbsence waits until the filter is in use.
func awaitAbsence(t *testing.T, e *Engine) {
	t.Helper()
	require.Eventually(t, e.absence.complete.Load, 10*time.Second, time.Millisecond)
}

func TestKeysOfTheStrongLaneAreNeverTakenForAbsent(t *testing.T) {
	fs := NewMemFS()
	e, err := Open("db", absenceConfig(), Deps{FS: fs})
	require.NoError(t, err)
	put := func(e *Engine, from, to int) {
		b := e.NewBatch()
		for i := from; i < to; i++ {
			b.SetStrong(kv.GroupID(1+i%3), fmt.Appendf(nil, "k%d", i), Strong{Revision: uint64(i + 1), Value: []byte("v")})
		}
		require.NoError(t, e.ApplySync(b))
		b.Close()
	}
	check := func(e *Engine, n int) {
		t.Helper()
		absent := 0
		for i := range 2 * n {
			key := fmt.Appendf(nil, "k%d", i)
			s, found, err := e.State().Strong(kv.GroupID(1+i%3), key)
			require.NoError(t, err)
			require.Equal(t, i < n, found, "key %d", i)
			if found {
				require.Equal(t, uint64(i+1), s.Revision)
			} else if e.absence.absent(appendStateKey(nil, kv.GroupID(1+i%3), key)) {
				absent++
			}
		}
		require.Greater(t, absent, n*9/10, "the filter is of use")
	}
	awaitAbsence(t, e)
	put(e, 0, 2000)
	check(e, 2000)
	require.NoError(t, e.Close())

	// What lay on the disk is known again, and what is written while it is looked for too.
	e, err = Open("db", absenceConfig(), Deps{FS: fs})
	require.NoError(t, err)
	put(e, 2000, 3000)
	for i := range 3000 {
		_, found, err := e.State().Strong(kv.GroupID(1+i%3), fmt.Appendf(nil, "k%d", i))
		require.NoError(t, err)
		require.True(t, found)
	}
	awaitAbsence(t, e)
	check(e, 3000)
	require.NoError(t, e.Close())
}

func TestInstalledKeysAreNotTakenForAbsent(t *testing.T) {
	from, err := Open("db", absenceConfig(), Deps{FS: NewMemFS()})
	require.NoError(t, err)
	defer func() { require.NoError(t, from.Close()) }()
	to, err := Open("db", absenceConfig(), Deps{FS: NewMemFS()})
	require.NoError(t, err)
	defer func() { require.NoError(t, to.Close()) }()
	awaitAbsence(t, to)
	b := from.NewBatch()
	b.SetApplied(5, Applied{Index: 1, Term: 1})
	b.SetStrong(5, []byte("k"), Strong{Revision: 7, Value: []byte("v")})
	require.NoError(t, from.ApplySync(b))
	b.Close()
	_, found, err := to.State().Strong(5, []byte("k"))
	require.NoError(t, err)
	require.False(t, found)

	snapshot, err := from.SnapshotGroup(5)
	require.NoError(t, err)
	defer snapshot.Close()
	stage := to.NewStage(5)
	defer stage.Discard()
	for next := []byte(nil); ; {
		var rows []byte
		rows, next, err = snapshot.AppendRows(nil, next, 1<<20)
		require.NoError(t, err)
		require.NoError(t, stage.Add(rows))
		if next == nil {
			break
		}
	}
	require.NoError(t, stage.Finish())
	require.NoError(t, to.InstallGroup(stage, HardState{Term: 1}, causal.Position{}))
	s, found, err := to.State().Strong(5, []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, uint64(7), s.Revision)
}
