package storage

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// changesKeptMax is how much of its list of changes a batch keeps when it goes back to the pool.
const changesKeptMax = 4096

// SetSiblings sets the eventual lane's sibling set of a key and, for a set without a value, its entry in the index of dead
// ones. The partition's tree learns of it when the batch is applied.
func (b *Batch) SetSiblings(p kv.PartitionID, key []byte, set causal.SiblingSet) {
	b.key = appendSiblingsKey(b.key[:0], p, key)
	b.head = causal.AppendSet(b.head[:0], set)
	b.put(formatSiblings, b.head, nil)
	b.changed(p, key, b.head)
	if at, dead := DeadSince(set); dead {
		b.key = appendDeadKey(b.key[:0], p, at, key)
		b.put(formatOpaque, nil, nil)
	}
}

// DeleteSiblings removes the eventual lane's sibling set of a key, its causal context included. A row in the index of dead
// sets stays behind until somebody follows it.
func (b *Batch) DeleteSiblings(p kv.PartitionID, key []byte) {
	b.key = appendSiblingsKey(b.key[:0], p, key)
	b.remove()
	b.changed(p, key, nil)
}

// changed notes that a row of E changes. No row stands for its removal.
func (b *Batch) changed(p kv.PartitionID, key, row []byte) {
	c := change{tree: b.engine.trees.of(p), key: string(key), keyHash: xxhash.Sum64(key)}
	c.place = placeOfHash(c.keyHash)
	if row != nil {
		c.hash, c.row = hashRow(c.keyHash, row), b.engine.recent.kept(key, row)
	}
	b.changes = append(b.changes, c)
}

// DeadSince reports whether the set holds no value that stays, and then the latest time that anything in it speaks of, the
// expiry of its values included: once that is behind the repair watermark, there is no value in it any more, and no replica
// needs the set to know what it supersedes.
func DeadSince(set causal.SiblingSet) (causal.HLC, bool) {
	at := set.Context.Latest()
	for i := range set.Siblings {
		if s := &set.Siblings[i]; !s.Deleted && s.Expiry == 0 {
			return 0, false
		}
		at = max(at, expiryNote(&set.Siblings[i]), set.Siblings[i].Dot.Time, set.Siblings[i].Stamp.Time)
	}
	return at, true
}

// expiryNotes is how many notes at most, and half of that at least, a key leaves behind in the index while a value of it
// lives, however often it is written.
const expiryNotes = 16

// expiryNote returns the time under which a value that expires is noted: a little after it does, so that a key which is written
// again and again has few notes in the index and not one of each write.
func expiryNote(s *causal.Sibling) causal.HLC {
	if s.Expiry <= s.Dot.Time {
		return s.Expiry
	}
	shift := max(bits.Len64(uint64(s.Expiry-s.Dot.Time)/expiryNotes), 1)
	step := causal.HLC(1) << shift
	if s.Expiry > ^causal.HLC(0)-step {
		return s.Expiry
	}
	return (s.Expiry + step - 1) &^ (step - 1)
}

// DeleteDead removes what SetSiblings noted of a set that was dead since the time.
func (b *Batch) DeleteDead(p kv.PartitionID, at causal.HLC, key []byte) {
	b.key = appendDeadKey(b.key[:0], p, at, key)
	b.remove()
}

// ScanDead calls fn for each note of a dead set that is behind after, and up to until, itself included, in the order of
// times and keys, until fn returns false or an error. A note is a hint: the set may have changed since. What fn gets is its
// own. after is nil for the first.
func (s State) ScanDead(
	p kv.PartitionID, after *DeadNote, until causal.HLC, fn func(n DeadNote) (more bool, err error),
) error {
	lower := appendDeadKey(nil, p, 0, nil)
	prefix := lower[:siblingsPrefixBytes]
	upper := appendPrefixEnd(nil, prefix)
	if until+1 != 0 {
		upper = appendDeadKey(nil, p, until+1, nil)
	}
	from := lower
	if after != nil {
		from = append(appendDeadKey(nil, p, after.At, after.Key), 0)
	}
	return s.e.scan(prefix, upper, from, func(key, row []byte) (bool, error) {
		if err := s.e.useRow(key, row, formatOpaque, func([]byte) error { return nil }); err != nil {
			return false, err
		}
		at, rest, err := causal.DecodeHLC(key[siblingsPrefixBytes:])
		if err != nil {
			return false, corruptRow(key, "%s", err)
		}
		return fn(DeadNote{At: at, Key: append([]byte{}, rest...)})
	})
}

// DeadNote is a row of the index of sets without a value.
type DeadNote struct {
	At  causal.HLC
	Key []byte
}
