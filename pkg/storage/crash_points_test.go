package storage

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The script: everything that a node does with its storage, small enough to be run once for each operation that it
// makes the filesystem do.

// scriptGroup is the group whose log the script appends to and cuts.
const scriptGroup kv.GroupID = 50

// scriptLog returns the log of scriptGroup after batch last: every fourth batch replaces the last two entries by one of
// a higher term, as a follower does whose leader was deposed.
func scriptLog(last uint64) (entries []LogEntry) {
	for i := uint64(1); i <= last; i++ {
		if i%4 == 0 {
			entries = entries[:len(entries)-2]
		}
		entries = append(entries, LogEntry{Index: uint64(len(entries)) + 1, Term: 1 + i/4, Data: workValue(i, 10)})
	}
	return entries
}

func fillScript(b *Batch, i uint64) {
	size := 100
	if i%5 == 4 {
		size = 50 << 10 // four of them fill a memtable
	}
	fillWork(b, i, size)
	log := scriptLog(i)
	entry := log[len(log)-1]
	if i%4 == 0 {
		b.DeleteEntriesFrom(scriptGroup, entry.Index)
	}
	b.AppendEntry(scriptGroup, entry)
	b.SetApplied(scriptGroup, Applied{Index: i})
}

// script is one run.
type script struct {
	fs      FS
	fatal   fatals
	applied atomic.Uint64 // the last batch handed to the engine
	acked   atomic.Uint64 // the last batch whose sync was acknowledged
}

// run returns the first error. What follows the error is what a node does then: it closes the engine.
func (s *script) run() error {
	for _, life := range []func(e *Engine) error{s.firstLife, s.secondLife} {
		e, err := Open("data", smallConfig(), Deps{FS: s.fs, OnFatal: s.fatal.on})
		if err != nil {
			return err
		}
		err = life(e)
		if closeErr := e.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *script) firstLife(e *Engine) error {
	if err := s.write(e, 14); err != nil {
		return err
	}
	if err := s.flush(e); err != nil {
		return err
	}
	if err := s.write(e, 8); err != nil {
		return err
	}
	return s.flush(e)
}

func (s *script) secondLife(e *Engine) error {
	if err := s.write(e, 6); err != nil {
		return err
	}
	if err := s.flush(e); err != nil {
		return err
	}
	return s.write(e, 3)
}

// flush waits for the memtable to be flushed, which starts compactions too, or for a disk on which that does not work.
func (s *script) flush(e *Engine) error {
	flushed, err := e.db.AsyncFlush()
	if err != nil {
		return err
	}
	for {
		select {
		case <-flushed:
			return nil
		case <-time.After(time.Millisecond):
			if e.Degraded() != nil {
				return nil
			}
		}
	}
}

// write applies the next n batches, every third without a sync.
func (s *script) write(e *Engine, n int) error {
	for range n {
		i := s.applied.Load() + 1
		b := e.NewBatch()
		fillScript(b, i)
		s.applied.Store(i)
		var err error
		switch i % 3 {
		case 0:
			err = e.ApplyNoSync(b)
		case 1:
			err = e.ApplySync(b)
		default:
			if err = e.ApplyNoSyncWait(b); err == nil {
				err = b.SyncWait()
			}
		}
		b.Close()
		if err != nil {
			return err
		}
		if i%3 != 0 {
			s.acked.Store(i)
		}
	}
	return nil
}

// check opens what is left on the disk and compares it with what the script was told.
func (s *script) check(t *testing.T, what string, fs FS, acked uint64) {
	t.Helper()
	e, err := Open("data", smallConfig(), Deps{FS: fs})
	require.NoError(t, err, what)
	last := survivors(t, e, s.applied.Load())
	require.GreaterOrEqual(t, last, acked, "%s: a batch acknowledged as synced is gone", what)
	log := scriptLog(last)
	_, _, err = e.Log().LastEntry(scriptGroup)
	require.NoError(t, err, what)
	got, err := e.Log().Entries(scriptGroup, 1, uint64(len(log))+1, 1<<20)
	require.NoError(t, err, what)
	require.Equal(t, log, got, what)
	_, beyond, err := e.Log().Term(scriptGroup, uint64(len(log))+1)
	require.NoError(t, err, what)
	require.False(t, beyond, "%s: a deleted entry is back", what)
	applied, _, err := e.Log().Applied(scriptGroup)
	require.NoError(t, err, what)
	require.Equal(t, last, applied.Index, what)
	write(t, e, func(b *Batch) { b.SetNodeRow("and it is written to", nil) })
	require.NoError(t, e.Close(), what)
}

// pointFS has point called before each operation that changes the disk, with how many came before. An error makes the
// operation fail.
type pointFS struct {
	vfs.FS
	errorfs.Injector
}

func newPointFS(base vfs.FS, point func(n int64, op string) error) pointFS {
	var count atomic.Int64
	i := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		return point(count.Add(1)-1, fmt.Sprintf("operation %d on %s", op.Kind, op.Path))
	})
	return pointFS{errorfs.Wrap(base, i), i}
}

func (p pointFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(name, c)
	return p.closing(name, f), err
}

// ReuseForWrite closes a gap in errorfs, which hands such files out bare.
func (p pointFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.ReuseForWrite(oldname, newname, c)
	if err != nil {
		return nil, err
	}
	return p.closing(newname, errorfs.WrapFile(f, p)), nil
}

func (p pointFS) Unwrap() vfs.FS { return p.FS }

func (p pointFS) closing(name string, f vfs.File) vfs.File {
	if f == nil {
		return nil
	}
	return pointFile{f, p, name}
}

// pointFile closes another: errorfs never fails a close.
type pointFile struct {
	vfs.File
	fs   pointFS
	name string
}

func (f pointFile) Close() error {
	err := f.fs.MaybeError(errorfs.Op{Kind: errorfs.OpFileClose, Path: f.name})
	if closeErr := f.File.Close(); err == nil {
		err = closeErr
	}
	return err
}

// pointsStride is every how manyth operation the tests look at by default. CAPROCK_STORAGE_SEEDS makes them look at all.
func pointsStride(t *testing.T, standard int) int {
	if seeds(0) > 0 {
		return 1
	}
	if testing.Short() {
		return 4 * standard
	}
	return standard
}

// countPoints runs the script undisturbed and returns how many operations it took.
func countPoints(t *testing.T) int {
	t.Helper()
	var points atomic.Int64
	base := NewCrashableMemFS()
	s := &script{fs: newPointFS(base, func(int64, string) error {
		points.Add(1)
		return nil
	})}
	require.NoError(t, s.run())
	s.check(t, "undisturbed", base, s.applied.Load())
	require.Empty(t, s.fatal.all())
	require.Greater(t, points.Load(), int64(100))
	return int(points.Load())
}

// atEveryPoint runs fn for operations of the script, two at a time.
func atEveryPoint(t *testing.T, stride int, fn func(t *testing.T, n int64) (fired bool)) {
	points := countPoints(t)
	t.Logf("%d operations, every %d", points, stride)
	var tried, fired atomic.Int64
	t.Run("points", func(t *testing.T) {
		for half := range 2 {
			t.Run(fmt.Sprint(half), func(t *testing.T) {
				t.Parallel()
				for n := half * stride; n < points; n += 2 * stride {
					tried.Add(1)
					if fn(t, int64(n)) {
						fired.Add(1)
					}
				}
			})
		}
	})
	// Flushes and compactions run beside the script, so that not every run makes as many operations.
	require.GreaterOrEqual(t, fired.Load(), tried.Load()*8/10, "most of the faults never fired")
}

func TestCrashPointsEveryFailedOperationEndsInAStopOrInNothing(t *testing.T) {
	for _, forEver := range []bool{false, true} {
		name := "once"
		if forEver {
			name = "for ever"
		}
		t.Run(name, func(t *testing.T) {
			atEveryPoint(t, pointsStride(t, 11), func(t *testing.T, n int64) bool { return failAt(t, n, forEver) })
		})
	}
}

func failAt(t *testing.T, n int64, forEver bool) (fired bool) {
	var what atomic.Pointer[string]
	base := NewCrashableMemFS()
	s := &script{fs: newPointFS(base, func(i int64, op string) error {
		if i < n || i > n && !forEver {
			return nil
		}
		if i == n {
			text := fmt.Sprintf("point %d, %s, for ever %v", n, op, forEver)
			what.Store(&text)
		}
		return errorfs.ErrInjected
	})}
	var err error
	within(t, fmt.Sprintf("the script with a fault at point %d", n), func() { err = s.run() })
	if what.Load() == nil {
		require.NoError(t, err)
		return false
	}
	fatal := s.fatal.all()
	require.LessOrEqual(t, len(fatal), 1, *what.Load())
	if len(fatal) > 0 {
		require.ErrorIs(t, fatal[0], ErrStopped)
		require.ErrorIs(t, fatal[0], errorfs.ErrInjected, "the cause is lost")
	}
	if err != nil && s.applied.Load() > 0 && len(fatal) == 0 {
		require.ErrorContains(t, err, "injected error", *what.Load())
		requireOneLine(t, err)
	}
	s.check(t, *what.Load()+", power cut", base.CrashClone(vfs.CrashCloneCfg{}), s.acked.Load())
	s.check(t, *what.Load(), base, s.acked.Load())
	return true
}

func TestCrashPointsPowerCutAtEveryOperationKeepsWhatWasAcknowledged(t *testing.T) {
	atEveryPoint(t, pointsStride(t, 13), func(t *testing.T, n int64) bool {
		type cut struct {
			what  string
			acked uint64
			disks []*vfs.MemFS
		}
		cuts := make(chan cut, 1)
		base := NewCrashableMemFS()
		s := &script{}
		s.fs = newPointFS(base, func(i int64, op string) error {
			if i == n {
				// Read before the clones are taken: what is acknowledged meanwhile may be missing from them.
				c := cut{what: fmt.Sprintf("power cut at point %d, %s", n, op), acked: s.acked.Load()}
				for _, percent := range []int{0, 50, 100} {
					c.disks = append(c.disks, base.CrashClone(vfs.CrashCloneCfg{
						UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(uint64(n), uint64(percent))),
					}))
				}
				cuts <- c
			}
			return nil
		})
		require.NoError(t, s.run())
		select {
		case c := <-cuts:
			for _, disk := range c.disks {
				s.check(t, c.what, disk, c.acked)
			}
			return true
		default:
			return false
		}
	})
}
