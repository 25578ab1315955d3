package causal

import (
	"bytes"
	"encoding/hex"
	"hash/fnv"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func drawDot(t *rapid.T, name string) Dot {
	return Dot{Node: kv.NodeID(rapid.Uint64().Draw(t, name+".node")), Time: HLC(rapid.Uint64().Draw(t, name+".time"))}
}

// drawAnySet draws a valid set of arbitrary numbers and values.
func drawAnySet(t *rapid.T) SiblingSet {
	var s SiblingSet
	for range rapid.IntRange(0, 5).Draw(t, "siblings") {
		w := Sibling{
			ID: drawDot(t, "id"), Dot: drawDot(t, "dot"),
			Stamp: Stamp{
				Base: Position{Term: rapid.Uint64().Draw(t, "term"), Index: rapid.Uint64().Draw(t, "index")},
				Time: HLC(rapid.Uint64().Draw(t, "time")), Node: kv.NodeID(rapid.Uint64().Draw(t, "node")),
			},
			Deleted: rapid.Bool().Draw(t, "deleted"),
			Value:   rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value"),
		}
		if rapid.Bool().Draw(t, "first attempt") {
			w.ID = w.Dot
		}
		if rapid.Bool().Draw(t, "usual stamp") {
			w.Stamp.Time, w.Stamp.Node = w.Dot.Time, w.Dot.Node
		}
		s = s.Put(w, Vector{drawDot(t, "read")})
	}
	if rapid.Bool().Draw(t, "was pruned") {
		s.Pruned = rapid.Uint64().Draw(t, "pruned")
	}
	return s
}

func TestSetSurvivesItsCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawAnySet(t)
		b := AppendSet([]byte("prefix"), s)
		require.Equal(t, "prefix", string(b[:6]))
		got, err := DecodeSet(b[6:])
		require.NoError(t, err)
		require.True(t, got.Equal(s), "%+v\n%+v", got, s)
		require.Equal(t, b[6:], AppendSet(nil, got))
	})
}

func TestEqualSetsHaveEqualBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSet(t, "a"), drawSet(t, "b")
		x, y := AppendSet(nil, Merge(a, b)), AppendSet(nil, Merge(b, a))
		require.Equal(t, x, y)
		require.Equal(t, a.Equal(b), bytes.Equal(AppendSet(nil, a), AppendSet(nil, b)))
	})
	require.Equal(t, AppendSet(nil, SiblingSet{}), AppendSet(nil, SiblingSet{Siblings: []Sibling{}, Context: Vector{}}))
}

// What was written before sets said how far they were pruned has the bytes, and so the hash, that it always had.
func TestSetThatWasNeverPrunedHasTheFirstForm(t *testing.T) {
	d := Dot{Node: 2, Time: 7}
	s := SiblingSet{}.Put(Sibling{ID: d, Dot: d, Stamp: Stamp{Time: 7, Node: 2}, Value: []byte("v")}, nil)
	first := []byte{1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 7, 1, 2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 'v'}
	require.Equal(t, first, AppendSet(nil, s))
	got, err := DecodeSet(first)
	require.NoError(t, err)
	require.True(t, got.Equal(s))
	s.Pruned = 300
	require.Equal(t, append([]byte{2, 0xac, 0x02}, first[1:]...), AppendSet(nil, s))
}

func TestSmallFormsSurviveTheirCodecs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDot(t, "dot")
		p := Position{Term: rapid.Uint64().Draw(t, "term"), Index: rapid.Uint64().Draw(t, "index")}
		s := Stamp{Base: p, Time: d.Time, Node: d.Node}
		v := drawVector(t, "vector")
		b := AppendDot(nil, d)
		b = AppendPosition(b, p)
		b = AppendStamp(b, s)
		b = AppendVector(b, v)
		b = AppendHLC(b, d.Time)

		gotD, b, err := DecodeDot(b)
		require.NoError(t, err)
		require.Equal(t, d, gotD)
		gotP, b, err := DecodePosition(b)
		require.NoError(t, err)
		require.Equal(t, p, gotP)
		gotS, b, err := DecodeStamp(b)
		require.NoError(t, err)
		require.Equal(t, s, gotS)
		gotV, b, err := DecodeVector(b)
		require.NoError(t, err)
		require.True(t, v.Equal(gotV))
		gotH, b, err := DecodeHLC(b)
		require.NoError(t, err)
		require.Equal(t, d.Time, gotH)
		require.Empty(t, b)
	})
}

func TestDecodersRefuseWhatNoEncoderWrites(t *testing.T) {
	d := Dot{Node: 1, Time: 5}
	one := SiblingSet{}.Put(Sibling{ID: d, Dot: d, Stamp: Stamp{Time: 5, Node: 1}, Value: []byte("v")}, nil)
	two := one.Put(Sibling{ID: d, Dot: Dot{2, 6}, Stamp: Stamp{Time: 6, Node: 2}}, nil)
	good := AppendSet(nil, one)
	swap := func(s SiblingSet) SiblingSet {
		s.Siblings[0], s.Siblings[1] = s.Siblings[1], s.Siblings[0]
		return s
	}
	flagAt := 1 + 1 + dotBytesMin + 1 + dotBytesMin
	require.Zero(t, good[flagAt])
	repeated := bytes.Clone(good[:flagAt])
	repeated = append(repeated, flagOwnID)
	repeated = append(AppendDot(repeated, d), good[flagAt+1:]...)
	unknownFlag := bytes.Clone(good)
	unknownFlag[flagAt] = flagsAll + 1

	for name, b := range map[string][]byte{
		"nothing":                  {},
		"an unknown format":        append([]byte{99}, good[1:]...),
		"bytes after the set":      append(bytes.Clone(good), 0),
		"an unsorted set":          AppendSet(nil, swap(two)),
		"a sibling twice":          AppendSet(nil, SiblingSet{Siblings: []Sibling{one.Siblings[0], one.Siblings[0]}, Context: one.Context}),
		"an uncovered sibling":     AppendSet(nil, SiblingSet{Siblings: one.Siblings, Context: Vector{{1, 4}}}),
		"an unsorted vector":       AppendSet(nil, SiblingSet{Context: Vector{{2, 1}, {1, 1}}}),
		"a node twice":             AppendSet(nil, SiblingSet{Context: Vector{{1, 1}, {1, 2}}}),
		"a repeated dot":           repeated,
		"an unknown flag":          unknownFlag,
		"pruned by nothing":        append([]byte{setFormatPruned, 0}, good[1:]...),
		"a long zero":              {setFormat, 0x80, 0x00, 0},
		"more entries than bytes":  {setFormat, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"more siblings than bytes": {setFormat, 0, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"a number over 64 bits":    append([]byte{setFormat}, bytes.Repeat([]byte{0xff}, 11)...),
	} {
		_, err := DecodeSet(b)
		require.ErrorIs(t, err, ErrCorrupt, name)
	}
	for i := range good {
		_, err := DecodeSet(good[:i])
		require.ErrorIs(t, err, ErrCorrupt, "the first %d bytes", i)
	}
}

func TestContextBelongsToItsKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "key")
		other := rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "other")
		v := Seen{Vector: drawVector(t, "vector")}.With(drawDots(t, "dots")...)
		token := EncodeSeen(key, v)
		got, err := DecodeContext(key, token)
		require.NoError(t, err)
		require.True(t, v.Vector.Equal(got.Vector))
		require.True(t, slices.Equal(v.Dots, got.Dots))
		if !bytes.Equal(key, other) {
			_, err = DecodeContext(other, token)
			require.ErrorIs(t, err, ErrBadContext)
		}
		i := rapid.IntRange(0, len(token)-1).Draw(t, "flip")
		token[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		_, err = DecodeContext(key, token)
		require.ErrorIs(t, err, ErrBadContext)
	})
	for _, garbage := range [][]byte{nil, {}, []byte("x"), bytes.Repeat([]byte{1}, 100)} {
		_, err := DecodeContext([]byte("k"), garbage)
		require.ErrorIs(t, err, ErrBadContext)
	}
}

// TestContextTokenIsPinned fails when the token's layout changes: users hold tokens across an upgrade.
func TestContextTokenIsPinned(t *testing.T) {
	token := EncodeContext([]byte("user:1"), Vector{{1, MakeHLC(1_760_000_000_000, 2)}, {300, 5}})
	twin := fnv.New64a()
	_, _ = twin.Write([]byte("user:1"))
	require.Equal(t, twin.Sum(nil), token[1:9])
	require.Equal(t, "01f7fd9aaa75081ceb02010199c82cc0000002ac02000000000000000540c11116", hex.EncodeToString(token))
	token = EncodeSeen([]byte("user:1"), Seen{Vector: Vector{{1, 5}}, Dots: []Dot{{1, 7}, {300, 6}}})
	require.Equal(t, "02f7fd9aaa75081ceb0101000000000000000502010000000000000007ac020000000000000006dc64e923", hex.EncodeToString(token))
}

func FuzzDecodeSet(f *testing.F) {
	held, incoming, concurrent := benchmarkSets()
	f.Add(AppendSet(nil, held))
	f.Add(AppendSet(nil, incoming))
	f.Add(AppendSet(nil, Merge(incoming, concurrent)))
	f.Add(AppendSet(nil, SiblingSet{}))
	f.Add(AppendSet(nil, SiblingSet{Context: Vector{{1, 1}}, Pruned: 9}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSet(b)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		checkInvariant(t, s)
		require.Equal(t, b, AppendSet(nil, s), "a second spelling of one set")
		require.True(t, Merge(s, s).Equal(s))
	})
}

func FuzzDecodeVector(f *testing.F) {
	f.Add(AppendVector(nil, Vector{{1, 2}, {3, 4}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, rest, err := DecodeVector(b)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.True(t, v.valid())
		require.Equal(t, b, append(AppendVector(nil, v), rest...))
	})
}

func FuzzDecodeStamp(f *testing.F) {
	f.Add(AppendStamp(nil, Stamp{Base: Position{1, 2}, Time: 3, Node: 4}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, rest, err := DecodeStamp(b)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.Equal(t, b, append(AppendStamp(nil, s), rest...))
	})
}

func FuzzDecodeContext(f *testing.F) {
	f.Add([]byte("k"), EncodeContext([]byte("k"), Vector{{1, 2}}))
	f.Add([]byte("k"), EncodeSeen([]byte("k"), Seen{Vector: Vector{{1, 2}}, Dots: []Dot{{1, 4}, {2, 1}}}))
	f.Fuzz(func(t *testing.T, key, token []byte) {
		v, err := DecodeContext(key, token)
		if err != nil {
			require.ErrorIs(t, err, ErrBadContext)
			return
		}
		require.True(t, v.valid())
		require.Equal(t, token, EncodeSeen(key, v))
	})
}
