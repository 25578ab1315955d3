package storage

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

const benchKeys = 10_000

func benchKey(buf []byte, i int) []byte {
	return binary.BigEndian.AppendUint64(append(buf[:0], "user/profile/"...), uint64(i)*0x9e3779b97f4a7c15)
}

// benchEngine holds benchKeys keys of 100 bytes in S and every tenth of them in E, flushed to tables as a database
// that has run for a while.
func benchEngine(b *testing.B) *Engine {
	b.Helper()
	e, err := Open(b.TempDir(), DefaultConfig(), Deps{})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, e.Close()) })
	batch := e.NewBatch()
	defer batch.Close()
	for i := range benchKeys {
		key := benchKey(nil, i)
		batch.SetStrong(1, key, Strong{Value: make([]byte, 100), Revision: uint64(i), Stamp: causal.Stamp{
			Base: causal.Position{Term: 3, Index: uint64(i)}, Time: causal.MakeHLC(1_800_000_000_000, 1), Node: 2,
		}})
		if i%10 == 0 {
			batch.SetSiblings(0, key, oneSibling(2, causal.MakeHLC(1_800_000_000_000, 1), string(make([]byte, 100))))
		}
	}
	require.NoError(b, e.ApplySync(batch))
	require.NoError(b, e.db.Flush())
	return e
}

func BenchmarkStrong(b *testing.B) {
	e := benchEngine(b)
	s, key, i := e.State(), []byte(nil), 0
	b.ReportAllocs()
	for b.Loop() {
		key = benchKey(key, i%benchKeys)
		if _, found, err := s.Strong(1, key); err != nil || !found {
			b.Fatal(found, err)
		}
		i++
	}
}

func BenchmarkStrongAbsent(b *testing.B) {
	e := benchEngine(b)
	s, key, i := e.State(), []byte(nil), 0
	b.ReportAllocs()
	for b.Loop() {
		key = benchKey(key, benchKeys+i)
		if _, found, err := s.Strong(1, key); err != nil || found {
			b.Fatal(found, err)
		}
		i++
	}
}

func BenchmarkSiblings(b *testing.B) {
	e := benchEngine(b)
	s, key, i := e.State(), []byte(nil), 0
	b.ReportAllocs()
	for b.Loop() {
		key = benchKey(key, i*10%benchKeys)
		if _, found, err := s.Siblings(0, key); err != nil || !found {
			b.Fatal(found, err)
		}
		i++
	}
}

func BenchmarkBoth(b *testing.B) {
	e := benchEngine(b)
	s, key, i := e.State(), []byte(nil), 0
	b.ReportAllocs()
	for b.Loop() {
		key = benchKey(key, i%benchKeys)
		if _, found, _, _, err := s.Both(0, key); err != nil || !found {
			b.Fatal(found, err)
		}
		i++
	}
}

// BenchmarkBothBySnapshot is the way that Both does not take, kept to show why.
func BenchmarkBothBySnapshot(b *testing.B) {
	e := benchEngine(b)
	key, sKey, eKey, i := []byte(nil), []byte(nil), []byte(nil), 0
	b.ReportAllocs()
	for b.Loop() {
		key = benchKey(key, i%benchKeys)
		sKey, eKey = appendStateKey(sKey[:0], 1, key), appendSiblingsKey(eKey[:0], 0, key)
		snapshot := e.db.NewSnapshot()
		if row, closer, err := snapshot.Get(eKey); err == nil {
			_, err := openRow(row, formatSiblings, eKey)
			require.NoError(b, err)
			require.NoError(b, closer.Close())
		}
		row, closer, err := snapshot.Get(sKey)
		require.NoError(b, err)
		_, err = openRow(row, formatStrong, sKey)
		require.NoError(b, err)
		require.NoError(b, closer.Close())
		require.NoError(b, snapshot.Close())
		i++
	}
}

func BenchmarkScanStrong(b *testing.B) {
	e := benchEngine(b)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		err := e.State().ScanStrong(1, nil, func([]byte, Strong) (bool, error) { n++; return true, nil })
		if err != nil || n != benchKeys {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchKeys, "ns/key")
}

// BenchmarkBatch builds and applies what an iteration of the store loop writes: one entry of packed operations with the
// hard state, and the rows that applying an earlier one changes.
func BenchmarkBatch(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, ops := range []int{1, 64} {
			b.Run(fmt.Sprintf("sync=%t/ops=%d", sync, ops), func(b *testing.B) {
				e := benchEngine(b)
				data, value, key := make([]byte, 140*ops), make([]byte, 100), []byte(nil)
				i := uint64(0)
				b.ReportAllocs()
				for b.Loop() {
					i++
					batch := e.NewBatch()
					batch.AppendEntry(1, LogEntry{Index: i, Term: 3, Data: data})
					batch.SetHardState(1, HardState{Term: 3, Vote: 2, Commit: i})
					for op := range ops {
						key = benchKey(key, (int(i)*ops+op)%benchKeys)
						batch.SetStrong(1, key, Strong{Value: value, Revision: i})
					}
					var err error
					if sync {
						err = e.ApplySync(batch)
					} else {
						err = e.ApplyNoSync(batch)
					}
					batch.Close()
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkEntries(b *testing.B) {
	e := benchEngine(b)
	write(b, e, func(batch *Batch) {
		for i := range uint64(64) {
			batch.AppendEntry(1, LogEntry{Index: i + 1, Term: 3, Data: make([]byte, 16<<10)})
		}
	})
	b.SetBytes(64 * 16 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if got, err := e.Log().Entries(kv.GroupID(1), 1, 65, 1<<30); err != nil || len(got) != 64 {
			b.Fatal(len(got), err)
		}
	}
}

func BenchmarkPressure(b *testing.B) {
	e := benchEngine(b)
	b.ReportAllocs()
	for b.Loop() {
		_ = e.Pressure()
	}
}

func BenchmarkPressureMeasured(b *testing.B) {
	e := benchEngine(b)
	for b.Loop() {
		_ = e.pressureOf(e.db.Metrics())
	}
}
