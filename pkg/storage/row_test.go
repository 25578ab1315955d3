package storage

import (
	"bytes"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

func seal(format byte, key, head, tail []byte) []byte {
	row := make([]byte, rowBytesMin+len(head)+len(tail))
	sealRow(row, format, key, head, tail)
	return row
}

func TestRowReturnsItsPayload(t *testing.T) {
	for _, payload := range [][]byte{{}, {0}, []byte("value"), bytes.Repeat([]byte{0xa5}, 1<<16)} {
		key := appendStateKey(nil, 3, []byte("k"))
		half := len(payload) / 2
		got, err := openRow(seal(formatStrong, key, payload[:half], payload[half:]), formatStrong, key)
		require.NoError(t, err)
		require.Equal(t, payload, got)
	}
}

func TestDamagedRowIsCorruption(t *testing.T) {
	key := appendStateKey(nil, 3, []byte("k"))
	row := seal(formatStrong, key, []byte("head"), []byte("tail"))
	check := func(row, key []byte, format byte, why string) {
		t.Helper()
		_, err := openRow(row, format, key)
		require.ErrorIs(t, err, ErrCorruption, why)
		require.ErrorContains(t, err, keyspace(key), why)
	}
	for i := range row {
		for bit := range 8 {
			damaged := bytes.Clone(row)
			damaged[i] ^= 1 << bit
			check(damaged, key, formatStrong, "a flipped bit")
		}
	}
	for n := range row {
		check(row[:n], key, formatStrong, "cut short")
	}
	check(nil, key, formatStrong, "missing")
	check(append(bytes.Clone(row), 0), key, formatStrong, "a byte too many")
	check(row, key, formatSiblings, "another kind's format")
	check(row, appendStateKey(nil, 3, []byte("l")), formatStrong, "under another key")
	check(row, appendStateKey(nil, 4, []byte("k")), formatStrong, "in another group")
}

func FuzzOpenRowTakesAnyBytes(f *testing.F) {
	key := appendSiblingsKey(nil, 1, []byte("k"))
	f.Add(key, seal(formatSiblings, key, nil, []byte("x")))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, row []byte) {
		for format := formatOpaque; format <= formatSiblings; format++ {
			payload, err := openRow(row, format, key)
			if err != nil {
				require.ErrorIs(t, err, ErrCorruption)
				continue
			}
			require.Equal(t, row, seal(format, key, nil, payload))
		}
	})
}

func genDot(t *rapid.T, label string) causal.Dot {
	return causal.Dot{
		Node: kv.NodeID(rapid.Uint64().Draw(t, label+" node")),
		Time: causal.HLC(rapid.Uint64().Draw(t, label+" time")),
	}
}

func genStamp(t *rapid.T) causal.Stamp {
	d := genDot(t, "stamp")
	return causal.Stamp{
		Base: causal.Position{Term: rapid.Uint64().Draw(t, "term"), Index: rapid.Uint64().Draw(t, "index")},
		Time: d.Time, Node: d.Node,
	}
}

func genStrong(t *rapid.T) Strong {
	s := Strong{
		Deleted:  rapid.Bool().Draw(t, "deleted"),
		Revision: rapid.Uint64().Draw(t, "revision"),
		Stamp:    genStamp(t),
	}
	if rapid.Bool().Draw(t, "expires") {
		s.Expiry = causal.HLC(rapid.Uint64Min(1).Draw(t, "expiry"))
	}
	for range rapid.IntRange(0, 4).Draw(t, "covered") {
		s.Covered = append(s.Covered, genDot(t, "covered"))
	}
	if rapid.Bool().Draw(t, "forgets") {
		s.Before = causal.HLC(rapid.Uint64Min(1).Draw(t, "before"))
	}
	if rapid.Bool().Draw(t, "based") {
		s.Base = rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "base")
	}
	if !s.Deleted {
		s.Value = rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "value")
	}
	return s
}

func TestStrongSurvivesItsEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genStrong(t)
		encoded := append(appendStrongHead(nil, &want), want.Value...)
		got, err := ownStrong(encoded)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

func TestSmallRowsSurviveTheirEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(label string) uint64 {
			return rapid.OneOf(rapid.Uint64Max(300), rapid.Just(uint64(math.MaxUint64)), rapid.Uint64()).Draw(t, label)
		}
		h := HardState{Term: n("term"), Vote: n("vote"), Commit: n("commit")}
		gotH, err := decodeHardState(appendHardState(nil, h))
		require.NoError(t, err)
		require.Equal(t, h, gotH)

		p := causal.Position{Term: n("term"), Index: n("index")}
		gotP, err := decodeTruncated(appendTruncated(nil, p))
		require.NoError(t, err)
		require.Equal(t, p, gotP)

		e := LogEntry{Term: n("term"), Type: rapid.Byte().Draw(t, "type"), Data: rapid.SliceOf(rapid.Byte()).Draw(t, "data")}
		gotE, err := decodeEntry(append(appendEntryHead(nil, &e), e.Data...))
		require.NoError(t, err)
		require.Equal(t, e, gotE)

		a := Applied{Index: n("index"), Term: n("term"), ConfState: rapid.SliceOf(rapid.Byte()).Draw(t, "conf state")}
		gotA, err := decodeApplied(append(appendAppliedHead(nil, &a), a.ConfState...))
		require.NoError(t, err)
		require.Equal(t, a, gotA)
	})
}

func TestTruncatedPayloadsAreRefused(t *testing.T) {
	s := Strong{
		Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 300}, Time: 1 << 60, Node: 3},
		Expiry: 77, Covered: []causal.Dot{{Node: 1, Time: 2}, {Node: 300, Time: 4}},
		Before: 5, Base: []byte("base"),
	}
	head := appendStrongHead(nil, &s)
	for n := range head {
		_, err := decodeStrong(head[:n])
		require.Error(t, err, "%d of %d bytes", n, len(head))
	}
	h := appendHardState(nil, HardState{Term: 300, Vote: 2, Commit: 1 << 40})
	for n := range h {
		_, err := decodeHardState(h[:n])
		require.Error(t, err)
	}
	_, err := decodeHardState(append(h, 1))
	require.ErrorIs(t, err, errLeftOver)
	_, err = decodeStrong(append(appendStrongHead(nil, &Strong{Deleted: true}), 'x'))
	require.ErrorIs(t, err, errDead)
	_, err = decodeStrong([]byte{0x80, 0})
	require.ErrorIs(t, err, errFlags)
}

// FuzzDecodersTakeAnyBytes feeds the payload decoders what a checksum would normally keep from them. Whatever they
// accept must be what the encoder writes.
func FuzzDecodersTakeAnyBytes(f *testing.F) {
	f.Add(appendStrongHead(nil, &Strong{Revision: 3, Expiry: 9, Covered: []causal.Dot{{Node: 1, Time: 2}}}))
	f.Add(appendHardState(nil, HardState{Term: 1, Vote: 2, Commit: 3}))
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(encoded []byte) { require.Equal(t, append([]byte{}, b...), encoded) }
		if s, err := decodeStrong(b); err == nil {
			same(append(appendStrongHead(nil, &s), s.Value...))
		}
		if h, err := decodeHardState(b); err == nil {
			same(appendHardState(nil, h))
		}
		if e, err := decodeEntry(b); err == nil {
			same(append(appendEntryHead(nil, &e), e.Data...))
		}
		if a, err := decodeApplied(b); err == nil {
			same(append(appendAppliedHead(nil, &a), a.ConfState...))
		}
		if p, err := decodeTruncated(b); err == nil {
			same(appendTruncated(nil, p))
		}
	})
}
