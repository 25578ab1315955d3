package storage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// smallConfig flushes and compacts often, so that short tests reach the disk.
func smallConfig() Config {
	cfg := DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 256<<10
	return cfg
}

// open opens an engine and closes it when the test ends. Pebble's Close fails when an iterator was leaked.
func open(tb testing.TB, dir string, deps Deps) *Engine {
	tb.Helper()
	e, err := Open(dir, smallConfig(), deps)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		if err := e.Close(); !errors.Is(err, ErrClosed) {
			require.NoError(tb, err)
		}
	})
	return e
}

func openMem(tb testing.TB) *Engine {
	tb.Helper()
	return open(tb, "data", Deps{FS: NewMemFS()})
}

// write applies what fill adds, durably.
func write(tb testing.TB, e *Engine, fill func(b *Batch)) {
	tb.Helper()
	b := e.NewBatch()
	defer b.Close()
	fill(b)
	require.NoError(tb, e.ApplySync(b))
}

// writeRaw puts bytes under a key, past every encoder.
func writeRaw(tb testing.TB, e *Engine, key, row []byte) {
	tb.Helper()
	require.NoError(tb, e.db.Set(key, row, pebble.Sync))
}

func TestConfigIsRefusedForWhatCannotWork(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	for name, spoil := range map[string]func(*Config){
		"CacheBytes":            func(c *Config) { c.CacheBytes = 0 },
		"MemtableBytes":         func(c *Config) { c.MemtableBytes = 1 << 40 },
		"MemtablesMax":          func(c *Config) { c.MemtablesMax = 1 },
		"L0CompactionSublevels": func(c *Config) { c.L0CompactionSublevels = 0 },
		"L0StopSublevels":       func(c *Config) { c.L0StopSublevels = c.L0CompactionSublevels },
		"CompactionsMax":        func(c *Config) { c.CompactionsMax = 0 },
		"BytesPerSync":          func(c *Config) { c.BytesPerSync = 0 },
		"OpenFilesMax":          func(c *Config) { c.OpenFilesMax = 1 },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		_, err := Open("data", cfg, Deps{FS: NewMemFS()})
		require.ErrorContains(t, err, name)
	}
}

func TestDirectoriesHaveTheNewestFormat(t *testing.T) {
	require.Equal(t, pebble.FormatNewest, formatVersion,
		"Pebble knows a newer format: raising ours is one-way for every data directory")
	require.Equal(t, formatVersion, openMem(t).db.FormatMajorVersion())
}

func TestWhatWasWrittenIsThereAfterReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b") // created with its parents
	e := open(t, dir, Deps{})
	set := causal.SiblingSet{}.Put(causal.Sibling{ID: causal.Dot{Node: 1, Time: 5}, Dot: causal.Dot{Node: 1, Time: 5}, Value: []byte("e")}, nil)
	write(t, e, func(b *Batch) {
		b.SetNodeRow("id", []byte{7})
		b.SetMetaValue("map", []byte("m"))
		b.SetHardState(1, HardState{Term: 3, Vote: 2, Commit: 9})
		b.SetStrong(1, []byte("k"), Strong{Value: []byte("s"), Revision: 9})
		b.SetSiblings(0, []byte("k"), set)
		b.SetDedup(1, []byte("op"), []byte("reply"))
	})
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.Close(), ErrClosed)

	e = open(t, dir, Deps{})
	id, found, err := e.NodeRow("id")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, []byte{7}, id)
	m, found, err := e.State().MetaValue("map")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, []byte("m"), m)
	h, found, err := e.Log().HardState(1)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, HardState{Term: 3, Vote: 2, Commit: 9}, h)
	s, hasS, es, hasE, err := e.State().Both(0, []byte("k"))
	require.NoError(t, err)
	require.True(t, hasS)
	require.True(t, hasE)
	require.Equal(t, Strong{Value: []byte("s"), Revision: 9}, s)
	require.True(t, es.Equal(set))
	reply, found, err := e.State().Dedup(1, []byte("op"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, []byte("reply"), reply)
}

func TestAbsentRowsAreNotFound(t *testing.T) {
	e := openMem(t)
	for name, read := range map[string]func() (bool, error){
		"node":      func() (bool, error) { _, ok, err := e.NodeRow("x"); return ok, err },
		"hard":      func() (bool, error) { _, ok, err := e.Log().HardState(1); return ok, err },
		"truncated": func() (bool, error) { _, ok, err := e.Log().Truncated(1); return ok, err },
		"applied":   func() (bool, error) { _, ok, err := e.Log().Applied(1); return ok, err },
		"last":      func() (bool, error) { _, ok, err := e.Log().LastEntry(1); return ok, err },
		"term":      func() (bool, error) { _, ok, err := e.Log().Term(1, 1); return ok, err },
		"strong":    func() (bool, error) { _, ok, err := e.State().Strong(1, []byte("k")); return ok, err },
		"siblings":  func() (bool, error) { _, ok, err := e.State().Siblings(1, []byte("k")); return ok, err },
		"dedup":     func() (bool, error) { _, ok, err := e.State().Dedup(1, []byte("k")); return ok, err },
		"meta":      func() (bool, error) { _, ok, err := e.State().MetaValue("k"); return ok, err },
	} {
		found, err := read()
		require.NoError(t, err, name)
		require.False(t, found, name)
	}
	_, hasS, _, hasE, err := e.State().Both(1, []byte("k"))
	require.NoError(t, err)
	require.False(t, hasS || hasE)
	groups, err := e.Log().Groups()
	require.NoError(t, err)
	require.Empty(t, groups)
}

func TestAnEngineThatWasClosedSaysSo(t *testing.T) {
	e := openMem(t)
	b := e.NewBatch()
	b.SetNodeRow("x", nil)
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.ApplySync(b), ErrClosed)
	b.Close()
	_, _, err := e.NodeRow("x")
	require.ErrorIs(t, err, ErrClosed)
	_, err = e.Log().Groups()
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, e.Degraded(), ErrClosed)
}

func requireOneLine(t *testing.T, err error) {
	t.Helper()
	require.NotContains(t, err.Error(), "\n")
}

func TestASecondOpenOfADirectoryIsLocked(t *testing.T) {
	for name, c := range map[string]struct {
		fs  FS
		dir string
	}{"disk": {DiskFS(), t.TempDir()}, "memory": {NewMemFS(), "data"}} {
		t.Run(name, func(t *testing.T) {
			open(t, c.dir, Deps{FS: c.fs})
			_, err := Open(c.dir, smallConfig(), Deps{FS: c.fs})
			require.ErrorIs(t, err, ErrLocked)
			require.ErrorContains(t, err, "stop the process that uses it")
			requireOneLine(t, err)
		})
	}
	t.Run("other spelling", func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir, Deps{})
		t.Chdir(dir)
		_, err := Open(".", smallConfig(), Deps{})
		require.ErrorIs(t, err, ErrLocked)
	})
}

// envLockDir tells the test binary to play the second process.
const envLockDir = "CAPROCK_TEST_LOCK_DIR"

func TestASecondProcessOnADirectoryIsLocked(t *testing.T) {
	if dir := os.Getenv(envLockDir); dir != "" {
		_, err := Open(dir, smallConfig(), Deps{})
		fmt.Println("second process:", errors.Is(err, ErrLocked))
		return
	}
	dir := t.TempDir()
	open(t, dir, Deps{})
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), envLockDir+"="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "second process: true")
}

func TestALockIsReleasedByClose(t *testing.T) {
	fs := NewMemFS()
	require.NoError(t, open(t, "data", Deps{FS: fs}).Close())
	open(t, "data", Deps{FS: fs})
}

func TestAnUnusableDirectoryIsAOneLineError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(filepath.Join(file, "data"), smallConfig(), Deps{})
	require.ErrorContains(t, err, "check the path")
	requireOneLine(t, err)
}

func TestAForeignDirectoryIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	db, err := pebble.Open("data", &pebble.Options{FS: fs, FormatMajorVersion: formatVersion})
	require.NoError(t, err)
	require.NoError(t, db.Set([]byte("hello"), []byte("world"), pebble.Sync))
	require.NoError(t, db.Close())
	_, err = Open("data", smallConfig(), Deps{FS: fs})
	require.ErrorIs(t, err, ErrFormat)
	requireOneLine(t, err)
}

func TestADirectoryOfAnotherVersionIsRefused(t *testing.T) {
	t.Run("layout", func(t *testing.T) {
		fs := NewMemFS()
		e := open(t, "data", Deps{FS: fs})
		write(t, e, func(b *Batch) { b.SetNodeRow(layoutRow, []byte{layoutVersion + 1}) })
		require.NoError(t, e.Close())
		_, err := Open("data", smallConfig(), Deps{FS: fs})
		require.ErrorIs(t, err, ErrFormat)
		requireOneLine(t, err)
	})
	t.Run("pebble", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, open(t, dir, Deps{}).Close())
		markers, err := filepath.Glob(filepath.Join(dir, "marker.format-version.*"))
		require.NoError(t, err)
		require.Len(t, markers, 1)
		require.NoError(t, os.Rename(markers[0], filepath.Join(dir, "marker.format-version.000099.999")))
		_, err = Open(dir, smallConfig(), Deps{})
		require.ErrorIs(t, err, ErrFormat)
		requireOneLine(t, err)
	})
}

func TestMetricsComeAndGoWithTheEngine(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	fs := NewMemFS()
	e := open(t, "data", Deps{FS: fs, Registerer: reg})
	write(t, e, func(b *Batch) { b.SetNodeRow("x", []byte("y")) })
	_, _, err := e.State().MetaValue("nothing")
	require.NoError(t, err)
	families, err := reg.Gather()
	require.NoError(t, err)
	require.Greater(t, len(families), 15)
	for _, f := range families {
		require.True(t, strings.HasPrefix(f.GetName(), "kvstore_storage_"), f.GetName())
		if f.GetName() == "kvstore_storage_wal_sync_seconds" {
			require.Positive(t, f.GetMetric()[0].GetHistogram().GetSampleCount())
		}
	}
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	require.Empty(t, problems)

	_, err = Open("other", smallConfig(), Deps{FS: fs, Registerer: reg})
	require.ErrorContains(t, err, "register metrics")
	require.NoError(t, e.Close())
	families, err = reg.Gather()
	require.NoError(t, err)
	require.Empty(t, families)
	open(t, "data", Deps{FS: fs, Registerer: reg})
}

func TestPressureRisesWithTheShareOfTheThresholds(t *testing.T) {
	e := openMem(t)
	require.Less(t, e.Pressure(), 0.5)
	var m pebble.Metrics
	m.Levels[0].Sublevels = int32(e.cfg.L0StopSublevels)
	require.InDelta(t, 1, e.pressureOf(&m), 1e-9)
	m.Levels[0].Sublevels = 0
	m.MemTable.Size = uint64(e.cfg.MemtablesMax) * uint64(e.cfg.MemtableBytes) * 3 / 4
	require.InDelta(t, 0.75, e.pressureOf(&m), 1e-9)
	e.health.stalled.Store(true)
	require.InDelta(t, 1, e.Pressure(), 1e-9)
}

func TestOpenInMemoryIsUsable(t *testing.T) {
	e, err := OpenInMemory()
	require.NoError(t, err)
	write(t, e, func(b *Batch) { b.SetStrong(kv.PartitionID(0).Group(), []byte("k"), Strong{Value: []byte("v")}) })
	s, found, err := e.State().Strong(1, []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, []byte("v"), s.Value)
	require.NoError(t, e.Close())
}

// TestTheEngineRunsInABubble guards the simulated cluster: with a goroutine that a bubble cannot see as idle, or one that
// outlives Close, the bubble would hang or panic.
func TestTheEngineRunsInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		fs := &categoryFS{FS: NewCrashableMemFS(), fail: func(c vfs.DiskWriteCategory) error {
			if full.Load() && isBackground(c) {
				return syscall.ENOSPC
			}
			return nil
		}}
		e, err := Open("data", smallConfig(), Deps{FS: fs})
		require.NoError(t, err)
		write(t, e, func(b *Batch) { fillWork(b, 1, 10) })
		time.Sleep(time.Hour)
		require.Less(t, e.Pressure(), 0.5)
		full.Store(true)
		write(t, e, func(b *Batch) { b.SetNodeRow("big", make([]byte, 200<<10)) })
		write(t, e, func(b *Batch) { b.SetNodeRow("big", make([]byte, 200<<10)) })
		time.Sleep(time.Minute)
		require.ErrorIs(t, e.Degraded(), ErrDegraded)
		require.NoError(t, e.Close())
	})
}

func TestDiskSpaceIsKnown(t *testing.T) {
	available, total, err := open(t, t.TempDir(), Deps{}).DiskSpace()
	require.NoError(t, err)
	require.Positive(t, available)
	require.GreaterOrEqual(t, total, available)
}
