package storage

import (
	"bytes"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// The expiry index of S has an empty row for each time at which a key was set to expire: 01 <group> 21 <expiry> <key>. It
// is a hint: a write that replaces a value leaves its row behind, because looking for it would mean reading the value
// first. Whoever follows a row compares it with the key's state.

func appendExpiryKey(dst []byte, g kv.GroupID, at causal.HLC, key []byte) []byte {
	return append(causal.AppendHLC(appendGroupRow(dst, g, groupExpiry), at), key...)
}

// SetExpiry notes that the key's state expires at the time.
func (b *Batch) SetExpiry(g kv.GroupID, at causal.HLC, key []byte) {
	b.key = appendExpiryKey(b.key[:0], g, at, key)
	b.put(formatOpaque, nil, nil)
}

// DeleteExpiry removes what SetExpiry noted.
func (b *Batch) DeleteExpiry(g kv.GroupID, at causal.HLC, key []byte) {
	b.key = appendExpiryKey(b.key[:0], g, at, key)
	b.remove()
}

// ScanExpiry calls fn for each note of the group up to until, itself included, in the order of their times, until fn
// returns false or an error. What fn gets is its own.
func (s State) ScanExpiry(g kv.GroupID, until causal.HLC, fn func(at causal.HLC, key []byte) (more bool, err error)) error {
	lower := appendGroupRow(nil, g, groupExpiry)
	upper := appendPrefixEnd(nil, lower)
	if until+1 != 0 {
		upper = appendExpiryKey(nil, g, until+1, nil)
	}
	return s.e.scan(lower, upper, lower, func(key, row []byte) (bool, error) {
		if err := s.e.useRow(key, row, formatOpaque, func([]byte) error { return nil }); err != nil {
			return false, err
		}
		at, rest, err := causal.DecodeHLC(key[groupRowBytes:])
		if err != nil {
			return false, corruptRow(key, "%s", err)
		}
		return fn(at, bytes.Clone(rest))
	})
}
