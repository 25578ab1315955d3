package antientropy

import (
	"bytes"
	"sort"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/causal"
)

// leaves is the number of leaves of a partition's digest. It is part of the protocol.
const leaves = 256

// digest summarises a partition: each leaf is the exclusive or of the hashes of its rows, so that rows can be added in
// any order.
type digest [leaves]uint64

// leafOf returns the leaf that a key belongs to. It goes by the low bits of the hash: the high ones choose the partition,
// so that all keys of one partition have them in common.
func leafOf(key []byte) int { return int(xxhash.Sum64(key) % leaves) }

// hashRow hashes a key with its set. Equal sets have equal bytes, so they have equal hashes. scratch is reused memory;
// the possibly grown one is returned.
func hashRow(scratch, key []byte, set causal.SiblingSet) (uint64, []byte) {
	scratch = append(scratch[:0], byte(len(key)>>8), byte(len(key)))
	scratch = append(scratch, key...)
	scratch = causal.AppendSet(scratch, set)
	return xxhash.Sum64(scratch), scratch
}

// add counts a row in.
func (d *digest) add(key []byte, hash uint64) { d[leafOf(key)] ^= hash }

// leafSet is a set of leaves.
type leafSet [leaves / 8]byte

func (s *leafSet) add(leaf int)      { s[leaf/8] |= 1 << (leaf % 8) }
func (s *leafSet) has(leaf int) bool { return s[leaf/8]&(1<<(leaf%8)) != 0 }
func (s *leafSet) empty() bool       { return *s == leafSet{} }

// differing returns the leaves in which two digests differ.
func (d *digest) differing(o *digest) leafSet {
	var out leafSet
	for i := range d {
		if d[i] != o[i] {
			out.add(i)
		}
	}
	return out
}

// keyHash is one row as the other replica is told of it.
type keyHash struct {
	key  []byte
	hash uint64
}

// until returns the rows up to a key.
func until(rows []keyHash, key []byte) []keyHash {
	n := sort.Search(len(rows), func(i int) bool { return string(rows[i].key) > string(key) })
	return rows[:n]
}

// compare walks two lists, both sorted by key, and returns the keys that only one has or that differ, in order.
func compare(ours, theirs []keyHash) [][]byte {
	var out [][]byte
	i, j := 0, 0
	for i < len(ours) && j < len(theirs) {
		switch c := bytes.Compare(ours[i].key, theirs[j].key); {
		case c < 0:
			out = append(out, ours[i].key)
			i++
		case c > 0:
			out = append(out, theirs[j].key)
			j++
		default:
			if ours[i].hash != theirs[j].hash {
				out = append(out, ours[i].key)
			}
			i++
			j++
		}
	}
	for _, rest := range append(ours[i:len(ours):len(ours)], theirs[j:]...) {
		out = append(out, rest.key)
	}
	return out
}
