package ring

import (
	"bytes"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// PartitionOf returns the partition of the key among q, which is one of q equal ranges of the 64-bit xxHash of the key,
// or of its tag where it has one: keys with the same {tag} share a partition. The choice can never change, because data
// already written would no longer be found.
func PartitionOf(key []byte, q int) kv.PartitionID {
	if q <= 1 {
		return 0
	}
	// The high half of hash × q is the number of the range that the hash falls into, without a division.
	hi, _ := bits.Mul64(xxhash.Sum64(hashed(key)), uint64(q))
	return kv.PartitionID(hi)
}

// HasTag reports whether the key has a tag, so that every key that begins with it lies in the same partition.
func HasTag(key []byte) bool { return len(hashed(key)) < len(key) }

// hashed returns the part of the key that is hashed: what stands between the first '{' and the first '}' after it,
// unless that is nothing. It is the rule of Redis Cluster, so that keys made for it behave alike.
func hashed(key []byte) []byte {
	open := bytes.IndexByte(key, '{')
	if open < 0 {
		return key
	}
	length := bytes.IndexByte(key[open+1:], '}')
	if length <= 0 {
		return key
	}
	return key[open+1 : open+1+length]
}

// tokenOf returns the hash at which the range of partition p begins.
func tokenOf(p, q int) uint64 {
	// The smallest h for which h × q / 2^64 reaches p is p × 2^64 / q, rounded up.
	quo, rem := bits.Div64(uint64(p), 0, uint64(q))
	if rem > 0 {
		quo++
	}
	return quo
}
