package storage

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
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
	// survivable says that one such failure may meet a flush, or the removal of a file, and need not stop the engine.
	survivable bool
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
		}, file: func(string) bool { return true }, survivable: true},
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
				if fault.survivable {
					continue
				}
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
	require.ErrorIs(t, b.SyncWait(), ErrStopped, "who overlooked the first error must not get a nil")
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
	// The engine may learn of the fault before the first batch is handed back, or later. Which of the two syncs meets it is a
	// race as well; neither may be acknowledged afterwards.
	errFirst := e.ApplyNoSyncWait(first)
	errSecond := e.ApplySync(second)
	if errFirst == nil {
		require.ErrorIs(t, first.SyncWait(), ErrStopped)
		require.ErrorIs(t, first.SyncWait(), ErrStopped)
	} else {
		require.ErrorIs(t, errFirst, ErrStopped)
	}
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

// TestAFailureAtTheEndOfOpeningLeavesNoCompactionBehind opens a directory whose recovery starts a compaction, and fails
// the one step after that which can. Pebble gives up without waiting for the compaction, which then panics.
func TestAFailureAtTheEndOfOpeningLeavesNoCompactionBehind(t *testing.T) {
	base := NewCrashableMemFS()
	s := &script{fs: base}
	e := open(t, "data", Deps{FS: base})
	require.NoError(t, s.firstLife(e))
	require.NoError(t, s.write(e, 20))
	for range 20 {
		disk := base.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
		_, err := Open("data", smallConfig(), Deps{FS: inject(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpRename {
				return errorfs.ErrInjected
			}
			return nil
		}))})
		require.ErrorIs(t, err, ErrStopped)
		require.ErrorIs(t, err, errorfs.ErrInjected)
		requireOneLine(t, err)
		s.check(t, "opened again", disk, s.acked.Load())
	}
}
