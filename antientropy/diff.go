package antientropy

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/caprockdb/caprock/pkg/storage"
)

// The shape of the tree as peers see it: part of the protocol. A tree has groups of nodes; a node of many rows is cut into
// parts, of which nobody keeps digests.
const (
	fanOut = 64
	groups = storage.TreeNodes / fanOut
	// listRowsMax is the number of rows up to which a node is listed at once: its list is about as large as its parts.
	listRowsMax = 48
)

// bitmap is a set of up to 64 siblings in the tree.
type bitmap uint64

func (b *bitmap) add(i int)     { *b |= 1 << i }
func (b bitmap) has(i int) bool { return b>>i&1 == 1 }
func (b bitmap) count() int     { return bits.OnesCount64(uint64(b)) }

// differing returns where two lists of 64 differ.
func differing[T comparable](a, b []T) (out bitmap) {
	for i := range a {
		if a[i] != b[i] {
			out.add(i)
		}
	}
	return out
}

// digestOf folds digests into one. The number of rows is in it, so that a row whose hash is 0 could not hide.
func digestOf(nodes []storage.NodeDigest) (sum uint64) {
	for _, n := range nodes {
		sum = mix(sum) + mix(n.Sum+uint64(n.Rows))
	}
	return sum
}

// groupDigests returns the digest of each group.
func groupDigests(t *storage.TreeDigests) []uint64 {
	out := make([]uint64, groups)
	for g := range out {
		out[g] = digestOf(t[g*fanOut : (g+1)*fanOut])
	}
	return out
}

// nodeDigests returns the digest of each node of a group, cut to half. With the salt, two that look alike in one exchange do
// not in the next.
func nodeDigests(t *storage.TreeDigests, group int, salt uint64) []uint32 {
	out := make([]uint32, fanOut)
	for i := range out {
		out[i] = uint32(mix(digestOf(t[group*fanOut+i:group*fanOut+i+1]) ^ salt))
	}
	return out
}

func rootDigest(t *storage.TreeDigests) uint64 { return digestOf(t[:]) }

// mix spreads its input over all 64 bits (the finaliser of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// rowMark is how a row is told to a peer: 32 bits of the hash of its key and 32 of the hash of the row. They depend on the
// exchange's salt, so that rows which look alike in one exchange do not in the next.
type rowMark struct{ id, sum uint32 }

func (m rowMark) compare(o rowMark) int {
	if c := cmp.Compare(m.id, o.id); c != 0 {
		return c
	}
	return cmp.Compare(m.sum, o.sum)
}

// row is a row of a node.
type row struct {
	key  []byte
	part int
	hash uint64
	mark rowMark
}

// partSums returns the digest of each part of a node's rows.
func partSums(rows []row, salt uint64) []uint32 {
	var sums [fanOut]uint64
	for i := range rows {
		sums[rows[i].part] += mix(rows[i].hash^salt) + 1
	}
	out := make([]uint32, fanOut)
	for i, s := range sums {
		out[i] = uint32(mix(s) >> 32)
	}
	return out
}

// marksOf lists the rows of the given parts in the order in which they are told.
func marksOf(rows []row, parts bitmap) []rowMark {
	var out []rowMark
	for i := range rows {
		if parts.has(rows[i].part) {
			out = append(out, rows[i].mark)
		}
	}
	slices.SortFunc(out, rowMark.compare)
	return out
}

// diffRows compares the rows of some parts with what the peer told of its own. It returns our keys that the peer lacks or
// has otherwise, and the ids of the rows of which we have nothing.
func diffRows(ours []row, parts bitmap, theirs []rowMark) (send [][]byte, want []uint32) {
	mine := map[uint32][]int{}
	for i := range ours {
		if parts.has(ours[i].part) {
			mine[ours[i].mark.id] = append(mine[ours[i].mark.id], i)
		}
	}
	for start := 0; start < len(theirs); {
		id, end := theirs[start].id, start+1
		for end < len(theirs) && theirs[end].id == id {
			end++
		}
		rows, have := mine[id]
		switch {
		case !have:
			want = append(want, id)
		case sameRows(ours, rows, theirs[start:end]):
			delete(mine, id)
		}
		start = end
	}
	for i := range ours {
		if _, differs := mine[ours[i].mark.id]; differs && parts.has(ours[i].part) {
			send = append(send, ours[i].key)
		}
	}
	return send, want
}

// sameRows compares the rows of one id. Nearly always there is one on either side.
func sameRows(ours []row, at []int, theirs []rowMark) bool {
	if len(at) != len(theirs) {
		return false
	}
	sums := make([]uint32, len(at))
	for i, n := range at {
		sums[i] = ours[n].mark.sum
	}
	slices.Sort(sums)
	for i, s := range sums {
		if theirs[i].sum != s {
			return false
		}
	}
	return true
}
