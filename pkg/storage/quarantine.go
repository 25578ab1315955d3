package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// SetQuarantine notes that the group's state on this disk, everything that a snapshot of it would hold, is not to be
// trusted, and why. InstallGroup and ReplaceState remove the note together with that state.
func (b *Batch) SetQuarantine(g kv.GroupID, why []byte) {
	b.key = appendGroupRow(b.key[:0], g, groupQuarantine)
	b.put(formatOpaque, nil, why)
}

// Quarantine returns why the group's state is not to be trusted; false when it is. A note that cannot be read any more
// still is one.
func (l Log) Quarantine(g kv.GroupID) (why []byte, found bool, err error) {
	why, found, err = l.e.getOpaque(appendGroupRow(nil, g, groupQuarantine))
	if errors.Is(err, ErrCorruption) {
		return []byte(err.Error()), true, nil
	}
	return why, found, err
}

// PinGroup is SnapshotGroup for somebody who must not wait for the disk: it reads nothing. Sum says where the group was
// applied, and Applied does not.
func (e *Engine) PinGroup(g kv.GroupID) (*GroupSnapshot, error) {
	if err := e.usable(); err != nil {
		return nil, err
	}
	s := &GroupSnapshot{e: e, group: g, installs: e.installs.of(g), rows: e.db.NewSnapshot()}
	if s.installs%2 == 1 {
		s.Close()
		return nil, fmt.Errorf("%w: group %d is being replaced", ErrSnapshotLost, g)
	}
	return s, nil
}

// Sum returns a hash of all rows of the snapshot, that is of all that the group's machine has made of its log: keys with
// their stamps and expiries, remembered operations, the applied position and the configuration. Replicas that applied the
// same entries have the same sum. It reads the rows in chunks of chunkBytes and calls pace with the size of each.
func (s *GroupSnapshot) Sum(chunkBytes int, pace func(bytes int) error) (applied Applied, sum uint64, err error) {
	h := xxhash.New()
	var rows, next []byte
	for first := true; ; first = false {
		if rows, next, err = s.AppendRows(rows[:0], next, chunkBytes); err != nil {
			return Applied{}, 0, err
		}
		if first {
			if applied, err = firstApplied(s.group, rows); err != nil {
				return Applied{}, 0, err
			}
		}
		// How rows are divided into chunks leaves no trace in the bytes.
		_, _ = h.Write(rows) // a hash takes everything
		if err := pace(len(rows)); err != nil {
			return Applied{}, 0, err
		}
		if next == nil {
			return applied, h.Sum64(), nil
		}
	}
}

// errFirstRow ends a walk over rows behind the first.
var errFirstRow = errors.New("storage: only the first row is asked for")

// firstApplied reads the applied row, which is the first of a group's state.
func firstApplied(g kv.GroupID, rows []byte) (a Applied, err error) {
	if len(rows) == 0 {
		return a, fmt.Errorf("%w: group %d", ErrNotFound, g)
	}
	err = eachRow(rows, func(suffix, row []byte) error {
		var err error
		if a, err = appliedOf(g, suffix, row); err == nil {
			err = errFirstRow
		}
		return err
	})
	if errors.Is(err, errFirstRow) {
		err = nil
	}
	return a, err
}

// ReplaceState replaces the state of the staged group, with the note that it is not to be trusted, by the staged one, and
// leaves the group's log, its hard state and its truncated position alone: after a crash at any moment either all old rows
// are there or all new ones. It is durable at return. The log must hold what was committed behind the staged state, and the
// hard state must know, durably, that so much is committed. The caller applies nothing to the group meanwhile.
//
// After an error that wraps ErrStopped it is not known which rows are there; after any other the old ones are, and the
// same stage may be installed again.
func (e *Engine) ReplaceState(s *Stage) error {
	invariant.Check(s.e == e && s.table == nil && s.last != nil, "a finished stage is installed where it was made")
	if err := e.usable(); err != nil {
		return err
	}
	e.installs.step(s.group)
	defer e.installs.step(s.group)
	_, err := e.db.IngestAndExcise(context.Background(), s.paths, nil, nil, pebble.KeyRange{
		Start: appendGroupRow(nil, s.group, groupQuarantine), End: appendPrefixEnd(nil, appendGroupPrefix(nil, s.group)),
	})
	if e.settle != nil {
		e.settle.Settle()
	}
	if stopped := e.health.stopped(); stopped != nil {
		return stopped
	}
	if err != nil {
		return fmt.Errorf("storage: replace the state of group %d: %s", s.group, oneLine(err))
	}
	return nil
}
