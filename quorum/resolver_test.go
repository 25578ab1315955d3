package quorum

import (
	"bytes"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// drawVersions draws versions that no other supersedes, as a resolver gets them: some of them tombstones, some states of a
// counter, some values that mean nothing to the resolver.
func drawVersions(t *rapid.T, name string) []causal.Sibling {
	return rapid.SliceOfNDistinct(rapid.Custom(drawVersion), 1, 6, func(s causal.Sibling) causal.Dot { return s.Dot }).Draw(t, name)
}

func drawVersion(t *rapid.T) causal.Sibling {
	d := causal.Dot{Node: kv.NodeID(rapid.IntRange(1, 4).Draw(t, "node")), Time: causal.HLC(rapid.IntRange(1, 50).Draw(t, "time"))}
	s := causal.Sibling{
		ID: d, Dot: d,
		Stamp:  causal.Stamp{Base: causal.Position{Term: 1, Index: rapid.Uint64Range(1, 3).Draw(t, "index")}, Time: d.Time, Node: d.Node},
		Expiry: causal.HLC(rapid.SampledFrom([]int{0, 100, 200}).Draw(t, "expiry")),
	}
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 0:
		s.Deleted, s.Expiry = true, 0
	case 1:
		s.State, s.Value = true, drawTallies(t).encode()
	case 2:
		s.Value = []byte(rapid.SampledFrom([]string{"7", "-7", "007", "1.50", "1.5", "-0", "x", "", "\xff"}).Draw(t, "value"))
	case 3:
		s.Value = []byte(rapid.SampledFrom([]string{`["a","b"]`, `["b", "\u0062", 1]`, `[]`, `[{"k": [1]}]`, `null`, `[[1],"a"]`}).Draw(t, "value"))
	default:
		s.Value = fmt.Append(nil, rapid.Int64().Draw(t, "value"))
	}
	return s
}

func drawTallies(t *rapid.T) tallies {
	all := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) tally {
		return tally{
			node:  kv.NodeID(rapid.IntRange(1, 3).Draw(t, "node")),
			since: causal.HLC(rapid.IntRange(1, 3).Draw(t, "since")), at: causal.HLC(rapid.IntRange(1, 9).Draw(t, "at")),
			plus: rapid.Uint64Range(0, 9).Draw(t, "plus"), minus: rapid.Uint64Range(0, 9).Draw(t, "minus"),
		}
	}), 0, 4, func(t tally) [2]uint64 { return [2]uint64{uint64(t.node), uint64(t.since)} }).Draw(t, "tallies")
	slices.SortFunc(all, compareTallies)
	return all
}

func TestLawsOfResolvers(t *testing.T) {
	longest, err := NewExpr(`a.value.size() > b.value.size() || (a.value.size() == b.value.size() && a.value > b.value)`)
	require.NoError(t, err)
	for _, r := range []Resolver{LWW{}, Siblings{}, Extreme{}, Extreme{Least: true}, Union{}, Counter{}, longest} {
		t.Run(r.Name(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				all := drawVersions(t, "versions")
				before := cloneVersions(all)
				want := r.Resolve(all)
				require.Equal(t, before, all, "the versions are other readers' too")
				if got := r.Resolve(rapid.Permutation(all).Draw(t, "order")); !sameVersion(got, want) {
					t.Fatalf("not commutative: %+v, %+v", got, want)
				}
				if got := r.Resolve(append(slices.Clone(all), all...)); !sameVersion(got, want) {
					t.Fatalf("not idempotent: %+v, %+v", got, want)
				}
				if got := r.Resolve([]causal.Sibling{want, want}); !sameVersion(got, want) {
					t.Fatalf("not idempotent on its own answer: %+v, %+v", got, want)
				}
				cut := rapid.IntRange(1, len(all)).Draw(t, "cut")
				parts := []causal.Sibling{r.Resolve(all[:cut])}
				if cut < len(all) {
					parts = append(parts, r.Resolve(all[cut:]))
				}
				got := r.Resolve(parts)
				if x, ok := r.(*Expr); ok && !lawful(x, all) {
					return // invalid UTF-8 is seen as something else than it is
				}
				if !sameVersion(got, want) {
					t.Fatalf("not associative: %+v, %+v", got, want)
				}
			})
		})
	}
}

// lawful reports whether an expression over the values sees what they are.
func lawful(_ *Expr, all []causal.Sibling) bool {
	return !slices.ContainsFunc(all, func(s causal.Sibling) bool { return bytes.Contains(s.Value, []byte{0xff}) })
}

func cloneVersions(all []causal.Sibling) []causal.Sibling {
	out := slices.Clone(all)
	for i := range out {
		out[i].Value = bytes.Clone(out[i].Value)
	}
	return out
}

func sameVersion(a, b causal.Sibling) bool {
	return a.Deleted == b.Deleted && a.State == b.State && a.Expiry == b.Expiry && a.Stamp == b.Stamp && bytes.Equal(a.Value, b.Value)
}

// TestNothingWrittenIsLostByFolding sends writes through coordinators that know of one another by chance, to replicas in any
// order, and compares what a reader of all gets with what was written.
func TestNothingWrittenIsLostByFolding(t *testing.T) {
	for _, r := range []Folder{Extreme{}, Extreme{Least: true}, Union{}, Counter{}} {
		t.Run(r.Name(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { foldEverywhere(t, r) })
		})
	}
}

func foldEverywhere(t *rapid.T, r Folder) {
	nodes := map[kv.NodeID]*versions{1: {}, 2: {}, 3: {}}
	var sets []causal.SiblingSet
	var written []int64
	for i := range rapid.IntRange(1, 12).Draw(t, "writes") {
		node := kv.NodeID(rapid.IntRange(1, 3).Draw(t, "node"))
		v := nodes[node]
		for len(sets) > 0 && rapid.Bool().Draw(t, "hears") {
			v.set = v.merged(sets[rapid.IntRange(0, len(sets)-1).Draw(t, "which")], true)
		}
		value := rapid.Int64Range(-9, 9).Draw(t, "value")
		d := draft{blind: true, value: foldable(r, value)}
		require.NoError(t, r.Check(d.value, false))
		attempts := 1 + rapid.IntRange(0, 1).Draw(t, "restamps")
		for a := range attempts {
			dot := causal.Dot{Node: node, Time: causal.HLC(100 + 10*i + a)}
			set, how, err := v.place(&d, dot, causal.Position{Term: 1, Index: 1}, r, 64)
			require.NoError(t, err)
			require.Equal(t, placementMade, how)
			if d.id.IsZero() {
				d.id = dot
			}
			v.set = set
			sets = append(sets, set)
			require.Len(t, set.Siblings, 1, "what was folded is replaced")
		}
		written = append(written, value)
	}
	var reader versions
	for _, set := range rapid.Permutation(sets).Draw(t, "order") {
		reader.set = reader.merged(set, true)
		require.LessOrEqual(t, len(reader.set.Siblings), len(nodes), "more siblings than coordinators")
	}
	var res kv.Response
	require.NoError(t, reader.resolve(&res, r, kv.SiblingsDefault))
	require.Equal(t, folded(r, written), string(res.Value))
}

func foldable(r Folder, value int64) []byte {
	if _, ok := r.(Union); ok {
		return fmt.Appendf(nil, `["%d"]`, value)
	}
	return fmt.Append(nil, value)
}

// folded is the dumb twin: what all that was written comes to.
func folded(r Folder, written []int64) string {
	switch r := r.(type) {
	case Extreme:
		if r.Least {
			return fmt.Sprint(slices.Min(written))
		}
		return fmt.Sprint(slices.Max(written))
	case Counter:
		sum := int64(0)
		for _, v := range written {
			sum += v
		}
		return fmt.Sprint(sum)
	default:
		var all []string
		for _, v := range written {
			all = append(all, fmt.Sprintf(`"%d"`, v))
		}
		slices.Sort(all)
		return "[" + strings.Join(slices.Compact(all), ",") + "]"
	}
}

func TestNumbersCompareByWhatTheySay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) string { return rapid.StringMatching(`[-+]?[0-9]{1,25}(\.[0-9]{1,8})?`).Draw(t, name) }
		a, b := draw("a"), draw("b")
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		want := x.Cmp(y)
		if want == 0 {
			want = strings.Compare(a, b)
		}
		if got := compareValues([]byte(a), []byte(b)); got != want {
			t.Fatalf("%s against %s: %d, want %d", a, b, got, want)
		}
	})
	for _, s := range []string{"", "-", ".5", "5.", "1e3", "0x1", "1_0", " 1", "1.2.3", "--1"} {
		_, ok := decimalOf([]byte(s))
		require.False(t, ok, s)
	}
	require.Positive(t, compareValues([]byte("1e3"), []byte("999999")), "what is no number is above all numbers")
}

func TestCounterBeginsANewTallyWhereItMayHaveForgotten(t *testing.T) {
	add := func(v *versions, dot causal.Dot, value string) {
		set, how, err := v.place(&draft{blind: true, value: []byte(value)}, dot, causal.Position{Term: 1, Index: 1}, Counter{}, 64)
		require.NoError(t, err)
		require.Equal(t, placementMade, how)
		v.set = set
	}
	sum := func(v *versions) string {
		var res kv.Response
		require.NoError(t, v.resolve(&res, Counter{}, kv.SiblingsDefault))
		return string(res.Value)
	}
	one, two := &versions{}, &versions{}
	add(one, causal.Dot{Node: 1, Time: 10}, "4")
	durable := one.set
	add(one, causal.Dot{Node: 1, Time: 11}, "10") // reaches node 2, which takes it in, and not the disk of node 1
	two.set = two.merged(one.set, true)
	add(two, causal.Dot{Node: 2, Time: 12}, "100")

	one = &versions{set: durable, forgotten: 15} // after the restart
	add(one, causal.Dot{Node: 1, Time: 20}, "1")
	add(one, causal.Dot{Node: 1, Time: 21}, "1")
	one.set = one.merged(two.set, true)
	require.Equal(t, "116", sum(one), "an acknowledged increment hides behind a forgotten one")
	require.Len(t, talliesOf(&one.set.Siblings[len(one.set.Siblings)-1]), 2, "one tally for each life")
}

func TestDeletedCounterBeginsAnew(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.resolves = Counter{}
		for range 3 {
			_, err := c.put(1, "k", "5", nil, 3)
			require.NoError(t, err)
		}
		res, err := c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "15", string(res.Value))
		_, err = c.del(2, "k", nil, 3)
		require.NoError(t, err)
		res, err = c.get(3, "k", 2)
		require.NoError(t, err)
		require.False(t, res.Found)
		_, err = c.put(1, "k", "-2", nil, 3)
		require.NoError(t, err)
		res, err = c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "-2", string(res.Value))

		for _, bad := range []string{"", "1.5", "x", "9223372036854775808"} {
			_, err = c.put(1, "k", bad, nil, 2)
			require.Equal(t, kv.CodeBadRequest, kv.CodeOf(err), bad)
		}
		_, err = c.put(1, "k", "1", res.Context, 2)
		require.Equal(t, kv.CodeBadRequest, kv.CodeOf(err), "a context means nothing on an increment")
	})
}
