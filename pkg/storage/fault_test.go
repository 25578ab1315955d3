package storage

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// fatals records what OnFatal is called with.
type fatals struct {
	mu   sync.Mutex
	errs []error
}

func (f *fatals) on(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, err)
}

func (f *fatals) all() []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errs
}

// within fails the test when fn takes long enough to have hung.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

// diskFault says which filesystem operations fail.
type diskFault struct {
	name  string
	kinds []errorfs.OpKind
	file  func(base string) bool
}

func isLog(base string) bool      { return strings.HasSuffix(base, ".log") }
func isManifest(base string) bool { return strings.HasPrefix(base, "MANIFEST") }
func isDir(base string) bool      { return base == "data" }

func fatalFaults() []diskFault {
	syncs := []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo}
	return []diskFault{
		{name: "log write", kinds: []errorfs.OpKind{errorfs.OpFileWrite}, file: isLog},
		{name: "log sync", kinds: syncs, file: isLog},
		{name: "log create", kinds: []errorfs.OpKind{errorfs.OpCreate, errorfs.OpReuseForWrite}, file: isLog},
		{name: "log stat", kinds: []errorfs.OpKind{errorfs.OpFileStat}, file: isLog},
		{name: "manifest write", kinds: []errorfs.OpKind{errorfs.OpFileWrite}, file: isManifest},
		{name: "manifest sync", kinds: syncs, file: isManifest},
		{name: "directory sync", kinds: syncs, file: isDir},
		{name: "everything", kinds: []errorfs.OpKind{
			errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate, errorfs.OpReuseForWrite,
			errorfs.OpFileClose, errorfs.OpRemove, errorfs.OpFileStat,
		}, file: func(string) bool { return true }},
	}
}

// injectFS is errorfs with one gap closed: it hands out reused logs bare, past its own injector.
type injectFS struct{ vfs.FS }

func inject(base vfs.FS, i errorfs.Injector) vfs.FS { return injectFS{errorfs.Wrap(base, i)} }

// ReuseForWrite implements vfs.FS, which allows not to reuse.
func (f injectFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.Remove(oldname); err != nil {
		return nil, err
	}
	return f.Create(newname, c)
}

func (f injectFS) Unwrap() vfs.FS { return f.FS }

// inject returns an injector of the fault, off until on is set. With once, only the first operation fails.
func (d diskFault) inject(on *atomic.Bool, hits *atomic.Int64, once bool) errorfs.Injector {
	return errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !on.Load() || !d.file(filepath.Base(op.Path)) {
			return nil
		}
		for _, k := range d.kinds {
			if op.Kind == k && (hits.Add(1) == 1 || !once) {
				return errorfs.ErrInjected
			}
		}
		return nil
	})
}

// TestNoAcknowledgedWriteIsLostWhenTheDiskFails lets the log, the manifest or the directory fail while batches are
// written, and looks at what a restart finds.
func TestNoAcknowledgedWriteIsLostWhenTheDiskFails(t *testing.T) {
	for _, fault := range fatalFaults() {
		for _, once := range []bool{false, true} {
			name := fault.name
			if once {
				name += " once"
			}
			t.Run(name, func(t *testing.T) { failAndRestart(t, fault, once) })
		}
	}
}

func failAndRestart(t *testing.T, fault diskFault, once bool) {
	const batches = 3000
	fs := NewCrashableMemFS()
	var on atomic.Bool
	var hits atomic.Int64
	var fatal fatals
	e := open(t, "data", Deps{FS: inject(fs, fault.inject(&on, &hits, once)), OnFatal: fatal.on})
	w := &worker{e: e, rng: rand.New(rand.NewPCG(1, 2))}
	within(t, "writing", func() {
		w.run(50)
		require.NoError(t, w.err)
		on.Store(true)
		w.run(batches)
	})
	require.Positive(t, hits.Load(), "the fault never fired")
	require.ErrorIs(t, w.err, ErrStopped, "writing went on for %d batches", batches)
	require.ErrorIs(t, w.err, errorfs.ErrInjected, "the cause is lost")
	require.Len(t, fatal.all(), 1)
	require.ErrorIs(t, fatal.all()[0], ErrStopped)
	requireStopped(t, e)
	within(t, "closing", func() { require.NoError(t, e.Close()) })
	require.Len(t, fatal.all(), 1)

	acked := w.acked.Load()
	for _, percent := range []int{0, 100} {
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(3, 4))})
		again := open(t, "data", Deps{FS: crashed})
		require.GreaterOrEqual(t, survivors(t, again, w.applied.Load()), acked, "unsynced=%d", percent)
		write(t, again, func(b *Batch) { b.SetNodeRow("works", nil) })
		require.NoError(t, again.Close())
	}
}

// requireStopped checks that an engine whose disk failed does nothing any more, and says so.
func requireStopped(t *testing.T, e *Engine) {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	b.SetNodeRow("x", nil)
	require.ErrorIs(t, e.ApplyNoSync(b), ErrStopped)
	require.ErrorIs(t, e.ApplyNoSyncWait(b), ErrStopped)
	require.ErrorIs(t, e.ApplySync(b), ErrStopped)
	require.ErrorIs(t, e.Degraded(), ErrStopped)
	require.InDelta(t, 1, e.Pressure(), 1e-9)
	_, _, err := e.NodeRow("x")
	require.ErrorIs(t, err, ErrStopped)
	_, _, _, _, err = e.State().Both(1, []byte("k"))
	require.ErrorIs(t, err, ErrStopped)
	_, err = e.Log().Entries(1, 1, 2, 3)
	require.ErrorIs(t, err, ErrStopped)
	_, _, err = e.Log().LastEntry(1)
	require.ErrorIs(t, err, ErrStopped)
	require.ErrorIs(t, e.State().ScanStrong(1, nil, func([]byte, Strong) (bool, error) { return true, nil }), ErrStopped)
}

// TestAFailedSyncIsNotAcknowledgedByALaterOne is the trap of fsync: the kernel reports a lost page once.
func TestAFailedSyncIsNotAcknowledgedByALaterOne(t *testing.T) {
	fs := NewCrashableMemFS()
	var on atomic.Bool
	var hits atomic.Int64
	fault := fatalFaults()[1]
	e := open(t, "data", Deps{FS: inject(fs, fault.inject(&on, &hits, true))})
	on.Store(true)
	first, second := e.NewBatch(), e.NewBatch()
	first.SetNodeRow("first", nil)
	second.SetNodeRow("second", nil)
	require.NoError(t, e.ApplyNoSyncWait(first))
	// Which of the two syncs meets the fault is a race; neither may be acknowledged afterwards.
	errSecond := e.ApplySync(second)
	require.ErrorIs(t, first.SyncWait(), ErrStopped)
	require.ErrorIs(t, errSecond, ErrStopped)
	first.Close()
	second.Close()
	require.NoError(t, e.Close())
}

// TestConcurrentWritersAllLearnThatTheDiskFailed uses more writers than the log has blocks in flight, because Pebble
// panics under its own locks when one of them meets a log that failed.
func TestConcurrentWritersAllLearnThatTheDiskFailed(t *testing.T) {
	for _, fault := range fatalFaults()[:3] {
		t.Run(fault.name, func(t *testing.T) {
			var on atomic.Bool
			var hits atomic.Int64
			e := open(t, "data", Deps{FS: inject(NewMemFS(), fault.inject(&on, &hits, false))})
			var wg sync.WaitGroup
			for w := range 16 {
				wg.Go(func() {
					for i := range 100_000 {
						b := e.NewBatch()
						b.SetNodeRow(string(rune('a'+w)), make([]byte, 8<<10))
						err := e.ApplySync(b)
						b.Close()
						if err != nil {
							if !errors.Is(err, ErrStopped) {
								t.Error(err)
							}
							return
						}
						if w == 0 && i == 20 {
							on.Store(true)
						}
					}
					t.Error("never stopped")
				})
			}
			within(t, "writing", wg.Wait)
			within(t, "closing", func() { require.NoError(t, e.Close()) })
		})
	}
}

// TestAFailureWhileOpeningIsReturnedByOpen fails each operation of a first and of a second Open in turn.
func TestAFailureWhileOpeningIsReturnedByOpen(t *testing.T) {
	base := vfs.NewMem()
	e := open(t, "data", Deps{FS: base})
	write(t, e, func(b *Batch) { fillWork(b, 1, 5000) })
	require.NoError(t, e.Close())
	for name, existing := range map[string]bool{"new": false, "existing": true} {
		t.Run(name, func(t *testing.T) {
			failed := 0
			var ops atomic.Int64
			for n := int64(1); ops.Load() >= n-1; n++ {
				ops.Store(0)
				fs := vfs.NewMem()
				if existing {
					ok, err := vfs.Clone(base, fs, "data", "data")
					require.NoError(t, err)
					require.True(t, ok)
				}
				var called fatals
				e, err := Open("data", smallConfig(), Deps{OnFatal: called.on, FS: inject(fs, errorfs.InjectorFunc(
					func(op errorfs.Op) error {
						if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && ops.Add(1) == n {
							return errorfs.ErrInjected
						}
						return nil
					},
				))})
				if err != nil {
					failed++
					requireOneLine(t, err)
					require.Empty(t, called.all(), "OnFatal is for an engine that was handed out")
					// The lock was given back.
					require.NoError(t, fs.MkdirAll("data", 0o755))
					lock, err := lockDir("data", fs)
					require.NoError(t, err)
					require.NoError(t, lock.Close())
					continue
				}
				require.NoError(t, e.Close())
			}
			require.Greater(t, failed, 10)
		})
	}
}

// categoryFS lets the creation of files of one category fail, as a full disk does.
type categoryFS struct {
	vfs.FS
	fail     func(vfs.DiskWriteCategory) error
	attempts atomic.Int64
}

func (c *categoryFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.fail(category); err != nil {
		c.attempts.Add(1)
		return nil, err
	}
	return c.FS.Create(name, category)
}

func (c *categoryFS) Unwrap() vfs.FS { return c.FS }

// TestAFullDiskDegradesAndRecovers keeps flushes from finding room, then makes room.
func TestAFullDiskDegradesAndRecovers(t *testing.T) {
	var full atomic.Bool
	fs := &categoryFS{FS: NewMemFS(), fail: func(c vfs.DiskWriteCategory) error {
		if full.Load() && isBackground(c) {
			return syscall.ENOSPC
		}
		return nil
	}}
	var logged lockedBuffer
	e := open(t, "data", Deps{FS: fs, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	require.NoError(t, e.Degraded())
	full.Store(true)
	// Enough to rotate the memtable and little enough not to be stalled.
	write(t, e, func(b *Batch) { b.SetNodeRow("big", make([]byte, 200<<10)) })
	write(t, e, func(b *Batch) { b.SetNodeRow("big", make([]byte, 200<<10)) })
	require.Eventually(t, func() bool { return errors.Is(e.Degraded(), ErrDegraded) }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, e.Degraded(), syscall.ENOSPC)
	require.NotErrorIs(t, e.Degraded(), ErrStopped)
	write(t, e, func(b *Batch) { b.SetNodeRow("small", []byte("reads and small writes go on")) })

	before := fs.attempts.Load()
	time.Sleep(300 * time.Millisecond)
	require.Less(t, fs.attempts.Load()-before, int64(30), "flushes are repeated without a pause")
	require.Positive(t, testutil.ToFloat64(e.stats.backgroundErrors))
	require.Less(t, strings.Count(logged.String(), "background write failed"), 8)

	full.Store(false)
	require.Eventually(t, func() bool { return e.Degraded() == nil }, 10*time.Second, time.Millisecond)
	v, found, err := e.NodeRow("small")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, []byte("reads and small writes go on"), v)
}

// TestAWriterThatIsStalledIsReleasedWhenTheEngineStops fills a disk until Pebble makes the writer wait, with no room
// ever coming. Without its release nobody could close the engine.
func TestAWriterThatIsStalledIsReleasedWhenTheEngineStops(t *testing.T) {
	e, stopped := stalledWriter(t, func(c vfs.DiskWriteCategory) error {
		if isBackground(c) {
			return syscall.ENOSPC
		}
		return nil
	})
	require.InDelta(t, 1, e.Pressure(), 1e-9)
	e.health.trip(errors.New("the log fails too"))
	require.ErrorIs(t, receive(t, stopped, 20*time.Second), ErrStopped)
	within(t, "closing", func() { require.NoError(t, e.Close()) })
}

// envSlow enables tests that wait for timeouts inside Pebble.
const envSlow = "CAPROCK_STORAGE_SLOW"

// TestAWriterThatIsStalledOnLevelZeroIsReleased lets compactions fail only once, and for ever. Pebble by itself leaves
// the writer waiting in both cases.
func TestAWriterThatIsStalledOnLevelZeroIsReleased(t *testing.T) {
	if os.Getenv(envSlow) == "" {
		t.Skip("Pebble avoids a failed compaction's tables for 30 s; set " + envSlow + "=1 to wait for it")
	}
	t.Run("when there is room again", func(t *testing.T) {
		t.Parallel()
		var failures atomic.Int64
		e, stopped := stalledWriter(t, func(c vfs.DiskWriteCategory) error {
			if c == categoryCompaction && failures.Add(1) < 3 {
				return syscall.ENOSPC
			}
			return nil
		})
		require.ErrorIs(t, e.Degraded(), ErrDegraded)
		require.Eventually(t, func() bool { return e.Degraded() == nil && !e.health.stalled.Load() },
			70*time.Second, 10*time.Millisecond)
		e.health.trip(errors.New("enough"))
		require.ErrorIs(t, receive(t, stopped, 20*time.Second), ErrStopped)
		within(t, "closing", func() { require.NoError(t, e.Close()) })
	})
	t.Run("when the engine stops", func(t *testing.T) {
		t.Parallel()
		e, stopped := stalledWriter(t, func(c vfs.DiskWriteCategory) error {
			if c == categoryCompaction {
				return syscall.ENOSPC
			}
			return nil
		})
		e.health.trip(errors.New("the log fails too"))
		require.ErrorIs(t, receive(t, stopped, 70*time.Second), ErrStopped)
		within(t, "closing", func() { require.NoError(t, e.Close()) })
	})
}

// stalledWriter returns an engine one of whose writers waits inside Pebble, and what that writer will return.
func stalledWriter(t *testing.T, fail func(vfs.DiskWriteCategory) error) (*Engine, <-chan error) {
	t.Helper()
	e, err := Open("data", stallingConfig(), Deps{FS: &categoryFS{FS: NewMemFS(), fail: fail}})
	require.NoError(t, err)
	stopped := make(chan error, 1)
	go func() { stopped <- writeUntilRefused(e) }()
	require.Eventually(t, func() bool { return e.health.stalled.Load() && e.Degraded() != nil },
		20*time.Second, time.Millisecond)
	return e, stopped
}

func receive(t *testing.T, c <-chan error, limit time.Duration) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(limit):
		t.Fatalf("the writer is still stalled after %s", limit)
		return nil
	}
}

func stallingConfig() Config {
	cfg := smallConfig()
	cfg.MemtablesMax, cfg.L0CompactionSublevels, cfg.L0StopSublevels = 2, 1, 2
	return cfg
}

// writeUntilRefused overwrites a few keys, so that every flush adds a sublevel to level 0.
func writeUntilRefused(e *Engine) error {
	for {
		b := e.NewBatch()
		for k := range 4 {
			b.SetNodeRow(string(rune('a'+k)), make([]byte, 16<<10))
		}
		err := e.ApplyNoSync(b)
		b.Close()
		if err != nil {
			return err
		}
	}
}

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
	require.ErrorIs(t, g.Rename("data/a", "data/b"), errFrozen)
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

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
