package storage

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// keyTuple is a key as the tuple it is made of: every field that its kind does not have is zero.
type keyTuple struct {
	prefix byte   // node, group, siblings
	owner  uint32 // group or partition
	kind   byte   // of a group's row
	index  uint64
	tail   string // name, operation id or user key
}

func (t keyTuple) compare(o keyTuple) int {
	return cmp.Or(
		cmp.Compare(t.prefix, o.prefix), cmp.Compare(t.owner, o.owner), cmp.Compare(t.kind, o.kind),
		cmp.Compare(t.index, o.index), cmp.Compare(t.tail, o.tail),
	)
}

func (t keyTuple) encode() []byte {
	g := kv.GroupID(t.owner)
	switch {
	case t.prefix == prefixNode:
		return appendNodeKey(nil, t.tail)
	case t.prefix == prefixSiblings:
		return appendSiblingsKey(nil, kv.PartitionID(t.owner), []byte(t.tail))
	case t.kind == groupEntry:
		return appendEntryKey(nil, g, t.index)
	case t.kind == groupDedup:
		return appendDedupKey(nil, g, []byte(t.tail))
	case t.kind == groupState:
		return appendStateKey(nil, g, []byte(t.tail))
	}
	return appendGroupRow(nil, g, t.kind)
}

// tuples lists keys of every space with the values that tend to go wrong: zero, one byte rolling over into the next,
// the largest, and tails that are prefixes of one another or look like another space.
func tuples() []keyTuple {
	tails := []string{"", "\x00", "\x00\x00", "\x00\xff", "a", "a\x00", "ab", "b", "\x01\x00\x00\x00\x01", "\xff", "\xff\xff"}
	owners := []uint32{0, 1, 2, 255, 256, 257, 65535}
	var out []keyTuple
	for _, tail := range tails {
		out = append(out, keyTuple{prefix: prefixNode, tail: tail})
	}
	for _, p := range owners {
		for _, tail := range tails {
			out = append(out, keyTuple{prefix: prefixSiblings, owner: p, tail: tail})
		}
	}
	for _, g := range append(owners, 65536, 1<<24, math.MaxUint32) {
		for _, kind := range []byte{groupHardState, groupTruncated, groupApplied} {
			out = append(out, keyTuple{prefix: prefixGroup, owner: g, kind: kind})
		}
		for _, index := range []uint64{0, 1, 255, 256, 1 << 32, math.MaxUint64 - 1, math.MaxUint64} {
			out = append(out, keyTuple{prefix: prefixGroup, owner: g, kind: groupEntry, index: index})
		}
		for _, tail := range tails {
			out = append(out, keyTuple{prefix: prefixGroup, owner: g, kind: groupDedup, tail: tail},
				keyTuple{prefix: prefixGroup, owner: g, kind: groupState, tail: tail})
		}
	}
	return out
}

func TestOrderOfKeysIsOrderOfTuples(t *testing.T) {
	all := tuples()
	for _, a := range all {
		for _, b := range all {
			got, want := bytes.Compare(a.encode(), b.encode()), a.compare(b)
			if got != want {
				t.Fatalf("%+v against %+v: keys compare %d, tuples %d", a, b, got, want)
			}
		}
	}
}

func FuzzOrderOfKeysIsOrderOfTuples(f *testing.F) {
	f.Add(byte(0), uint32(0), byte(3), uint64(0), "a", byte(1), uint32(1), byte(4), uint64(7), "b")
	f.Add(byte(1), uint32(7), byte(2), uint64(1<<40), "", byte(1), uint32(7), byte(2), uint64(1), "")
	kinds := []byte{groupHardState, groupTruncated, groupEntry, groupApplied, groupDedup, groupState}
	tuple := func(prefix byte, owner uint32, kind byte, index uint64, tail string) keyTuple {
		switch t := (keyTuple{prefix: prefix % 3, tail: tail}); t.prefix {
		case prefixNode:
			return t
		case prefixSiblings:
			t.owner = owner % (1 << 16)
			return t
		default:
			t.owner, t.kind = owner, kinds[int(kind)%len(kinds)]
			switch t.kind {
			case groupEntry:
				t.index, t.tail = index, ""
			case groupHardState, groupTruncated, groupApplied:
				t.tail = ""
			}
			return t
		}
	}
	f.Fuzz(func(t *testing.T,
		p1 byte, o1 uint32, k1 byte, i1 uint64, t1 string, p2 byte, o2 uint32, k2 byte, i2 uint64, t2 string,
	) {
		a, b := tuple(p1, o1, k1, i1, t1), tuple(p2, o2, k2, i2, t2)
		require.Equal(t, a.compare(b), bytes.Compare(a.encode(), b.encode()), "%+v against %+v", a, b)
	})
}

// span is a half-open range of keys that belongs to one space.
type span struct {
	name       string
	start, end []byte
}

// spans lists the ranges of all spaces, those reserved included, for several owners.
func spans() []span {
	prefixed := func(name string, prefix []byte) span {
		return span{name: name, start: prefix, end: appendPrefixEnd(nil, prefix)}
	}
	single := func(name string, key []byte) span {
		return span{name: name, start: key, end: append(bytes.Clone(key), 0)}
	}
	out := []span{prefixed("node", []byte{prefixNode})}
	for _, p := range []kv.PartitionID{0, 1, 254, 255, 256, 511, 65535} {
		out = append(out, prefixed(fmt.Sprint("siblings ", p), appendSiblingsPrefix(nil, p)))
	}
	for _, g := range []kv.GroupID{0, 1, 254, 255, 256, 65535, 65536, math.MaxUint32 - 1, math.MaxUint32} {
		for _, kind := range []byte{groupHardState, groupTruncated, groupApplied} {
			out = append(out, single(fmt.Sprintf("group %d kind %x", g, kind), appendGroupRow(nil, g, kind)))
		}
		for _, kind := range []byte{groupEntry, groupDedup, groupState, 0x21} {
			out = append(out, prefixed(fmt.Sprintf("group %d kind %x", g, kind), appendGroupRow(nil, g, kind)))
		}
	}
	for _, reserved := range []byte{0x03, 0x04, 0x05} {
		out = append(out, prefixed(fmt.Sprintf("reserved %x", reserved), []byte{reserved}))
	}
	return out
}

func TestKeySpacesNeitherOverlapNorContainEachOther(t *testing.T) {
	all := spans()
	for i, a := range all {
		require.Negative(t, bytes.Compare(a.start, a.end), a.name)
		for _, b := range all[i+1:] {
			apart := bytes.Compare(a.end, b.start) <= 0 || bytes.Compare(b.end, a.start) <= 0
			require.True(t, apart, "%s [%x, %x) meets %s [%x, %x)", a.name, a.start, a.end, b.name, b.start, b.end)
		}
	}
	require.Equal(t, prefixEnd, byte(0x06))
}

func TestEveryKeyLiesInItsOwnSpaceOnly(t *testing.T) {
	all := spans()
	for _, tuple := range tuples() {
		key := tuple.encode()
		var in []string
		for _, s := range all {
			if bytes.Compare(s.start, key) <= 0 && bytes.Compare(key, s.end) < 0 {
				in = append(in, s.name)
			}
		}
		require.LessOrEqual(t, len(in), 1, "%+v lies in %v", tuple, in)
	}
}

func TestRowsOfAGroupAreContiguous(t *testing.T) {
	all := tuples()
	slices.SortFunc(all, func(a, b keyTuple) int { return bytes.Compare(a.encode(), b.encode()) })
	closed := map[uint32]bool{}
	last := int64(-1)
	for _, tuple := range all {
		if tuple.prefix != prefixGroup {
			continue
		}
		if last >= 0 && uint32(last) != tuple.owner {
			closed[uint32(last)] = true
		}
		require.False(t, closed[tuple.owner], "rows of group %d are interrupted", tuple.owner)
		last = int64(tuple.owner)
	}
}

func TestKeysAreReadBack(t *testing.T) {
	for _, tuple := range tuples() {
		key := tuple.encode()
		g, isGroup := groupOfKey(key)
		require.Equal(t, tuple.prefix == prefixGroup, isGroup)
		if isGroup {
			require.Equal(t, tuple.owner, uint32(g))
		}
		index, isEntry := indexOfEntryKey(key)
		require.Equal(t, tuple.prefix == prefixGroup && tuple.kind == groupEntry, isEntry)
		if isEntry {
			require.Equal(t, tuple.index, index)
		}
		require.NotEqual(t, "unknown", keyspace(key))
	}
}

func FuzzKeyReadersTakeAnyBytes(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0})
	f.Add(appendEntryKey(nil, 7, 9))
	f.Add(appendSiblingsKey(nil, 3, []byte("user/42")))
	f.Fuzz(func(t *testing.T, key []byte) {
		require.NotEmpty(t, keyspace(key))
		require.NotEmpty(t, describeKey(key))
		if g, ok := groupOfKey(key); ok {
			require.True(t, bytes.HasPrefix(key, appendGroupPrefix(nil, g)))
		}
		if index, ok := indexOfEntryKey(key); ok {
			g, _ := groupOfKey(key)
			require.Equal(t, key, appendEntryKey(nil, g, index))
		}
	})
}

func TestPrefixEndIsTheFirstKeyAfterThePrefix(t *testing.T) {
	for _, c := range []struct{ prefix, end []byte }{
		{[]byte{1}, []byte{2}},
		{[]byte{1, 0xff}, []byte{2}},
		{[]byte{1, 0, 0, 0xff, 0xff}, []byte{1, 0, 1}},
		{[]byte{2, 0, 7}, []byte{2, 0, 8}},
	} {
		require.Equal(t, c.end, appendPrefixEnd(nil, c.prefix))
	}
}

func TestMessagesNameTheRow(t *testing.T) {
	for want, key := range map[string][]byte{
		`node row, key "hlc"`:                         appendNodeKey(nil, "hlc"),
		`hard_state row of group 7`:                   appendGroupRow(nil, 7, groupHardState),
		`log_entry row of group 7 at index 42`:        appendEntryKey(nil, 7, 42),
		`state row of group 3, key "user/1"`:          appendStateKey(nil, 3, []byte("user/1")),
		`siblings row of partition 2, key "\x00user"`: appendSiblingsKey(nil, 2, []byte("\x00user")),
	} {
		require.Equal(t, want, describeKey(key))
	}
}
