package storage

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// State reads the state of both lanes, and what goes with it. It is changed through batches.
type State struct{ e *Engine }

// State returns the handle of the lanes' state.
func (e *Engine) State() State { return State{e: e} }

// ownStrong decodes a state whose slices are the caller's own.
func ownStrong(payload []byte) (Strong, error) {
	s, err := decodeStrong(payload)
	s.Base = bytes.Clone(s.Base)
	if s.Deleted {
		s.Value = nil
		return s, err
	}
	s.Value = bytes.Clone(s.Value)
	return s, err
}

// ownSiblings decodes a sibling set whose slices nothing else changes. One copy of the row serves all of its values.
func ownSiblings(payload []byte) (causal.SiblingSet, error) {
	return causal.DecodeSet(bytes.Clone(payload))
}

// Strong returns S(key): the strong lane's state, tombstones included; false when there is none.
func (s State) Strong(g kv.GroupID, key []byte) (out Strong, found bool, err error) {
	buf := s.e.keys.Get().(*keyBuffer)
	buf.b = appendStateKey(buf.b[:0], g, key)
	if s.e.absence.absent(buf.b) {
		s.e.keys.Put(buf)
		return Strong{}, false, s.e.usable()
	}
	found, err = s.e.get(buf.b, formatStrong, func(payload []byte) (err error) {
		out, err = ownStrong(payload)
		return err
	})
	s.e.keys.Put(buf)
	return out, found, err
}

// Siblings returns E(key): the eventual lane's sibling set; false when there is none. What the set points to is shared, and
// must not be changed.
func (s State) Siblings(p kv.PartitionID, key []byte) (out causal.SiblingSet, found bool, err error) {
	out, found, version := s.e.recent.get(p, key)
	if found {
		if err := s.e.usable(); err != nil {
			return causal.SiblingSet{}, false, err
		}
		return out, true, nil
	}
	buf := s.e.keys.Get().(*keyBuffer)
	buf.b = appendSiblingsKey(buf.b[:0], p, key)
	found, err = s.e.get(buf.b, formatSiblings, func(payload []byte) (err error) {
		row := bytes.Clone(payload)
		if out, err = causal.DecodeSet(row); err == nil {
			s.e.recent.keep(p, key, row, out, version)
		}
		return err
	})
	s.e.keys.Put(buf)
	return out, found, err
}

// AtHand reports whether Siblings and Strong of the key will most likely be answered from memory.
func (s State) AtHand(p kv.PartitionID, key []byte) bool {
	if !s.e.recent.has(p, key) {
		return false
	}
	buf := s.e.keys.Get().(*keyBuffer)
	defer s.e.keys.Put(buf)
	buf.b = appendStateKey(buf.b[:0], p.Group(), key)
	return s.e.absence.absent(buf.b)
}

// Both returns S and E of a key from one view of the storage: no batch lies between the two.
func (s State) Both(p kv.PartitionID, key []byte) (
	strong Strong, hasStrong bool, set causal.SiblingSet, hasSet bool, err error,
) {
	if err = s.e.usable(); err != nil {
		return strong, false, set, false, err
	}
	buf := s.e.keys.Get().(*keyBuffer)
	defer s.e.keys.Put(buf)
	buf.b = appendSiblingsKey(buf.b[:0], p, key)
	// An iterator pins one view of memory and disk. A Pebble snapshot would cost two turns of the database's mutex, and
	// does not hold its view across an excise.
	it, err := s.e.db.NewIter(nil)
	if err != nil {
		return strong, false, set, false, s.e.readFailed(buf.b, err)
	}
	hasSet, err = s.seek(it, buf.b, formatSiblings, func(payload []byte) (err error) {
		set, err = ownSiblings(payload)
		return err
	})
	if err == nil {
		buf.b = appendStateKey(buf.b[:0], p.Group(), key)
		hasStrong, err = s.seek(it, buf.b, formatStrong, func(payload []byte) (err error) {
			strong, err = ownStrong(payload)
			return err
		})
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = s.e.readFailed(buf.b, closeErr)
	}
	if err == nil {
		err = s.e.health.stopped()
	}
	if err != nil {
		return Strong{}, false, causal.SiblingSet{}, false, err
	}
	return strong, hasStrong, set, hasSet, nil
}

// seek reads the row of exactly this key through the iterator. With Pebble's default comparer a key is its own prefix,
// so that bloom filters answer for keys that are not there.
func (s State) seek(it *pebble.Iterator, key []byte, format byte, use func(payload []byte) error) (bool, error) {
	if !it.SeekPrefixGE(key) {
		if err := it.Error(); err != nil {
			return false, s.e.readFailed(key, err)
		}
		return false, nil
	}
	row, err := it.ValueAndErr()
	if err != nil {
		return false, s.e.readFailed(key, err)
	}
	err = s.e.useRow(key, row, format, use)
	return err == nil, err
}

// ScanStrong calls fn for each key of the group from from on, in order, until fn returns false or an error. What fn
// gets is its own. It sees one view of the storage, however long it takes.
func (s State) ScanStrong(g kv.GroupID, from []byte, fn func(key []byte, s Strong) (more bool, err error)) error {
	invariant.Check(g != kv.MetaGroup, "the metadata group has no user keys")
	prefix := appendGroupRow(nil, g, groupState)
	start := append(bytes.Clone(prefix), from...)
	return s.e.scan(prefix, appendPrefixEnd(nil, prefix), start, func(key, row []byte) (bool, error) {
		var state Strong
		err := s.e.useRow(key, row, formatStrong, func(payload []byte) (err error) {
			state, err = ownStrong(payload)
			return err
		})
		if err != nil {
			return false, err
		}
		return fn(bytes.Clone(key[len(prefix):]), state)
	})
}

// ScanSiblings calls fn for each key of the partition from from on, in order, until fn returns false or an error. What
// fn gets is its own. It sees one view of the storage, however long it takes.
func (s State) ScanSiblings(
	p kv.PartitionID, from []byte, fn func(key []byte, set causal.SiblingSet) (more bool, err error),
) error {
	prefix := appendSiblingsPrefix(nil, p)
	start := append(bytes.Clone(prefix), from...)
	return s.scanSets(prefix, appendPrefixEnd(nil, prefix), start, fn)
}

// scanSets calls fn for the sets in the rows from start to end, whose keys stand behind the prefix, until fn returns false or an
// error. What fn gets is its own.
func (s State) scanSets(
	prefix, end, start []byte, fn func(key []byte, set causal.SiblingSet) (more bool, err error),
) error {
	return s.e.scan(prefix, end, start, func(key, row []byte) (bool, error) {
		var set causal.SiblingSet
		err := s.e.useRow(key, row, formatSiblings, func(payload []byte) (err error) {
			set, err = ownSiblings(payload)
			return err
		})
		if err != nil {
			return false, err
		}
		return fn(bytes.Clone(key[len(prefix):]), set)
	})
}

// Dedup returns the reply kept for an operation that the group's state machine has applied.
func (s State) Dedup(g kv.GroupID, opID []byte) (reply []byte, found bool, err error) {
	return s.e.getOpaque(appendDedupKey(nil, g, opID))
}

// MetaValue returns a row of the metadata group's state machine. The value is the caller's own.
func (s State) MetaValue(name string) (value []byte, found bool, err error) {
	return s.e.getOpaque(appendStateKey(nil, kv.MetaGroup, []byte(name)))
}
