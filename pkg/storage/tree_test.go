package storage

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// naiveDigests is the dumb twin of the tree: it hashes every row of E.
func naiveDigests(t testing.TB, e *Engine, p kv.PartitionID) *TreeDigests {
	t.Helper()
	out := &TreeDigests{}
	require.NoError(t, e.State().ScanSiblings(p, nil, func(key []byte, set causal.SiblingSet) (bool, error) {
		out[PlaceOf(key).Node()].Add(hashSiblings(key, causal.AppendSet(nil, set)))
		return true, nil
	}))
	return out
}

func requireTree(t testing.TB, e *Engine, p kv.PartitionID, what string) {
	t.Helper()
	got, err := e.Digests(t.Context(), p)
	require.NoError(t, err)
	require.True(t, *naiveDigests(t, e, p) == *got, "%s: the tree of partition %d does not stand for its rows", what, p)
}

func TestTreeStandsForTheRowsWhateverHappens(t *testing.T) {
	for seed := range uint64(seeds(3)) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 31))
			fs := vfs.NewCrashableMem()
			e, err := Open("data", smallConfig(), Deps{FS: fs})
			require.NoError(t, err)
			defer func() { require.NoError(t, e.Close()) }()
			for step := range 300 {
				p := kv.PartitionID(r.IntN(2))
				switch n := r.IntN(20); {
				case n < 12:
					b := e.NewBatch()
					for range 1 + r.IntN(4) {
						key := fmt.Appendf(nil, "key-%d", r.IntN(200))
						if r.IntN(4) == 0 {
							b.DeleteSiblings(p, key)
							continue
						}
						b.SetSiblings(p, key, oneSibling(1, causal.HLC(step+1), "v"))
					}
					if r.IntN(3) == 0 {
						require.NoError(t, e.ApplySync(b))
					} else {
						require.NoError(t, e.ApplyNoSync(b))
					}
					b.Close()
				case n < 18:
					requireTree(t, e, p, fmt.Sprintf("step %d", step))
				default:
					left := fs.CrashClone(vfs.CrashCloneCfg{
						UnsyncedDataPercent: []int{0, 50, 100}[r.IntN(3)], RNG: rand.New(rand.NewPCG(seed, uint64(step))),
					})
					require.NoError(t, e.Close())
					fs = left
					e, err = Open("data", smallConfig(), Deps{FS: fs})
					require.NoError(t, err)
					requireTree(t, e, 0, fmt.Sprintf("after the crash of step %d", step))
				}
			}
		})
	}
}

func TestCleanTreeIsNotTakenAnewAfterARestart(t *testing.T) {
	fs := NewMemFS()
	e := open(t, "data", Deps{FS: fs})
	for i := range 300 {
		write(t, e, func(b *Batch) { b.SetSiblings(3, fmt.Appendf(nil, "key-%d", i), oneSibling(1, 1, "v")) })
	}
	requireTree(t, e, 3, "before")
	write(t, e, func(b *Batch) { b.SetSiblings(3, []byte("key-7"), oneSibling(1, 2, "v")) })
	require.NoError(t, e.Close())
	e = open(t, "data", Deps{FS: fs})
	defer func() { require.NoError(t, e.Close()) }()
	var lost []int
	for i := range e.trees.of(3).segments {
		if e.trees.of(3).segments[i].lost {
			lost = append(lost, i)
		}
	}
	require.Equal(t, []int{PlaceOf([]byte("key-7")).segment()}, lost)
	require.False(t, e.State().Repair(3).Healing)
	requireTree(t, e, 3, "after")
}

func TestWritersAndTakersAtOnceLeaveNoStaleDigest(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e, err := Open("data", smallConfig(), Deps{FS: fs})
	require.NoError(t, err)
	var writing, taking sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 5))
			for i := range 1500 {
				b := e.NewBatch()
				key := fmt.Appendf(nil, "key-%d", r.IntN(20)) // few nodes, so that writers meet in them
				if r.IntN(5) == 0 {
					b.DeleteSiblings(0, key)
				} else {
					b.SetSiblings(0, key, oneSibling(1, causal.HLC(i+1), fmt.Sprint(w)))
				}
				if err := e.ApplyNoSync(b); err != nil {
					panic(err)
				}
				b.Close()
			}
		})
	}
	for range 2 {
		taking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := e.Digests(t.Context(), 0); err != nil {
					panic(err)
				}
			}
		})
	}
	writing.Wait()
	close(stop)
	taking.Wait()
	requireTree(t, e, 0, "in memory")
	left := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	require.NoError(t, e.Close())
	e, err = Open("data", smallConfig(), Deps{FS: left})
	require.NoError(t, err)
	requireTree(t, e, 0, "after a crash")
	require.NoError(t, e.Close())
}

func TestChecksFindWhatIsDamagedUnderneathAndNothingElse(t *testing.T) {
	e := openMem(t)
	key := func(i int) []byte { return fmt.Appendf(nil, "key-%d", i) }
	for i := range 200 {
		write(t, e, func(b *Batch) { b.SetSiblings(0, key(i), oneSibling(1, causal.HLC(i+1), "value")) })
	}
	requireTree(t, e, 0, "before")
	check := func() (c SiblingsCheck) {
		_, err := e.Digests(t.Context(), 0)
		require.NoError(t, err)
		for node := range TreeNodes {
			one, err := e.CheckNode(t.Context(), 0, node)
			require.NoError(t, err)
			c.Rows += one.Rows
			c.Lost = append(c.Lost, one.Lost...)
			c.TreeDamaged = c.TreeDamaged || one.TreeDamaged
		}
		return c
	}
	rows := func() (c SiblingsCheck) {
		for seen := 0; ; {
			one, err := e.CheckRows(0, c.Next, 7)
			require.NoError(t, err)
			c.Unindexed, c.Next = append(c.Unindexed, one.Unindexed...), one.Next
			c.Lost = append(c.Lost, one.Lost...)
			seen += one.Rows
			if c.Next == nil {
				c.Rows = seen
				return c
			}
		}
	}
	got := check()
	require.True(t, got.Sound())
	require.Equal(t, 200, got.Rows)
	require.True(t, func() bool { c := rows(); return c.Sound() && c.Rows == 200 }())

	require.NoError(t, e.LoseSiblings(0, false, false, key(3)))
	require.NoError(t, e.LoseSiblings(0, true, false, key(4)))
	got = check()
	require.ElementsMatch(t, [][]byte{key(3), key(4)}, got.Lost)
	require.False(t, got.TreeDamaged)
	require.NoError(t, e.LoseSiblings(0, false, true, key(5)))
	got = check()
	require.True(t, got.TreeDamaged, "a row that is gone with its hash is missing from the digest")
	writeRaw(t, e, appendIndexKey(nil, 0, PlaceOf(key(6)), key(6)), []byte("nonsense"))
	require.Equal(t, [][]byte{key(6)}, rows().Unindexed)
}

func TestRowsOfBeforeTheTreeAreKnownToLackIt(t *testing.T) {
	fs := NewMemFS()
	e := open(t, "data", Deps{FS: fs})
	write(t, e, func(b *Batch) { b.SetSiblings(2, []byte("k"), oneSibling(1, 1, "v")) })
	b := e.NewBatch()
	b.removeRange([]byte{prefixTree}, []byte{prefixDead})
	require.NoError(t, e.ApplySync(b))
	b.Close()
	require.NoError(t, e.Close())
	e = open(t, "data", Deps{FS: fs})
	defer func() { require.NoError(t, e.Close()) }()
	r := e.State().Repair(2)
	require.True(t, r.Healing)
	requireTree(t, e, 2, "after")
	require.Equal(t, RepairState{}, e.State().Repair(1))
}

// A disk that has kept a partition knows it when the rows are gone, whatever else went with them.
func TestRowsTakenAwayUnderneathAreMissedAtTheNextStart(t *testing.T) {
	for name, test := range map[string]struct {
		lose    func(e *Engine) error
		healing bool
	}{
		"nothing":        {lose: func(*Engine) error { return nil }},
		"an empty one":   {lose: func(e *Engine) error { return e.LoseAllSiblings(1) }},
		"rows and tree":  {lose: func(e *Engine) error { return e.LoseAllSiblings(2) }, healing: true},
		"all rows":       {lose: func(e *Engine) error { return e.LoseSiblings(2, false, false, []byte("a"), []byte("b")) }, healing: true},
		"tree and notes": {lose: func(e *Engine) error { return e.removeTree(2) }, healing: true},
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewMemFS()
			e := open(t, "data", Deps{FS: fs})
			for range 2 {
				for p := range kv.PartitionID(3) {
					require.NoError(t, e.KeepSiblings(p, true))
					require.False(t, e.Healing(p))
				}
			}
			write(t, e, func(b *Batch) {
				b.SetSiblings(2, []byte("a"), oneSibling(1, 1, "v"))
				b.SetSiblings(2, []byte("b"), oneSibling(1, 2, "v"))
			})
			requireTree(t, e, 2, "folded in")
			require.NoError(t, test.lose(e))
			require.NoError(t, e.Close())
			for range 2 { // and it stays so
				e = open(t, "data", Deps{FS: fs})
				for p := range kv.PartitionID(3) {
					require.NoError(t, e.KeepSiblings(p, true))
				}
				require.Equal(t, test.healing, e.Healing(2))
				require.Equal(t, name == "an empty one", e.Healing(1))
				require.False(t, e.Healing(0))
				requireTree(t, e, 2, "the tree is that of what is left, so that the others' rows are missed")
				require.NoError(t, e.Close())
			}
		})
	}
}

// A replica that comes into a partition which others have kept begins with nothing, and must not answer for them.
func TestDiskThatKeepsAPartitionOfOthersBeginsByHealing(t *testing.T) {
	e := openMem(t)
	require.NoError(t, e.KeepSiblings(1, false))
	require.True(t, e.Healing(1))
	done, err := e.EndHealing(1, e.Losses(1))
	require.NoError(t, err)
	require.True(t, done)
	require.NoError(t, e.KeepSiblings(1, false))
	require.False(t, e.Healing(1), "it keeps it now")
}

func TestHealingEndsOnlyIfNothingWasLostMeanwhile(t *testing.T) {
	e := openMem(t)
	require.NoError(t, e.BeginHealing(1))
	losses := e.Losses(1)
	require.NoError(t, e.BeginHealing(1))
	done, err := e.EndHealing(1, losses)
	require.NoError(t, err)
	require.False(t, done)
	require.True(t, e.Healing(1))
	require.NoError(t, e.ChangeRepair(1, func(r *RepairState) { r.Quarantined = true }))
	done, err = e.EndHealing(1, e.Losses(1))
	require.NoError(t, err)
	require.False(t, done, "the rows are being replaced")
	require.NoError(t, e.ChangeRepair(1, func(r *RepairState) { r.Quarantined = false }))
	done, err = e.EndHealing(1, e.Losses(1))
	require.NoError(t, err)
	require.True(t, done)
	require.False(t, e.Healing(1))
}

// removeTree takes away what lies beside the rows of E of a partition.
func (e *Engine) removeTree(p kv.PartitionID) error {
	b := e.NewBatch()
	defer b.Close()
	from := appendTreeRow(nil, p, 0)[:treeRowBytes-1]
	b.removeRange(from, appendPrefixEnd(nil, from))
	return e.ApplySync(b)
}

func TestRepairStateSurvivesAPowerCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e, err := Open("data", smallConfig(), Deps{FS: fs})
	require.NoError(t, err)
	want := RepairState{Promised: 20, Committed: 10, Healing: true}
	require.NoError(t, e.ChangeRepair(1, func(r *RepairState) { r.Promised, r.Healing = 20, true }))
	require.NoError(t, e.ChangeRepair(1, func(r *RepairState) { r.Committed = 10 }))
	require.Equal(t, want, e.State().Repair(1))
	left := fs.CrashClone(vfs.CrashCloneCfg{})
	require.NoError(t, e.Close())
	e, err = Open("data", smallConfig(), Deps{FS: left})
	require.NoError(t, err)
	require.Equal(t, want, e.State().Repair(1))
	require.NoError(t, e.Close())
}

func TestDamagedBlocksAreReplacedByWhatCanBeRead(t *testing.T) {
	fs := NewMemFS()
	e := open(t, "data", Deps{FS: fs})
	const keys = 4000
	key := func(i int) []byte { return fmt.Appendf(nil, "key-%05d", i) }
	value := make([]byte, 200)
	random := rand.NewChaCha8([32]byte{})
	for p := range kv.PartitionID(3) { // neighbours on both sides
		write(t, e, func(b *Batch) {
			for i := range keys {
				_, _ = random.Read(value) // it never fails
				b.SetSiblings(p, key(i), oneSibling(1, causal.HLC(i+1), string(value)))
			}
		})
	}
	for p := range kv.PartitionID(3) {
		requireTree(t, e, p, "before")
	}
	require.NoError(t, e.db.Flush())
	require.NoError(t, e.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false))
	lower := appendSiblingsKey(nil, 1, key(keys/2))
	tables, err := e.db.SSTables()
	require.NoError(t, err)
	require.NoError(t, e.Close())
	hit := 0
	for _, level := range tables {
		for _, info := range level {
			if string(info.Smallest.UserKey) <= string(lower) && string(lower) <= string(info.Largest.UserKey) {
				// Somewhere in the middle, so that its first and last blocks stay as they are.
				damage(t, fs, fmt.Sprintf("%06d.sst", info.BackingSSTNum), func(n int) int { return n / 2 }, func(n int) int { return n/2 + 65 })
				hit++
			}
		}
	}
	require.Equal(t, 1, hit)
	e = open(t, "data", Deps{FS: fs})
	defer func() { require.NoError(t, e.Close()) }()
	broken := kv.PartitionID(99)
	for p := range kv.PartitionID(3) {
		c, err := e.CheckRows(p, nil, 2*keys)
		require.NoError(t, err)
		if c.BlockDamaged {
			broken = p
		}
	}
	require.NotEqual(t, kv.PartitionID(99), broken, "no damage is seen")
	require.NoError(t, e.ReplaceSiblings(t.Context(), broken))
	copies := 0
	require.NoError(t, e.State().ScanCopies(broken, func([]byte, causal.SiblingSet) (bool, error) { copies++; return true, nil }))
	require.Greater(t, copies, keys*8/10)
	require.Less(t, copies, keys)
	c, err := e.CheckRows(broken, nil, 2*keys)
	require.NoError(t, err)
	require.True(t, c.Sound())
	require.Zero(t, c.Rows)
	requireTree(t, e, broken, "after the replacement")
	require.NoError(t, e.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false), "nobody reads the damaged block any more")
}

func TestDeadSetsAreIndexedByTheLatestTimeTheySpeakOf(t *testing.T) {
	e := openMem(t)
	dead := func(at causal.HLC) causal.SiblingSet {
		d := causal.Dot{Node: 1, Time: at}
		return causal.SiblingSet{}.Put(causal.Sibling{ID: d, Dot: d, Stamp: causal.Stamp{Time: at, Node: 1}, Deleted: true}, nil)
	}
	write(t, e, func(b *Batch) {
		b.SetSiblings(0, []byte("live"), oneSibling(1, 5, "v"))
		b.SetSiblings(0, []byte("b"), dead(7))
		b.SetSiblings(0, []byte("a"), dead(9))
		b.SetSiblings(1, []byte("other"), dead(1))
	})
	scan := func(after *DeadNote, until causal.HLC) (out []DeadNote) {
		require.NoError(t, e.State().ScanDead(0, after, until, func(n DeadNote) (bool, error) { out = append(out, n); return true, nil }))
		return out
	}
	all := []DeadNote{{7, []byte("b")}, {9, []byte("a")}}
	require.Equal(t, all, scan(nil, ^causal.HLC(0)))
	require.Equal(t, all[:1], scan(nil, 8))
	require.Equal(t, all[1:], scan(&all[0], 9))
	write(t, e, func(b *Batch) { b.DeleteDead(0, 7, []byte("b")) })
	require.Equal(t, all[1:], scan(nil, 9))
}

// cpuSeconds is the processor time that this process has used, compactions included.
func cpuSeconds(b *testing.B) float64 {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkEventualPut is what a put of 100 bytes costs the engine, 64 to a batch, without its tree, and with it and
// the folding in of each 32,768 changes.
func BenchmarkEventualPut(b *testing.B) {
	set := oneSibling(1, causal.MakeHLC(1_800_000_000_000, 1), string(make([]byte, 100)))
	for _, tree := range []bool{false, true} {
		b.Run(fmt.Sprintf("tree=%t", tree), func(b *testing.B) {
			e, err := Open(b.TempDir(), DefaultConfig(), Deps{})
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, e.Close()) })
			b.ReportAllocs()
			var key []byte
			began := cpuSeconds(b)
			for i := 0; b.Loop(); {
				batch := e.NewBatch()
				for range 64 {
					key = benchKey(key, i%1_000_000)
					i++
					if tree {
						batch.SetSiblings(0, key, set)
						continue
					}
					batch.key = appendSiblingsKey(batch.key[:0], 1, key)
					batch.head = causal.AppendSet(batch.head[:0], set)
					batch.put(formatSiblings, batch.head, nil)
				}
				if err := e.ApplyNoSync(batch); err != nil {
					b.Fatal(err)
				}
				batch.Close()
				if tree && i%(64*512) == 0 {
					if _, err := e.Digests(b.Context(), 0); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric((cpuSeconds(b)-began)*1e9/float64(b.N)/64, "cpu-ns/put")
		})
	}
}
