package storage

import (
	"fmt"
	"math"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

func entry(index, term uint64) LogEntry {
	return LogEntry{Index: index, Term: term, Type: uint8(index % 3), Data: fmt.Appendf(nil, "entry %d in term %d", index, term)}
}

func appendEntries(tb testing.TB, e *Engine, g kv.GroupID, term, from, to uint64) {
	tb.Helper()
	write(tb, e, func(b *Batch) {
		for i := from; i <= to; i++ {
			b.AppendEntry(g, entry(i, term))
		}
	})
}

func indexes(entries []LogEntry) (out []uint64) {
	for _, e := range entries {
		out = append(out, e.Index)
	}
	return out
}

func TestEntriesAreReadInOrderAndOfOneGroupOnly(t *testing.T) {
	e := openMem(t)
	for _, g := range []kv.GroupID{1, 2, 3} {
		appendEntries(t, e, g, uint64(g), 1, 300)
	}
	got, err := e.Log().Entries(2, 1, 301, math.MaxUint64)
	require.NoError(t, err)
	require.Len(t, got, 300)
	for i, x := range got {
		require.Equal(t, entry(uint64(i)+1, 2), x)
	}
	got, err = e.Log().Entries(2, 255, 258, math.MaxUint64)
	require.NoError(t, err)
	require.Equal(t, []uint64{255, 256, 257}, indexes(got))
	got, err = e.Log().Entries(2, 5, 5, math.MaxUint64)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestEntriesStopAtMaxBytesButReturnOne(t *testing.T) {
	e := openMem(t)
	write(t, e, func(b *Batch) {
		for i := uint64(1); i <= 10; i++ {
			b.AppendEntry(1, LogEntry{Index: i, Term: 1, Data: make([]byte, 100)})
		}
	})
	for maxBytes, want := range map[uint64]int{0: 1, 99: 1, 107: 1, 214: 2, 330: 3, 1 << 20: 10} {
		got, err := e.Log().Entries(1, 1, 11, maxBytes)
		require.NoError(t, err)
		require.Len(t, got, want, "maxBytes %d", maxBytes)
	}
}

func TestAGapInTheLogIsCorruption(t *testing.T) {
	e := openMem(t)
	appendEntries(t, e, 1, 1, 1, 10)
	require.NoError(t, e.db.Delete(appendEntryKey(nil, 1, 6), pebble.Sync))
	for _, r := range [][2]uint64{{1, 11}, {6, 7}, {6, 11}, {5, 7}, {8, 12}} {
		_, err := e.Log().Entries(1, r[0], r[1], math.MaxUint64)
		require.ErrorIs(t, err, ErrCorruption, "entries %v", r)
		require.ErrorContains(t, err, "log_entry row of group 1 at index")
	}
	got, err := e.Log().Entries(1, 1, 6, math.MaxUint64)
	require.NoError(t, err)
	require.Len(t, got, 5)
}

func TestEntriesBelowTheTruncatedPositionAreTruncatedNotCorrupt(t *testing.T) {
	e := openMem(t)
	appendEntries(t, e, 1, 1, 1, 10)
	write(t, e, func(b *Batch) {
		b.TruncateLog(1, 0, causal.Position{Term: 1, Index: 4})
	})
	_, err := e.Log().Entries(1, 4, 11, math.MaxUint64)
	require.ErrorIs(t, err, ErrTruncated)
	require.NotErrorIs(t, err, ErrCorruption)
	got, err := e.Log().Entries(1, 5, 11, math.MaxUint64)
	require.NoError(t, err)
	require.Equal(t, []uint64{5, 6, 7, 8, 9, 10}, indexes(got))
	_, found, err := e.Log().Term(1, 4)
	require.NoError(t, err)
	require.False(t, found)
	p, found, err := e.Log().Truncated(1)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, causal.Position{Term: 1, Index: 4}, p)
}

func TestAConflictingSuffixIsReplacedInOneBatch(t *testing.T) {
	e := openMem(t)
	appendEntries(t, e, 1, 1, 1, 10)
	appendEntries(t, e, 2, 1, 1, 10)
	write(t, e, func(b *Batch) {
		b.DeleteEntriesFrom(1, 5)
		b.AppendEntry(1, entry(5, 2))
	})
	last, found, err := e.Log().LastEntry(1)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, causal.Position{Term: 2, Index: 5}, last)
	term, found, err := e.Log().Term(1, 4)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, uint64(1), term)
	last, _, err = e.Log().LastEntry(2)
	require.NoError(t, err)
	require.Equal(t, uint64(10), last.Index, "another group's log changed")
}

func TestARemovedSuffixIsGoneWithItsFirstEntry(t *testing.T) {
	e := openMem(t)
	appendEntries(t, e, 1, 1, 1, 10)
	write(t, e, func(b *Batch) { b.DeleteEntriesFrom(1, 5) })
	last, found, err := e.Log().LastEntry(1)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, uint64(4), last.Index)
}

func TestRemovingTheWholeLogLeavesTheRestOfTheGroup(t *testing.T) {
	e := openMem(t)
	write(t, e, func(b *Batch) {
		b.AppendEntry(1, LogEntry{Index: math.MaxUint64, Term: 1})
		b.AppendEntry(1, LogEntry{Index: 0, Term: 1})
		b.SetTruncated(1, causal.Position{Term: 1, Index: 1})
		b.SetApplied(1, Applied{Index: 1, Term: 1, ConfState: []byte("voters")})
	})
	write(t, e, func(b *Batch) { b.DeleteEntriesFrom(1, 0) })
	_, found, err := e.Log().LastEntry(1)
	require.NoError(t, err)
	require.False(t, found)
	a, found, err := e.Log().Applied(1)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, Applied{Index: 1, Term: 1, ConfState: []byte("voters")}, a)
}

func TestGroupsAreThoseWithAnyRow(t *testing.T) {
	e := openMem(t)
	write(t, e, func(b *Batch) {
		b.SetMetaValue("map", nil)
		b.SetHardState(3, HardState{})
		b.AppendEntry(70000, LogEntry{Index: 1})
		b.SetStrong(255, []byte("k"), Strong{})
		b.SetDedup(math.MaxUint32, []byte("op"), nil)
		b.SetSiblings(8, []byte("k"), causal.SiblingSet{})
		for i := range uint64(50) {
			b.AppendEntry(3, LogEntry{Index: i + 1})
		}
	})
	groups, err := e.Log().Groups()
	require.NoError(t, err)
	require.Equal(t, []kv.GroupID{0, 3, 255, 70000, math.MaxUint32}, groups)
}

func TestSizesGrowAndShrinkWithTheLog(t *testing.T) {
	e := openMem(t)
	size := func() (n uint64) {
		require.NoError(t, e.Log().Sizes(1, func(_, bytes uint64) { n += bytes }))
		return n
	}
	require.Zero(t, size())
	write(t, e, func(b *Batch) {
		for i := range uint64(100) {
			b.AppendEntry(1, LogEntry{Index: i + 1, Term: 1, Data: make([]byte, 1000)})
			b.AppendEntry(2, LogEntry{Index: i + 1, Term: 1, Data: make([]byte, 1000)})
		}
	})
	require.InDelta(t, 100_000, size(), 3_000)
	write(t, e, func(b *Batch) { b.TruncateLog(1, 0, causal.Position{Term: 1, Index: 90}) })
	require.InDelta(t, 10_000, size(), 300)
}

func TestEntriesAreTheCallersOwn(t *testing.T) {
	e := openMem(t)
	data := []byte("data")
	b := e.NewBatch()
	b.AppendEntry(1, LogEntry{Index: 1, Term: 1, Data: data})
	copy(data, "XXXX") // the batch has its copy
	require.NoError(t, e.ApplySync(b))
	b.Close()
	first, err := e.Log().Entries(1, 1, 2, 100)
	require.NoError(t, err)
	require.Equal(t, []byte("data"), first[0].Data)
	copy(first[0].Data, "YYYY")
	again, err := e.Log().Entries(1, 1, 2, 100)
	require.NoError(t, err)
	require.Equal(t, []byte("data"), again[0].Data)
}

// modelLog is the dumb twin of one group's log.
type modelLog map[uint64]LogEntry

func (m modelLog) bounds() (first, last uint64) {
	for i := range m {
		if first == 0 || i < first {
			first = i
		}
		last = max(last, i)
	}
	return first, last
}

func TestLogEqualsItsDumbTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, err := OpenInMemory()
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		model, truncated := modelLog{}, causal.Position{}
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			term := uint64(step + 1)
			first, last := model.bounds()
			b := e.NewBatch()
			switch rapid.SampledFrom([]string{"append", "conflict", "truncate"}).Draw(t, "step") {
			case "append":
				at := max(last, truncated.Index)
				for i := range rapid.Uint64Range(1, 8).Draw(t, "n") {
					model[at+1+i] = entry(at+1+i, term)
					b.AppendEntry(1, model[at+1+i])
				}
			case "conflict":
				if len(model) == 0 {
					break
				}
				from := rapid.Uint64Range(first, last).Draw(t, "from")
				for i := from; i <= last; i++ {
					delete(model, i)
				}
				b.DeleteEntriesFrom(1, from)
				if rapid.Bool().Draw(t, "replaced") {
					model[from] = entry(from, term)
					b.AppendEntry(1, model[from])
				}
			case "truncate":
				if len(model) == 0 {
					break
				}
				through := rapid.Uint64Range(first, last).Draw(t, "through")
				truncated = causal.Position{Term: model[through].Term, Index: through}
				for i := first; i <= through; i++ {
					delete(model, i)
				}
				b.TruncateLog(1, first-1, truncated)
			}
			if rapid.Bool().Draw(t, "sync") {
				err = e.ApplySync(b)
			} else {
				err = e.ApplyNoSync(b)
			}
			require.NoError(t, err)
			b.Close()
			checkLog(t, e, model)
		}
	})
}

func checkLog(t *rapid.T, e *Engine, model modelLog) {
	first, last := model.bounds()
	p, found, err := e.Log().LastEntry(1)
	require.NoError(t, err)
	require.Equal(t, len(model) > 0, found)
	if !found {
		return
	}
	require.Equal(t, causal.Position{Term: model[last].Term, Index: last}, p)
	got, err := e.Log().Entries(1, first, last+1, math.MaxUint64)
	require.NoError(t, err)
	require.Len(t, got, len(model))
	for i, x := range got {
		require.Equal(t, model[first+uint64(i)], x)
	}
	_, found, err = e.Log().Term(1, last+1)
	require.NoError(t, err)
	require.False(t, found)
}
