package storage

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
)

// TestTheDiskIsFrozenAfterAFailure compares the disk at the moment of the failure with the disk after Close.
func TestTheDiskIsFrozenAfterAFailure(t *testing.T) {
	fs := NewCrashableMemFS()
	e := open(t, "data", Deps{FS: fs})
	w := &worker{e: e, rng: rand.New(rand.NewPCG(5, 6))}
	w.run(200)
	require.NoError(t, w.err)
	require.NoError(t, e.db.Flush())
	e.health.trip(errors.New("pulled"))
	before := listing(t, fs)
	// What Pebble does from here on must stay in memory.
	require.NoError(t, e.db.Flush())
	require.NoError(t, e.Close())
	require.Equal(t, before, listing(t, fs))
	again := open(t, "data", Deps{FS: fs})
	require.GreaterOrEqual(t, survivors(t, again, w.applied.Load()), w.acked.Load())
}

// listing returns the files and their sizes. A table that a compaction was writing may grow.
func listing(t *testing.T, fs vfs.FS) map[string]int64 {
	t.Helper()
	names, err := fs.List("data")
	require.NoError(t, err)
	out := map[string]int64{}
	for _, n := range names {
		fi, err := fs.Stat(fs.PathJoin("data", n))
		require.NoError(t, err)
		out[n] = fi.Size()
		if strings.HasSuffix(n, ".sst") {
			out[n] = 0
		}
	}
	return out
}

// TestFilesWrittenAfterAFailureAreReadBackFromMemory is what keeps Pebble going until it is closed.
func TestFilesWrittenAfterAFailureAreReadBackFromMemory(t *testing.T) {
	base := vfs.NewMem()
	require.NoError(t, base.MkdirAll("data", 0o755))
	h := newHealth(slog.New(slog.DiscardHandler), newStats(), nil)
	g := newGuardedFS(base, "data", h)
	h.trip(errBroken)
	for _, category := range []vfs.DiskWriteCategory{categoryWAL, categoryFlush, "pebble-manifest", "unspecified"} {
		name := "data/" + string(category)
		f, err := g.Create(name, category)
		require.NoError(t, err)
		_, err = f.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
		f, err = g.Open(name)
		require.NoError(t, err)
		read := make([]byte, 1)
		_, err = f.ReadAt(read, 0)
		require.NoError(t, err)
		require.Equal(t, "x", string(read))
		require.NoError(t, f.Close())
		fi, err := g.Stat(name)
		require.NoError(t, err)
		require.Equal(t, int64(1), fi.Size())
		_, err = base.Stat(name)
		require.Error(t, err)
	}
	_, err := g.Create("data/compaction", categoryCompaction)
	require.ErrorIs(t, err, errFrozen, "compactions could fill the memory")
	h.stalled.Store(true)
	f, err := g.Create("data/compaction", categoryCompaction)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, g.Rename("data/a", "data/b"))
	_, err = base.Stat("data/b")
	require.Error(t, err)
	require.ErrorIs(t, g.Link("data/a", "data/b"), errFrozen)
	require.ErrorIs(t, g.MkdirAll("other", 0o755), errFrozen)
	_, err = g.OpenReadWrite("data/a", categoryWAL)
	require.ErrorIs(t, err, errFrozen)
	require.NoError(t, g.RemoveAll("data"))
	_, err = base.Stat("data")
	require.NoError(t, err)
}

// brokenFile fails every call that changes something or asks for its size.
type brokenFile struct{ vfs.File }

var errBroken = errors.New("broken")

func (brokenFile) Write([]byte) (int, error)          { return 0, errBroken }
func (brokenFile) WriteAt([]byte, int64) (int, error) { return 0, errBroken }
func (brokenFile) Sync() error                        { return errBroken }
func (brokenFile) SyncData() error                    { return errBroken }
func (brokenFile) SyncTo(int64) (bool, error)         { return false, errBroken }
func (brokenFile) Stat() (vfs.FileInfo, error)        { return nil, errBroken }
func (brokenFile) Close() error                       { return errBroken }

// TestEveryFailureOfAGuardedFileIsKeptFromPebble covers the calls that errorfs lets pass.
func TestEveryFailureOfAGuardedFileIsKeptFromPebble(t *testing.T) {
	for name, call := range map[string]func(f vfs.File) error{
		"write":     func(f vfs.File) error { _, err := f.Write([]byte("x")); return err },
		"write at":  func(f vfs.File) error { _, err := f.WriteAt([]byte("x"), 0); return err },
		"sync":      func(f vfs.File) error { return f.Sync() },
		"sync data": func(f vfs.File) error { return f.SyncData() },
		"sync to":   func(f vfs.File) error { _, err := f.SyncTo(1); return err },
		"stat":      func(f vfs.File) error { _, err := f.Stat(); return err },
		"close":     func(f vfs.File) error { return f.Close() },
	} {
		var fatal fatals
		h := newHealth(slog.New(slog.DiscardHandler), newStats(), fatal.on)
		require.NoError(t, h.arm())
		f := &guardedFile{File: brokenFile{}, name: "file", health: h}
		require.NoError(t, call(f), name)
		require.ErrorIs(t, h.stopped(), errBroken, name)
		require.NoError(t, call(f), name)
		require.Len(t, fatal.all(), 1, name)
	}
}
