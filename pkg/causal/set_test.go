package causal

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestMergeIsCommutativeAssociativeIdempotent(t *testing.T) {
	for name, draw := range map[string]func(*rapid.T, string) SiblingSet{"sound": drawSet, "broken": drawBrokenSet} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				a, b, c := draw(t, "a"), draw(t, "b"), draw(t, "c")
				ab := Merge(a, b)
				checkInvariant(t, ab)
				if !ab.Equal(Merge(b, a)) {
					t.Fatalf("not commutative: %+v, %+v", ab, Merge(b, a))
				}
				if left, right := Merge(ab, c), Merge(a, Merge(b, c)); !left.Equal(right) {
					t.Fatalf("not associative: %+v, %+v", left, right)
				}
				if !Merge(a, a).Equal(a) || !Merge(ab, b).Equal(ab) || !Merge(a, ab).Equal(ab) {
					t.Fatalf("not idempotent")
				}
				if !Merge(a, SiblingSet{}).Equal(a) || !Merge(SiblingSet{}, a).Equal(a) {
					t.Fatalf("the empty set is not neutral")
				}
			})
		})
	}
}

// TestMergeKeepsWhatNoContextSupersedes checks each dot of the universe against the definition.
func TestMergeKeepsWhatNoContextSupersedes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSet(t, "a"), drawSet(t, "b")
		m := Merge(a, b)
		for _, d := range universe() {
			_, inA := a.Holds(d)
			_, inB := b.Holds(d)
			want := inA && inB || inA && !b.Context.Covers(d) || inB && !a.Context.Covers(d)
			got, held := m.Holds(d)
			if held != want {
				t.Fatalf("dot %v: held %v, want %v; a %+v, b %+v", d, held, want, a, b)
			}
			if held && got.compare(new(siblingOf(d))) != 0 {
				t.Fatalf("dot %v came back as %+v", d, got)
			}
			if m.Covers(d) != (a.Covers(d) || b.Covers(d)) {
				t.Fatalf("dot %v: covered %v", d, m.Covers(d))
			}
		}
	})
}

func TestMergeReturnsTheNewerSideWithoutAllocating(t *testing.T) {
	older := SiblingSet{}.Put(siblingOf(Dot{1, 1}), nil)
	newer := older.Put(siblingOf(Dot{2, 2}), older.Context)
	var out SiblingSet
	allocs := testing.AllocsPerRun(100, func() { out = Merge(older, newer) })
	require.Zero(t, allocs)
	require.True(t, out.Equal(newer))
	allocs = testing.AllocsPerRun(100, func() { out = Merge(newer, older) })
	require.Zero(t, allocs)
	require.True(t, out.Equal(newer))
}

func TestPutDropsExactlyWhatItsContextCovers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, read := drawSet(t, "set"), drawVector(t, "read")
		before := AppendSet(nil, s)
		w := siblingOf(Dot{
			Node: kv.NodeID(rapid.IntRange(1, universeNodes).Draw(t, "node")),
			Time: max(s.Context.Latest(), read.Latest()) + 1,
		})
		out := s.Put(w, read)
		checkInvariant(t, out)
		if _, held := out.Holds(w.Dot); !held {
			t.Fatalf("the write is not in the set")
		}
		for _, d := range universe() {
			if d == w.Dot {
				continue
			}
			_, was := s.Holds(d)
			if _, is := out.Holds(d); is != (was && !read.Covers(d)) {
				t.Fatalf("dot %v: was %v, is %v, read covers it: %v", d, was, is, read.Covers(d))
			}
			if want := s.Covers(d) || read.Covers(d) || d.Node == w.Dot.Node && d.Time <= w.Dot.Time; out.Covers(d) != want {
				t.Fatalf("dot %v: covered %v, want %v", d, out.Covers(d), want)
			}
		}
		if !slices.Equal(before, AppendSet(nil, s)) {
			t.Fatalf("Put changed its receiver")
		}
	})
}

func TestDropRemovesForGood(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSet(t, "set")
		before := AppendSet(nil, s)
		odd := func(w Sibling) bool { return w.Dot.Time%2 == 1 }
		out := s.Drop(odd)
		checkInvariant(t, out)
		if !out.Context.Equal(s.Context) {
			t.Fatalf("Drop changed the context")
		}
		for _, d := range universe() {
			_, was := s.Holds(d)
			if _, is := out.Holds(d); is != (was && d.Time%2 == 1) {
				t.Fatalf("dot %v: was %v, is %v", d, was, is)
			}
		}
		// A replica that still holds what was dropped does not bring it back.
		if again := Merge(out, s); !again.Equal(out) {
			t.Fatalf("merged back: %+v", again)
		}
		if !slices.Equal(before, AppendSet(nil, s)) {
			t.Fatalf("Drop changed its receiver")
		}
	})
}

// Whoever merges a pruned set has to know which state of the strong lane holds what is missing, whoever merged it before.
func TestPrunedSetSaysByWhatWhereverItGoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, o := drawSet(t, "set"), drawSet(t, "other")
		index := rapid.Uint64Range(1, 5).Draw(t, "index")
		keep := func(w Sibling) bool { return w.Dot.Time%2 == 1 }
		out := s.Prune(keep, index)
		if dropped := len(s.Siblings) > len(out.Siblings); dropped {
			require.Equal(t, max(s.Pruned, index), out.Pruned)
		} else {
			require.Equal(t, s.Pruned, out.Pruned, "nothing was dropped")
		}
		require.True(t, out.SameVersions(s.Drop(keep)))
		require.Equal(t, max(out.Pruned, o.Pruned), Merge(out, o).Pruned)
		w := siblingOf(Dot{Node: 1, Time: out.Context.Latest() + 1})
		require.Equal(t, out.Pruned, out.Put(w, out.Context).Pruned)
	})
}

func TestLatestHasTheHighestStamp(t *testing.T) {
	_, found := SiblingSet{}.Latest()
	require.False(t, found)
	rapid.Check(t, func(t *rapid.T) {
		s := drawSet(t, "set")
		best, found := s.Latest()
		if found != (len(s.Siblings) > 0) {
			t.Fatalf("found %v of %d", found, len(s.Siblings))
		}
		for _, w := range s.Siblings {
			if w.Stamp.After(best.Stamp) {
				t.Fatalf("%v is after %v", w.Stamp, best.Stamp)
			}
		}
	})
}

// TestReplicasConvergeOnWhatNobodyOverwrote runs coordinators that put under contexts read anywhere and hand whole sets
// around in any order. In the end all hold the same: exactly the writes that no later write had read.
func TestReplicasConvergeOnWhatNobodyOverwrote(t *testing.T) {
	type write struct {
		dot  Dot
		read Vector
	}
	rapid.Check(t, func(t *rapid.T) {
		const replicas = 3
		var sets [replicas]SiblingSet
		var writes []write
		clock := HLC(0)
		pick := rapid.IntRange(0, replicas-1)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			to := pick.Draw(t, "to")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				sets[to] = Merge(sets[to], sets[pick.Draw(t, "from")])
			case 1:
				clock++
				read := sets[pick.Draw(t, "reader")].Context
				w := write{dot: Dot{Node: kv.NodeID(to + 1), Time: clock}, read: read}
				sets[to] = sets[to].Put(siblingOf(w.dot), read)
				writes = append(writes, w)
			case 2:
				clock++
				w := write{dot: Dot{Node: kv.NodeID(to + 1), Time: clock}}
				sets[to] = sets[to].Put(siblingOf(w.dot), nil)
				writes = append(writes, w)
			}
		}
		all := Merge(sets[0], Merge(sets[1], sets[2]))
		var want []Dot
		for _, w := range writes {
			if !slices.ContainsFunc(writes, func(o write) bool { return o.read.Covers(w.dot) }) {
				want = append(want, w.dot)
			}
		}
		slices.SortFunc(want, Dot.Compare)
		var got []Dot
		for _, s := range all.Siblings {
			got = append(got, s.Dot)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("converged on %v, want %v", got, want)
		}
		for i := range sets {
			if m := Merge(sets[i], all); !m.Equal(all) {
				t.Fatalf("replica %d does not converge: %+v", i, m)
			}
		}
	})
}

// TestSequentialWritersNeverMakeSiblings is the bound on sibling explosion: siblings come from concurrency alone.
func TestSequentialWritersNeverMakeSiblings(t *testing.T) {
	var a, b SiblingSet
	for i := range HLC(100) {
		a = a.Put(siblingOf(Dot{1, 2*i + 1}), a.Context)
		b = Merge(a, b)
		b = b.Put(siblingOf(Dot{2, 2*i + 2}), b.Context)
		a = Merge(a, b)
		require.Len(t, a.Siblings, 1)
	}
	require.Len(t, a.Context, 2)
}

var sink SiblingSet

func benchmarkSets() (held, incoming, concurrent SiblingSet) {
	value := make([]byte, 100)
	at := func(n kv.NodeID, ms int64) Sibling {
		d := Dot{Node: n, Time: MakeHLC(ms, 0)}
		return Sibling{ID: d, Dot: d, Stamp: Stamp{Base: Position{3, 70_000}, Time: d.Time, Node: n}, Value: value}
	}
	held = SiblingSet{}.Put(at(1, 1_760_000_000_000), nil)
	held = held.Put(at(2, 1_760_000_000_001), held.Context)
	held = held.Put(at(3, 1_760_000_000_002), held.Context)
	incoming = held.Put(at(1, 1_760_000_000_003), held.Context)
	concurrent = held.Put(at(2, 1_760_000_000_004), held.Context)
	return held, incoming, concurrent
}

func BenchmarkMergeNewer(b *testing.B) {
	held, incoming, _ := benchmarkSets()
	b.ReportAllocs()
	for b.Loop() {
		sink = Merge(held, incoming)
	}
}

func BenchmarkMergeConcurrent(b *testing.B) {
	_, incoming, concurrent := benchmarkSets()
	b.ReportAllocs()
	for b.Loop() {
		sink = Merge(incoming, concurrent)
	}
}

func BenchmarkPut(b *testing.B) {
	held, incoming, _ := benchmarkSets()
	w := incoming.Siblings[0]
	b.ReportAllocs()
	for b.Loop() {
		sink = held.Put(w, held.Context)
	}
}

func BenchmarkAppendSet(b *testing.B) {
	held, _, _ := benchmarkSets()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendSet(buf[:0], held)
	}
}

func BenchmarkDecodeSet(b *testing.B) {
	held, _, _ := benchmarkSets()
	buf := AppendSet(nil, held)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if sink, err = DecodeSet(buf); err != nil {
			b.Fatal(err)
		}
	}
}
