package verify

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

var e = script{kv.LevelEventual, "k"}

func TestCausalHistoriesThatAreValid(t *testing.T) {
	for name, ops := range map[string][]Op{
		"nothing":                      nil,
		"one write":                    {e.put(1, 2, "a", 0), final(e.get(3, 4, "a", 0))},
		"blind writes stay beside":     {e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), final(e.siblings(5, 6, "a", "b"))},
		"a context replaces":           {e.put(1, 2, "a", 0), having(e.put(3, 4, "b", 0), "a"), final(e.get(5, 6, "b", 0))},
		"a stale context leaves one":   {e.put(1, 2, "a", 0), having(e.put(3, 4, "b", 0), "a"), having(e.put(5, 6, "c", 0), "a"), final(e.siblings(7, 8, "b", "c"))},
		"unknown write that is there":  {e.put(1, 2, "a", 0), e.put(3, 0, "u", 0), final(e.siblings(5, 6, "a", "u"))},
		"unknown write that is not":    {e.put(1, 2, "a", 0), e.put(3, 0, "u", 0), final(e.get(5, 6, "a", 0))},
		"unknown write that replaced":  {e.put(1, 2, "a", 0), having(e.put(3, 0, "u", 0), "a"), final(e.get(5, 6, "u", 0))},
		"unknown write in between":     {e.put(1, 2, "a", 0), having(e.put(3, 0, "u", 0), "a"), having(e.put(5, 6, "b", 0), "u"), final(e.get(7, 8, "b", 0))},
		"a delete takes what it read":  {e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), having(e.delete(5, 6, true, 0), "a"), final(e.siblings(7, 8, "b", ""))},
		"everything deleted":           {e.put(1, 2, "a", 0), having(e.delete(3, 4, true, 0), "a"), final(e.absent(5, 6))},
		"own write read or not":        {e.put(1, 2, "a", 0), mayHave(e.put(3, 4, "b", 0), "a"), final(e.get(5, 6, "b", 0)), final(e.siblings(7, 8, "a", "b"))},
		"a read that is behind":        {e.put(1, 2, "a", 0), e.absent(3, 4), final(e.get(5, 6, "a", 0))},
		"failed write that is nowhere": {failed(e.put(1, 2, "f", 0)), e.put(3, 4, "a", 0), final(e.get(5, 6, "a", 0))},
	} {
		t.Run(name, func(t *testing.T) { requireValid(t, CheckCausal(historyOf(ops...), CausalOptions{})) })
	}
}

func mayHave(op Op, ids ...string) Op {
	op.MayCover = ids
	return op
}

func TestCausalAnomaliesAreCaught(t *testing.T) {
	for name, c := range map[string]struct {
		kind string
		ops  []Op
	}{
		"lost write":   {"sibling lost", []Op{e.put(1, 2, "a", 0), final(e.absent(3, 4))}},
		"lost sibling": {"sibling lost", []Op{e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), final(e.get(5, 6, "b", 0))}},
		"context covers too much": {"sibling lost", []Op{
			e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), having(e.put(5, 6, "c", 0), "a"), final(e.get(7, 8, "c", 0)),
		}},
		"delete takes what it had not read": {"sibling lost", []Op{
			e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), having(e.delete(5, 6, true, 0), "a"), final(e.absent(7, 8)),
		}},
		"context ignored":    {"superseded sibling", []Op{e.put(1, 2, "a", 0), having(e.put(3, 4, "b", 0), "a"), final(e.siblings(5, 6, "a", "b"))}},
		"resurrected delete": {"superseded sibling", []Op{e.put(1, 2, "a", 0), having(e.delete(3, 4, true, 0), "a"), final(e.get(5, 6, "a", 0))}},
		"superseded two writes ago": {"superseded sibling", []Op{
			e.put(1, 2, "a", 0), having(e.put(3, 4, "b", 0), "a"), having(e.put(5, 6, "c", 0), "b"), final(e.siblings(7, 8, "a", "c")),
		}},
		"superseded version came back alone": {"superseded sibling", []Op{
			e.put(1, 2, "a", 0), having(e.put(3, 4, "b", 0), "a"), final(e.get(5, 6, "a", 0)),
		}},
		"superseded in a read on the way": {"superseded sibling", []Op{
			e.put(1, 2, "a", 0), having(e.put(3, 4, "b", 0), "a"), e.siblings(5, 6, "a", "b"), final(e.get(7, 8, "b", 0)),
		}},
		"out of thin air":     {"extra sibling", []Op{e.put(1, 2, "a", 0), final(e.siblings(3, 4, "a", "z"))}},
		"failed write":        {"extra sibling", []Op{e.put(1, 2, "a", 0), failed(e.put(3, 4, "f", 0)), final(e.siblings(5, 6, "a", "f"))}},
		"tombstone of nobody": {"extra sibling", []Op{e.put(1, 2, "a", 0), final(e.siblings(3, 4, "a", ""))}},
		"write twice":         {"sibling twice", []Op{e.put(1, 2, "a", 0), final(e.siblings(3, 4, "a", "a"))}},
		"never looked":        {"never read at the end", []Op{e.put(1, 2, "a", 0), e.get(3, 4, "a", 0)}},
	} {
		t.Run(name, func(t *testing.T) { requireCaught(t, CheckCausal(historyOf(c.ops...), CausalOptions{}), c.kind) })
	}
}

func TestReadsThatOverlapWritesMustReflectThem(t *testing.T) {
	behind := historyOf(e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), e.get(5, 6, "a", 0), final(e.siblings(7, 8, "a", "b")))
	requireValid(t, CheckCausal(behind, CausalOptions{}))
	requireCaught(t, CheckCausal(behind, CausalOptions{Overlap: true}), "sibling lost")
	back := historyOf(e.put(1, 2, "a", 0), having(e.delete(3, 4, true, 0), "a"), e.get(5, 6, "a", 0), final(e.absent(7, 8)))
	requireValid(t, CheckCausal(back, CausalOptions{}))
	requireCaught(t, CheckCausal(back, CausalOptions{Overlap: true}), "superseded sibling")
	overlapping := historyOf(e.put(1, 2, "a", 0), e.put(3, 6, "b", 0), e.get(4, 5, "a", 0), final(e.siblings(7, 8, "a", "b")))
	requireValid(t, CheckCausal(overlapping, CausalOptions{Overlap: true}))
}

// drawCausalWrites draws writes, each of which may have read some of those before it.
func drawCausalWrites(t *rapid.T, may bool) []Op {
	n := rapid.IntRange(1, 7).Draw(t, "writes")
	var ops []Op
	var ids []string
	for i := range int64(n) {
		op := e.put(10*i+1, 10*i+2, fmt.Sprint("w", i), 0)
		if rapid.IntRange(0, 3).Draw(t, "unknown") == 0 {
			op.Outcome, op.Return = OutcomeUnknown, Never
		}
		for _, id := range ids {
			switch rapid.IntRange(0, 4).Draw(t, "read") {
			case 0:
				op.Covers = append(op.Covers, id)
			case 1:
				if may {
					op.MayCover = append(op.MayCover, id)
				}
			}
		}
		ids = append(ids, op.Value)
		ops = append(ops, op)
	}
	return ops
}

// twinMaxima is what the final siblings may be, found by trying: every choice of unknown writes, and of reads that may have
// been.
func twinMaxima(writes []Op) [][]string {
	var out [][]string
	var unknown []int
	type edge struct{ from, to string }
	var maybe []edge
	for i, w := range writes {
		if w.Outcome == OutcomeUnknown {
			unknown = append(unknown, i)
		}
		for _, id := range w.MayCover {
			maybe = append(maybe, edge{w.Value, id})
		}
	}
	for reads := range 1 << len(maybe) {
		superseded := map[string]map[string]bool{} // by write, everything below it
		for _, w := range writes {
			below := map[string]bool{}
			ids := slices.Clone(w.Covers)
			for b, m := range maybe {
				if reads>>b&1 == 1 && m.from == w.Value {
					ids = append(ids, m.to)
				}
			}
			for _, id := range ids {
				below[id] = true
				for deeper := range superseded[id] {
					below[deeper] = true
				}
			}
			superseded[w.Value] = below
		}
		for applied := range 1 << len(unknown) {
			present := map[string]bool{}
			for i, w := range writes {
				at := slices.Index(unknown, i)
				present[w.Value] = at < 0 || applied>>at&1 == 1
			}
			maxima := []string{}
			for _, w := range writes {
				if !present[w.Value] {
					continue
				}
				top := true
				for _, other := range writes {
					top = top && !(present[other.Value] && superseded[other.Value][w.Value])
				}
				if top {
					maxima = append(maxima, w.Value)
				}
			}
			out = append(out, maxima)
		}
	}
	return out
}

// verdictOn checks a final read of the values after the writes.
func verdictOn(writes []Op, values []string) bool {
	read := e.absent(1000, 1001)
	switch {
	case len(values) == 1:
		read = e.get(1000, 1001, values[0], 0)
	case len(values) > 1:
		read = e.siblings(1000, 1001, values...)
	}
	return CheckCausal(historyOf(append(slices.Clone(writes), final(read))...), CausalOptions{}).Valid
}

// TestOracleAgreesWithTryingEverything compares the oracle with its twin on every set of final siblings.
func TestOracleAgreesWithTryingEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		writes := drawCausalWrites(t, false)
		possible := twinMaxima(writes)
		for choice := range 1 << len(writes) {
			values := []string{}
			for i, w := range writes {
				if choice>>i&1 == 1 {
					values = append(values, w.Value)
				}
			}
			want := slices.ContainsFunc(possible, func(p []string) bool { return slices.Equal(p, values) })
			require.Equal(t, want, verdictOn(writes, values), "%v: %q", writes, values)
		}
	})
}

// TestOracleBlamesNobodyForWhatMayHaveBeenRead: where reads are uncertain, everything that some choice explains is valid.
func TestOracleBlamesNobodyForWhatMayHaveBeenRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		writes := drawCausalWrites(t, true)
		edges := 0
		for _, w := range writes {
			edges += len(w.MayCover)
		}
		if edges > 6 {
			t.Skip("too many to try")
		}
		for _, values := range twinMaxima(writes) {
			require.True(t, verdictOn(writes, values), "%v: %q", writes, values)
		}
	})
}
