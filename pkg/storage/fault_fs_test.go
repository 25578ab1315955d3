package storage

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
)

func TestDiskFaultsThatMeanNothingAreRefused(t *testing.T) {
	for _, d := range []DiskFault{
		{},
		{Mode: DiskFull},
		{Mode: DiskLow},
		{Mode: DiskError},
		{Mode: DiskVolatile},
		{Mode: DiskSlow, Delay: time.Millisecond},
	} {
		require.NoError(t, d.Validate(), "%+v", d)
	}
	for _, d := range []DiskFault{
		{Mode: "fast"},
		{Mode: DiskSlow},
		{Mode: DiskSlow, Delay: -1},
		{Mode: DiskSlow, Delay: time.Hour},
		{Mode: DiskFull, Delay: time.Second},
		{Delay: time.Second},
	} {
		require.Error(t, d.Validate(), "%+v", d)
	}
}

func TestFullDiskStopsTheEngineAndKeepsWhatWasAcknowledged(t *testing.T) {
	base := NewCrashableMemFS()
	fs := NewFaultFS(base)
	var fatal fatals
	e := open(t, "data", Deps{FS: fs, OnFatal: fatal.on})
	w := &worker{e: e, rng: rand.New(rand.NewPCG(1, 2))}
	w.run(50)
	require.NoError(t, w.err)
	fs.Set(DiskFault{Mode: DiskFull})
	available, total, err := e.DiskSpace()
	require.NoError(t, err)
	require.Zero(t, available)
	require.Positive(t, total)
	within(t, "writing", func() { w.run(1000) })
	require.ErrorIs(t, w.err, ErrStopped)
	require.ErrorIs(t, w.err, syscall.ENOSPC)
	require.Len(t, fatal.all(), 1)
	require.Positive(t, fs.Stats().Full)
	within(t, "closing", func() { require.NoError(t, e.Close()) })
	_, err = fs.Create("data/new", categoryFlush)
	require.ErrorIs(t, err, syscall.ENOSPC)

	fs.Set(DiskFault{})
	last := survivors(t, open(t, "data", Deps{FS: fs}), w.applied.Load())
	require.GreaterOrEqual(t, last, w.acked.Load())
}

// A flush that finds no room is repeated until it does.
func TestFullDiskThatGetsRoomAgainIsWrittenTo(t *testing.T) {
	fs := NewFaultFS(NewMemFS())
	require.NoError(t, fs.MkdirAll("data", 0o755))
	f, err := fs.Create("data/f", categoryFlush)
	require.NoError(t, err)
	fs.Set(DiskFault{Mode: DiskFull})
	_, err = f.Write([]byte("x"))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, f.Preallocate(0, 1), syscall.ENOSPC)
	fs.Set(DiskFault{})
	_, err = f.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	fi, err := fs.Stat("data/f")
	require.NoError(t, err)
	require.Equal(t, int64(1), fi.Size(), "a refused write leaves nothing behind")
}

func TestLowDiskTakesWritesAndSaysThatItHasNoRoom(t *testing.T) {
	mem := vfs.NewMem()
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 60, TotalBytes: 100, UsedBytes: 40})
	fs := NewFaultFS(mem)
	e := open(t, "data", Deps{FS: fs})
	space := func() [2]uint64 {
		available, total, err := e.DiskSpace()
		require.NoError(t, err)
		return [2]uint64{available, total}
	}
	require.Equal(t, [2]uint64{60, 100}, space())
	fs.Set(DiskFault{Mode: DiskLow})
	require.Equal(t, [2]uint64{0, 100}, space())
	write(t, e, func(b *Batch) { fillWork(b, 1, 100) })
	require.Equal(t, uint64(1), fs.Stats().Low)
	fs.Set(DiskFault{})
	require.Equal(t, [2]uint64{60, 100}, space())
}

func TestErrorOfTheLogStopsTheEngineAndNothingElseFails(t *testing.T) {
	fs := NewFaultFS(NewMemFS())
	var fatal fatals
	e := open(t, "data", Deps{FS: fs, OnFatal: fatal.on})
	write(t, e, func(b *Batch) { fillWork(b, 1, 100) })
	fs.Set(DiskFault{Mode: DiskError})
	// What is no log is written as before: a flush ends with its table on the disk.
	f, err := fs.Create("data/other", categoryFlush)
	require.NoError(t, err)
	_, err = f.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	require.Empty(t, fatal.all())

	b := e.NewBatch()
	b.SetNodeRow("x", nil)
	err = e.ApplySync(b)
	b.Close()
	require.ErrorIs(t, err, ErrStopped)
	require.ErrorIs(t, err, syscall.EIO)
	require.Len(t, fatal.all(), 1)
	require.Positive(t, fs.Stats().Error)
	requireStopped(t, e)
}

func TestSlowDiskMakesSyncsWaitUntilItIsCleared(t *testing.T) {
	fs := NewFaultFS(NewMemFS())
	e := open(t, "data", Deps{FS: fs})
	fs.Set(DiskFault{Mode: DiskSlow, Delay: 30 * time.Millisecond})
	start := time.Now()
	write(t, e, func(b *Batch) { fillWork(b, 1, 100) })
	require.GreaterOrEqual(t, time.Since(start), 30*time.Millisecond)
	require.Positive(t, fs.Stats().Slow)

	fs.Set(DiskFault{Mode: DiskSlow, Delay: diskDelayMax})
	slowed := fs.Stats().Slow
	go func() {
		for fs.Stats().Slow == slowed {
			time.Sleep(time.Millisecond)
		}
		fs.Set(DiskFault{})
	}()
	within(t, "a sync of a disk that is fast again", func() { write(t, e, func(b *Batch) { fillWork(b, 2, 100) }) })
}

// TestEveryModeKeepsThePrefixThroughAPowerCut changes faults at random while batches are written over a disk that
// forgets what was not synced.
func TestEveryModeKeepsThePrefixThroughAPowerCut(t *testing.T) {
	faults := []DiskFault{{}, {Mode: DiskVolatile}, {Mode: DiskLow}}
	for seed := range seeds(3) {
		rng := rand.New(rand.NewPCG(uint64(seed), 7))
		base := NewCrashableMemFS()
		fs := NewFaultFS(base)
		e := open(t, "data", Deps{FS: fs})
		w := &worker{e: e, rng: rng}
		var changing sync.WaitGroup
		stop := make(chan struct{})
		changing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Microsecond):
					fs.Set(faults[i%len(faults)])
				}
			}
		})
		w.run(300)
		acked := w.acked.Load()
		crashed := base.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
		close(stop)
		changing.Wait()
		require.NoError(t, w.err)
		require.GreaterOrEqual(t, survivors(t, open(t, "data", Deps{FS: crashed}), w.applied.Load()), acked)
		require.Positive(t, fs.Stats().Volatile)
		fs.Set(DiskFault{})
		require.Zero(t, fs.held.Load(), "bytes are left in memory of a healthy disk")
		require.NoError(t, e.Close())
		require.Empty(t, fs.written, "files are known that nobody writes any more")
		require.Equal(t, w.applied.Load(), survivors(t, open(t, "data", Deps{FS: base}), w.applied.Load()))
	}
}

// contents returns the content of a file on the base and through the FaultFS.
func contents(t *testing.T, fs *FaultFS, name string) (base, seen string) {
	t.Helper()
	for i, from := range []FS{fs.FS, fs} {
		f, err := from.Open(name)
		require.NoError(t, err)
		all, err := io.ReadAll(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		if i == 0 {
			base = string(all)
		} else {
			seen = string(all)
		}
	}
	return base, seen
}

func TestVolatileDiskKeepsUnsyncedBytesFromTheBaseAndShowsThemToReaders(t *testing.T) {
	for name, finish := range map[string]func(fs *FaultFS, f vfs.File) error{
		"sync":      func(_ *FaultFS, f vfs.File) error { return f.Sync() },
		"sync data": func(_ *FaultFS, f vfs.File) error { return f.SyncData() },
		"sync to":   func(_ *FaultFS, f vfs.File) error { _, err := f.SyncTo(3); return err },
		"clear":     func(fs *FaultFS, _ vfs.File) error { fs.Set(DiskFault{}); return nil },
		"close":     func(_ *FaultFS, f vfs.File) error { return f.Close() },
		"rename":    func(fs *FaultFS, _ vfs.File) error { return fs.Rename("d/a", "d/b") },
		"link":      func(fs *FaultFS, _ vfs.File) error { return fs.Link("d/a", "d/b") },
		"reuse": func(fs *FaultFS, f vfs.File) error {
			again, err := fs.ReuseForWrite("d/a", "d/b", categoryWAL)
			if err != nil {
				return err
			}
			if _, err := again.Write([]byte("N")); err != nil {
				return err
			}
			return again.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewFaultFS(NewMemFS())
			require.NoError(t, fs.MkdirAll("d", 0o755))
			fs.Set(DiskFault{Mode: DiskVolatile})
			f, err := fs.Create("d/a", categoryWAL)
			require.NoError(t, err)
			for range 3 {
				_, err = f.Write([]byte("x"))
				require.NoError(t, err)
			}
			fi, err := f.Stat()
			require.NoError(t, err)
			require.Equal(t, int64(3), fi.Size())
			fi, err = fs.FS.Stat("d/a")
			require.NoError(t, err)
			require.Zero(t, fi.Size(), "the base has it before it was synced")
			require.NoError(t, finish(fs, f))

			file, onBase, seen := "d/a", "xxx", "xxx"
			switch name {
			case "close":
				onBase = ""
			case "rename", "link":
				file, onBase = "d/b", ""
			case "reuse":
				file, onBase, seen = "d/b", "xxx", "Nxx"
			}
			gotBase, gotSeen := contents(t, fs, file)
			require.Equal(t, onBase, gotBase)
			require.Equal(t, seen, gotSeen)
			fs.Set(DiskFault{})
			gotBase, _ = contents(t, fs, file)
			require.Equal(t, seen, gotBase)
			require.Zero(t, fs.held.Load())
			require.Zero(t, fs.orphans.Load())
		})
	}
}

func TestVolatileDiskHoldsNoMoreThanItsLimits(t *testing.T) {
	fs := NewFaultFS(NewMemFS())
	require.NoError(t, fs.MkdirAll("d", 0o755))
	fs.Set(DiskFault{Mode: DiskVolatile})
	f, err := fs.Create("d/large", categoryWAL)
	require.NoError(t, err)
	chunk := make([]byte, heldBytesMax/4)
	for range 6 {
		_, err := f.Write(chunk)
		require.NoError(t, err)
		require.LessOrEqual(t, fs.held.Load(), int64(heldBytesMax))
	}
	require.NoError(t, f.Close())
	for i := range orphansMax + 10 {
		f, err := fs.Create(fmt.Sprintf("d/%d", i), categoryWAL)
		require.NoError(t, err)
		_, err = f.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.LessOrEqual(t, fs.orphans.Load(), int64(orphansMax))
	}
	require.NoError(t, fs.RemoveAll("d"))
	require.Zero(t, fs.held.Load())
	require.Zero(t, fs.orphans.Load())
	require.Empty(t, fs.written)
}

const envVolatileChild = "CAPROCK_STORAGE_VOLATILE_CHILD"

// TestVolatileDiskLosesUnsyncedBatchesToSIGKILL kills a process that writes on a real disk. Without the fault the kernel
// keeps what the process wrote, synced or not, so that a kill alone proves nothing about syncs.
func TestVolatileDiskLosesUnsyncedBatchesToSIGKILL(t *testing.T) {
	for _, mode := range []DiskMode{DiskHealthy, DiskVolatile} {
		t.Run("mode="+string(mode), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			cmd := exec.Command(os.Args[0], "-test.run=^TestVolatileDiskChild$", "-test.v") //nolint:gosec // it runs itself
			cmd.Env = append(os.Environ(), envVolatileChild+"="+string(mode)+":"+dir)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			var acked, applied uint64
			lines := bufio.NewScanner(out)
			for applied == 0 && lines.Scan() {
				_, _ = fmt.Sscanf(lines.Text(), "acked=%d applied=%d", &acked, &applied)
			}
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait(), "killed")
			require.Positive(t, acked)

			last := survivors(t, open(t, dir, Deps{}), applied)
			require.GreaterOrEqual(t, last, acked)
			if mode == DiskVolatile {
				require.Equal(t, acked, last, "batches survived that were never synced")
			} else {
				require.Greater(t, last, acked, "the kernel lost what it was given")
			}
		})
	}
}

// TestVolatileDiskChild is the process that is killed.
func TestVolatileDiskChild(t *testing.T) {
	mode, dir, ok := strings.Cut(os.Getenv(envVolatileChild), ":")
	if !ok {
		t.Skip("this is the child of another test")
	}
	const synced, unsynced = 10, 12
	fs := NewFaultFS(DiskFS())
	e, err := Open(dir, DefaultConfig(), Deps{FS: fs})
	require.NoError(t, err)
	fs.Set(DiskFault{Mode: DiskMode(mode)})
	for i := uint64(1); i <= synced+unsynced; i++ {
		b := e.NewBatch()
		// Large enough for the log's blocks to be written without a sync asking for it, and small enough for all batches to
		// fit into the first memtable: with the next one comes another log, and this one is synced.
		fillWork(b, i, 5<<10)
		if i <= synced {
			require.NoError(t, e.ApplySync(b))
		} else {
			require.NoError(t, e.ApplyNoSync(b))
		}
		b.Close()
	}
	time.Sleep(50 * time.Millisecond) // the log is written by a goroutine of its own
	fmt.Printf("\nacked=%d applied=%d\n", synced, synced+unsynced)
	select {}
}
