package storage

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
)

// damage rewrites the files whose names match with every 64th byte of the given part of them flipped.
func damage(t *testing.T, fs FS, match string, from, to func(size int) int) {
	t.Helper()
	names, err := fs.List("data")
	require.NoError(t, err)
	damaged := 0
	for _, name := range names {
		if ok, err := filepath.Match(match, name); err != nil || !ok {
			continue
		}
		damaged++
		path := fs.PathJoin("data", name)
		f, err := fs.Open(path)
		require.NoError(t, err)
		data, err := io.ReadAll(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		for i := from(len(data)); i < to(len(data)); i += 64 {
			data[i] ^= 0xff
		}
		f, err = fs.Create(path, vfs.WriteCategoryUnspecified)
		require.NoError(t, err)
		_, err = f.Write(data)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	require.Positive(t, damaged)
}

func TestADamagedManifestIsCorruption(t *testing.T) {
	fs := NewMemFS()
	require.NoError(t, open(t, "data", Deps{FS: fs}).Close())
	damage(t, fs, "MANIFEST-*", func(int) int { return 0 }, func(size int) int { return size })
	// Twice: the first failure must give the lock back.
	for range 2 {
		_, err := Open("data", smallConfig(), Deps{FS: fs})
		require.ErrorIs(t, err, ErrCorruption)
		requireOneLine(t, err)
	}
}

func TestAPlantedBadRowIsCorruption(t *testing.T) {
	e := openMem(t)
	k := []byte("k")
	reads := []struct {
		space string
		key   []byte
		read  func() error
	}{
		{"node", appendNodeKey(nil, "n"), func() error { _, _, err := e.NodeRow("n"); return err }},
		{"hard_state", appendGroupRow(nil, 1, groupHardState), func() error { _, _, err := e.Log().HardState(1); return err }},
		{"truncated", appendGroupRow(nil, 1, groupTruncated), func() error { _, _, err := e.Log().Truncated(1); return err }},
		{"applied", appendGroupRow(nil, 1, groupApplied), func() error { _, _, err := e.Log().Applied(1); return err }},
		{"log_entry", appendEntryKey(nil, 1, 5), func() error { _, _, err := e.Log().Term(1, 5); return err }},
		{"log_entry", appendEntryKey(nil, 1, 5), func() error { _, err := e.Log().Entries(1, 5, 6, 100); return err }},
		{"log_entry", appendEntryKey(nil, 1, 5), func() error { _, _, err := e.Log().LastEntry(1); return err }},
		{"dedup", appendDedupKey(nil, 1, k), func() error { _, _, err := e.State().Dedup(1, k); return err }},
		{"state", appendStateKey(nil, 0, k), func() error { _, _, err := e.State().MetaValue("k"); return err }},
		{"state", appendStateKey(nil, 1, k), func() error { _, _, err := e.State().Strong(1, k); return err }},
		{"state", appendStateKey(nil, 1, k), func() error { _, _, _, _, err := e.State().Both(0, k); return err }},
		{"state", appendStateKey(nil, 1, k), func() error {
			return e.State().ScanStrong(1, nil, func([]byte, Strong) (bool, error) { return true, nil })
		}},
		{"siblings", appendSiblingsKey(nil, 0, k), func() error { _, _, err := e.State().Siblings(0, k); return err }},
		{"siblings", appendSiblingsKey(nil, 0, k), func() error { _, _, _, _, err := e.State().Both(0, k); return err }},
		{"siblings", appendSiblingsKey(nil, 0, k), func() error {
			return e.State().ScanSiblings(0, nil, func([]byte, causal.SiblingSet) (bool, error) { return true, nil })
		}},
	}
	good := func(b *Batch) {
		b.SetNodeRow("n", []byte("value"))
		b.SetHardState(1, HardState{Term: 1})
		b.SetTruncated(1, causal.Position{Term: 1, Index: 4})
		b.SetApplied(1, Applied{Index: 5, Term: 1})
		b.AppendEntry(1, LogEntry{Index: 5, Term: 1, Data: []byte("data")})
		b.SetDedup(1, k, []byte("reply"))
		b.SetMetaValue("k", []byte("meta"))
		b.SetStrong(1, k, Strong{Value: []byte("value")})
		b.SetSiblings(0, k, causal.SiblingSet{}.Put(causal.Sibling{Dot: causal.Dot{Node: 1, Time: 1}}, nil))
	}
	for i, r := range reads {
		write(t, e, good)
		require.NoError(t, r.read(), "read %d of a good row", i)
		row, closer, err := e.db.Get(r.key)
		require.NoError(t, err)
		row = bytes.Clone(row)
		require.NoError(t, closer.Close())
		before := testutil.ToFloat64(e.stats.corruptions.WithLabelValues(r.space))
		for at := range row {
			bad := bytes.Clone(row)
			bad[at] ^= 0x10
			writeRaw(t, e, r.key, bad)
			err := r.read()
			require.ErrorIs(t, err, ErrCorruption, "read %d, byte %d flipped", i, at)
			require.ErrorContains(t, err, r.space)
			requireOneLine(t, err)
		}
		require.Equal(t, before+float64(len(row)), testutil.ToFloat64(e.stats.corruptions.WithLabelValues(r.space)))
	}
}

// TestASealedRowThatDoesNotDecodeIsCorruption plants rows whose checksum is right and whose content is not.
func TestASealedRowThatDoesNotDecodeIsCorruption(t *testing.T) {
	e := openMem(t)
	key := appendStateKey(nil, 1, []byte("k"))
	writeRaw(t, e, key, seal(formatStrong, key, []byte{0x80}, nil))
	_, _, err := e.State().Strong(1, []byte("k"))
	require.ErrorIs(t, err, ErrCorruption)
	key = appendSiblingsKey(nil, 1, []byte("k"))
	writeRaw(t, e, key, seal(formatSiblings, key, []byte{0x80}, nil))
	_, _, err = e.State().Siblings(1, []byte("k"))
	require.ErrorIs(t, err, ErrCorruption)
}

func TestADamagedBlockIsCorruption(t *testing.T) {
	fs := NewMemFS()
	e := open(t, "data", Deps{FS: fs})
	write(t, e, func(b *Batch) {
		for i := range 2000 {
			b.SetStrong(1, fmt.Appendf(nil, "key-%04d", i), Strong{Value: bytes.Repeat([]byte{byte(i)}, 50)})
		}
	})
	require.NoError(t, e.db.Flush())
	require.NoError(t, e.Close())
	damage(t, fs, "*.sst", func(size int) int { return size / 8 }, func(size int) int { return size / 2 })
	var fatal error
	e = open(t, "data", Deps{FS: fs, OnFatal: func(err error) { fatal = err }})
	damaged := 0
	for i := range 2000 {
		s, found, err := e.State().Strong(1, fmt.Appendf(nil, "key-%04d", i))
		if err != nil {
			require.ErrorIs(t, err, ErrCorruption)
			requireOneLine(t, err)
			damaged++
			continue
		}
		require.True(t, found)
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, 50), s.Value, "a wrong value was served")
	}
	require.Positive(t, damaged)
	require.ErrorIs(t, e.State().ScanStrong(1, nil, func([]byte, Strong) (bool, error) { return true, nil }), ErrCorruption)
	require.NoError(t, fatal, "damage to one block stops one replica, not the node")
}
