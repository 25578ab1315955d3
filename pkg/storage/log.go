package storage

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Log reads the Raft logs and the state that goes with them. It is changed through batches.
type Log struct{ e *Engine }

// Log returns the handle of the Raft logs.
func (e *Engine) Log() Log { return Log{e: e} }

// HardState returns the group's hard state; false when the group has none here.
func (l Log) HardState(g kv.GroupID) (h HardState, found bool, err error) {
	found, err = l.e.get(appendGroupRow(nil, g, groupHardState), formatHardState, func(payload []byte) (err error) {
		h, err = decodeHardState(payload)
		return err
	})
	return h, found, err
}

// Truncated returns the position up to which, itself included, the group's log no longer exists.
func (l Log) Truncated(g kv.GroupID) (p causal.Position, found bool, err error) {
	found, err = l.e.get(appendGroupRow(nil, g, groupTruncated), formatTruncated, func(payload []byte) (err error) {
		p, err = decodeTruncated(payload)
		return err
	})
	return p, found, err
}

// Applied returns what the group's state machine has applied. ConfState is the caller's own.
func (l Log) Applied(g kv.GroupID) (a Applied, found bool, err error) {
	found, err = l.e.get(appendGroupRow(nil, g, groupApplied), formatApplied, func(payload []byte) (err error) {
		a, err = decodeApplied(payload)
		a.ConfState = bytes.Clone(a.ConfState)
		return err
	})
	return a, found, err
}

// Entries returns the entries in [lo, hi) in order, as many from the front as maxBytes holds and at least one. The data
// are the caller's own. Every entry of the range must exist: ErrTruncated when lo lies in the truncated part of the
// log, otherwise a missing entry wraps ErrCorruption.
func (l Log) Entries(g kv.GroupID, lo, hi, maxBytes uint64) ([]LogEntry, error) {
	invariant.Check(lo <= hi, "entries [%d, %d) of group %d", lo, hi, g)
	if lo == hi {
		return nil, nil
	}
	var out []LogEntry
	next, size, full := lo, uint64(0), false
	lower := appendEntryKey(nil, g, lo)
	err := l.e.scan(lower, appendEntryKey(nil, g, hi), lower, func(key, row []byte) (bool, error) {
		index, ok := indexOfEntryKey(key)
		if !ok || index != next {
			return false, nil
		}
		if size += uint64(len(row)); size > maxBytes && len(out) > 0 {
			full = true
			return false, nil
		}
		err := l.e.useRow(key, row, formatEntry, func(payload []byte) error {
			e, err := decodeEntry(payload)
			e.Index, e.Data = index, append([]byte{}, e.Data...)
			out = append(out, e)
			return err
		})
		next++
		return next < hi, err
	})
	if err != nil {
		return nil, err
	}
	if next < hi && !full {
		return nil, l.missing(g, next)
	}
	return out, nil
}

// missing says why the log has no entry at the index.
func (l Log) missing(g kv.GroupID, index uint64) error {
	truncated, found, err := l.Truncated(g)
	if err != nil {
		return err
	}
	if found && index <= truncated.Index {
		return fmt.Errorf("%w: entry %d of group %d; the log starts after %d", ErrTruncated, index, g, truncated.Index)
	}
	err = corruptRow(appendEntryKey(nil, g, index), "is missing")
	l.e.health.noteCorruption(groupKeyspace(groupEntry), err)
	return err
}

// LastEntry returns the position of the last entry; false when the log has no entries.
func (l Log) LastEntry(g kv.GroupID) (p causal.Position, found bool, err error) {
	if err := l.e.usable(); err != nil {
		return p, false, err
	}
	lower := appendGroupRow(nil, g, groupEntry)
	it, err := l.e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: appendPrefixEnd(nil, lower)})
	if err != nil {
		return p, false, l.e.readFailed(lower, err)
	}
	if it.Last() {
		p, err = l.position(it)
		found = err == nil
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		return p, false, l.e.readFailed(lower, closeErr)
	}
	if err == nil {
		err = l.e.health.stopped()
	}
	return p, found && err == nil, err
}

// position returns the position of the entry that the iterator is at.
func (l Log) position(it *pebble.Iterator) (p causal.Position, err error) {
	row, err := it.ValueAndErr()
	if err != nil {
		return p, l.e.readFailed(it.Key(), err)
	}
	err = l.e.useRow(it.Key(), row, formatEntry, func(payload []byte) error {
		e, err := decodeEntry(payload)
		p.Term = e.Term
		return err
	})
	index, ok := indexOfEntryKey(it.Key())
	if err == nil && !ok {
		err = corruptRow(it.Key(), "is no log entry's key")
	}
	p.Index = index
	return p, err
}

// Term returns the term of the entry at the index; false when the log has no such entry.
func (l Log) Term(g kv.GroupID, index uint64) (term uint64, found bool, err error) {
	found, err = l.e.get(appendEntryKey(nil, g, index), formatEntry, func(payload []byte) error {
		e, err := decodeEntry(payload)
		term = e.Term
		return err
	})
	return term, found, err
}

// Groups returns the groups that have any row on this disk, in order.
func (l Log) Groups() (groups []kv.GroupID, err error) {
	if err := l.e.usable(); err != nil {
		return nil, err
	}
	lower := []byte{prefixGroup}
	it, err := l.e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: []byte{prefixGroup + 1}})
	if err != nil {
		return nil, l.e.readFailed(lower, err)
	}
	for ok := it.First(); ok; {
		g, isRow := groupOfKey(it.Key())
		if !isRow {
			err = corruptRow(it.Key(), "is no group's key")
			break
		}
		groups = append(groups, g)
		if g == ^kv.GroupID(0) {
			break
		}
		// Straight to the next group: a group's rows may be millions.
		ok = it.SeekGE(appendGroupPrefix(nil, g+1))
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = l.e.readFailed(lower, closeErr)
	}
	if err == nil {
		err = l.e.health.stopped()
	}
	return groups, err
}

// Sizes calls fn with the size of each entry of the group's log as encoded, in order. It reads the whole log, so that
// callers ask once, when a group is opened, and keep count from there.
func (l Log) Sizes(g kv.GroupID, fn func(index, bytes uint64)) error {
	lower := appendGroupRow(nil, g, groupEntry)
	return l.e.scan(lower, appendPrefixEnd(nil, lower), lower, func(key, row []byte) (bool, error) {
		index, ok := indexOfEntryKey(key)
		if !ok {
			return false, corruptRow(key, "is no log entry's key")
		}
		fn(index, uint64(len(key)+len(row)))
		return true, nil
	})
}
