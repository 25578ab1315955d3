package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// envSeeds raises the number of seeds that the crash tests run: CAPROCK_STORAGE_SEEDS=500 go test -run Crash.
const envSeeds = "CAPROCK_STORAGE_SEEDS"

func seeds(fallback int) int {
	if n, err := strconv.Atoi(os.Getenv(envSeeds)); err == nil {
		return n
	}
	return fallback
}

// The workload: batch i, counted from 1, writes rows of several key spaces. Some are its own, so that a torn or missing
// batch shows; some are overwritten by later batches, so that a batch that overtook another shows.
const (
	workGroups = 3 // and as many partitions: batch i writes S and E of one partition
	workKeys   = 7
)

func workGroup(i uint64) kv.GroupID { return kv.GroupID(1 + i%workGroups) }

func workValue(i uint64, size int) []byte {
	v := binary.BigEndian.AppendUint64(nil, i)
	return append(v, bytes.Repeat([]byte{byte(i)}, size)...)
}

func fillWork(b *Batch, i uint64, size int) {
	g := workGroup(i)
	b.AppendEntry(g, LogEntry{Index: i, Term: 1, Data: workValue(i, size)})
	b.SetHardState(g, HardState{Term: 1, Commit: i})
	b.SetStrong(99, binary.BigEndian.AppendUint64(nil, i), Strong{Revision: i, Value: workValue(i, size)})
	b.SetStrong(g, []byte{byte(i % workKeys)}, Strong{Revision: i})
	b.SetSiblings(kv.PartitionID(i%workGroups), []byte{byte(i % workKeys)}, oneSibling(1, causal.HLC(i), "v"))
	b.SetNodeRow("last", binary.BigEndian.AppendUint64(nil, i))
}

// survivors returns the last batch that is there after checking that what is there is exactly a prefix of whole batches.
func survivors(tb testing.TB, e *Engine, applied uint64) uint64 {
	tb.Helper()
	last := uint64(0)
	if v, found, err := e.NodeRow("last"); found {
		last = binary.BigEndian.Uint64(v)
	} else {
		require.NoError(tb, err)
	}
	require.LessOrEqual(tb, last, applied)
	for i := uint64(1); i <= applied; i++ {
		_, hasEntry, err := e.Log().Term(workGroup(i), i)
		require.NoError(tb, err)
		s, hasOwn, err := e.State().Strong(99, binary.BigEndian.AppendUint64(nil, i))
		require.NoError(tb, err)
		require.Equal(tb, i <= last, hasEntry, "log entry of batch %d; the last batch is %d", i, last)
		require.Equal(tb, i <= last, hasOwn, "own row of batch %d; the last batch is %d", i, last)
		if hasOwn {
			require.Equal(tb, workValue(i, len(s.Value)-8), s.Value)
		}
	}
	checkOverwritten(tb, e, last)
	return last
}

// checkOverwritten checks the rows that each batch overwrites against those of the last batch that should be there.
func checkOverwritten(tb testing.TB, e *Engine, last uint64) {
	tb.Helper()
	for i := last; i > 0 && i+workGroups*workKeys > last; i-- {
		if i+workGroups > last {
			h, found, err := e.Log().HardState(workGroup(i))
			require.NoError(tb, err)
			require.True(tb, found)
			require.Equal(tb, i, h.Commit)
		}
		s, hasS, set, hasE, err := e.State().Both(kv.PartitionID(i%workGroups), []byte{byte(i % workKeys)})
		require.NoError(tb, err)
		require.True(tb, hasE && hasS)
		require.Equal(tb, causal.HLC(i), set.Siblings[0].Dot.Time)
		require.Equal(tb, i, s.Revision)
	}
}

// worker writes batches in order and knows which were acknowledged as synced.
type worker struct {
	e       *Engine
	rng     *rand.Rand
	applied atomic.Uint64 // the last batch handed to the engine
	acked   atomic.Uint64 // the last batch whose sync was acknowledged
	err     error         // of the first failed operation, once run returned
}

// run writes n batches after the applied one, or fewer if the engine fails. Syncs are waited for by a second goroutine,
// as the store loop does it, so that several are under way.
func (w *worker) run(n int) {
	type wait struct {
		b *Batch
		i uint64
	}
	waits := make(chan wait, 8)
	var waiter sync.WaitGroup
	var waitErr error
	waiter.Go(func() {
		for s := range waits {
			if err := s.b.SyncWait(); err == nil {
				w.acked.Store(s.i)
			} else if waitErr == nil {
				waitErr = err
			}
			s.b.Close()
		}
	})
	for range n {
		i := w.applied.Load() + 1
		b := w.e.NewBatch()
		fillWork(b, i, w.size())
		w.applied.Store(i)
		if w.rng.IntN(3) == 0 {
			w.err = w.e.ApplyNoSync(b)
			b.Close()
		} else if w.err = w.e.ApplyNoSyncWait(b); w.err == nil {
			waits <- wait{b, i}
		} else {
			b.Close()
		}
		if w.err != nil {
			break
		}
	}
	close(waits)
	waiter.Wait()
	if w.err == nil {
		w.err = waitErr
	}
}

// size picks mostly small values, some that fill memtables, and a few that are larger than one.
func (w *worker) size() int {
	switch w.rng.IntN(40) {
	case 0:
		return 200 << 10
	case 1, 2, 3, 4:
		return 10 << 10
	}
	return w.rng.IntN(200)
}

// TestCrashKeepsAPrefixThatHoldsEverySyncedBatch cuts the power while batches are written, several times in a row, each
// time going on from what was left.
func TestCrashKeepsAPrefixThatHoldsEverySyncedBatch(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		for seed := range seeds(3) {
			t.Run(fmt.Sprintf("unsynced=%d/seed=%d", percent, seed), func(t *testing.T) {
				crashAndGoOn(t, percent, uint64(seed))
			})
		}
	}
}

func crashAndGoOn(t *testing.T, percent int, seed uint64) {
	const rounds, batches = 4, 60
	rng := rand.New(rand.NewPCG(seed, uint64(percent)))
	fs, last := NewCrashableMemFS(), uint64(0)
	for range rounds {
		e := open(t, "data", Deps{FS: fs})
		w := &worker{e: e, rng: rand.New(rand.NewPCG(rng.Uint64(), 1))}
		w.applied.Store(last)
		w.acked.Store(last)
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.run(batches)
		}()
		// Anywhere from before the first batch to after the last.
		for until := last + rng.Uint64N(batches+2); w.applied.Load() < until; {
			select {
			case <-done:
				until = 0
			case <-time.After(50 * time.Microsecond):
			}
		}
		// Read before the clone is taken: what is acknowledged while it is taken may be missing from it.
		acked := w.acked.Load()
		crashed := fs.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(rng.Uint64(), 2)),
		})
		<-done
		require.NoError(t, w.err)
		require.NoError(t, e.Close())

		e = open(t, "data", Deps{FS: crashed})
		last = survivors(t, e, w.applied.Load())
		require.GreaterOrEqual(t, last, acked, "a batch acknowledged as synced is gone")
		require.NoError(t, e.Close())
		// Go on from a clone taken right after the restart: recovery must itself survive a power cut.
		fs = crashed.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(rng.Uint64(), 2)),
		})
	}
}

// TestCrashWithoutSyncsLosesThem keeps the crash tests honest: if the filesystem kept everything, they would prove
// nothing.
func TestCrashWithoutSyncsLosesThem(t *testing.T) {
	fs := NewCrashableMemFS()
	e := open(t, "data", Deps{FS: fs})
	b := e.NewBatch()
	fillWork(b, 1, 10)
	require.NoError(t, e.ApplyNoSync(b))
	b.Close()
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	require.Zero(t, survivors(t, open(t, "data", Deps{FS: crashed}), 1))
}

// TestASyncMakesDurableWhatWasAppliedBefore is what lets apply batches go without a sync of their own.
func TestASyncMakesDurableWhatWasAppliedBefore(t *testing.T) {
	fs := NewCrashableMemFS()
	e := open(t, "data", Deps{FS: fs})
	for i := uint64(1); i <= 20; i++ {
		b := e.NewBatch()
		fillWork(b, i, 3000)
		if i < 20 {
			require.NoError(t, e.ApplyNoSync(b))
		} else {
			require.NoError(t, e.ApplySync(b))
		}
		b.Close()
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	require.Equal(t, uint64(20), survivors(t, open(t, "data", Deps{FS: crashed}), 20))
}

// TestCrashDuringOpenLeavesADirectoryThatOpens cuts the power at every step of creating the storage and of opening it
// again, several times at each step because what survives is drawn.
func TestCrashDuringOpenLeavesADirectoryThatOpens(t *testing.T) {
	for percent, draws := range map[int]int{0: 1, 50: 4, 100: 1} {
		rng := rand.New(rand.NewPCG(uint64(percent), 3))
		for name, before := range map[string]uint64{"new": 0, "existing": 1} {
			fs := NewCrashableMemFS()
			if before > 0 {
				e := open(t, "data", Deps{FS: fs})
				write(t, e, func(b *Batch) { fillWork(b, 1, 5000) })
				require.NoError(t, e.Close())
			}
			var clones []*vfs.MemFS
			step := &stepFS{FS: fs, step: func(string) {
				for range draws {
					clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
				}
			}}
			require.NoError(t, open(t, "data", Deps{FS: step}).Close())
			require.Greater(t, len(clones), 5*draws)
			for i, clone := range clones {
				e, err := Open("data", smallConfig(), Deps{FS: clone})
				require.NoError(t, err, "%s, unsynced=%d, clone %d", name, percent, i)
				require.Equal(t, before, survivors(t, e, before))
				write(t, e, func(b *Batch) { fillWork(b, before+1, 1) })
				require.Equal(t, before+1, survivors(t, e, before+1))
				require.NoError(t, e.Close())
			}
		}
	}
}

// TestMarkersFollowWhatTheyName checks the order in which names become durable when the storage is opened.
func TestMarkersFollowWhatTheyName(t *testing.T) {
	fs := &stepFS{FS: NewMemFS(), step: func(string) {}}
	for range 2 {
		var steps []string
		fs.step = func(step string) { steps = append(steps, step) }
		require.NoError(t, open(t, "data", Deps{FS: fs}).Close())
		markers, dirty := 0, false
		for _, s := range steps {
			isMarker := strings.Contains(s, " marker.")
			if isMarker {
				require.False(t, dirty, "%s before the directory was synced:\n%s", s, strings.Join(steps, "\n"))
				markers++
			}
			switch {
			case strings.HasPrefix(s, "sync "):
				dirty = false
			case isMarker || strings.Contains(s, " MANIFEST"):
				dirty = true
			}
		}
		require.Positive(t, markers)
	}
}

// stepFS calls step before each file is created or removed and each directory is synced, with what and its name.
type stepFS struct {
	vfs.FS
	mu   sync.Mutex
	step func(string)
}

func (s *stepFS) do(what, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step(what + " " + s.FS.PathBase(name))
}

func (s *stepFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	s.do("create", name)
	return s.FS.Create(name, c)
}

func (s *stepFS) Remove(name string) error {
	s.do("remove", name)
	return s.FS.Remove(name)
}

func (s *stepFS) OpenDir(name string) (vfs.File, error) {
	f, err := s.FS.OpenDir(name)
	return stepDir{f, s, name}, err
}

func (s *stepFS) Unwrap() vfs.FS { return s.FS }

type stepDir struct {
	vfs.File
	s    *stepFS
	name string
}

func (d stepDir) Sync() error {
	d.s.do("sync", d.name)
	return d.File.Sync()
}
