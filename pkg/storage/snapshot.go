package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// What a snapshot of a group holds is every row from the applied position on: what the state machine has made of the
// log. The hard state, the truncated position and the log are each replica's own and stay out of it.

// GroupSnapshot is the replicated state of one group as it was at one moment, read piece by piece. It belongs to one
// goroutine at a time. As long as it is open, Pebble keeps rows that have been overwritten since, so that it must not
// stay open for long.
type GroupSnapshot struct {
	e       *Engine
	group   kv.GroupID
	rows    *pebble.Snapshot
	applied Applied
	// installs is the group's count of installs from before this one was taken.
	installs uint64
}

// SnapshotGroup takes a snapshot of the group. ErrNotFound when the group has no rows here.
func (e *Engine) SnapshotGroup(g kv.GroupID) (*GroupSnapshot, error) {
	if err := e.usable(); err != nil {
		return nil, err
	}
	s := &GroupSnapshot{e: e, group: g, installs: e.installs.of(g), rows: e.db.NewSnapshot()}
	if s.installs%2 == 1 {
		s.Close()
		return nil, fmt.Errorf("%w: group %d is being replaced", ErrSnapshotLost, g)
	}
	rows, _, err := s.AppendRows(nil, nil, 1)
	if err == nil {
		// The applied row is the first.
		err = eachRow(rows, func(suffix, row []byte) (err error) {
			s.applied, err = appliedOf(g, suffix, row)
			return err
		})
	}
	if err == nil && s.applied.Index == 0 {
		err = fmt.Errorf("%w: group %d", ErrNotFound, g)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Applied returns up to where the group was applied when the snapshot was taken.
func (s *GroupSnapshot) Applied() Applied { return s.applied }

// Close gives the snapshot up.
func (s *GroupSnapshot) Close() {
	_ = s.rows.Close() // it cannot fail
}

// AppendRows appends rows in their order, from the one behind after on, or from the first when after is nil: as many as
// bytesMax holds and at least one. What it appends is for Stage.Add. next is the after of the following call, nil when
// there are no more rows. A row that does not check out is an error: damage must not spread.
func (s *GroupSnapshot) AppendRows(dst, after []byte, bytesMax int) (rows, next []byte, err error) {
	if err := s.e.usable(); err != nil {
		return dst, nil, err
	}
	prefix := appendGroupPrefix(nil, s.group)
	lower := append(bytes.Clone(prefix), groupApplied)
	from := lower
	if after != nil {
		from = append(append(bytes.Clone(prefix), after...), 0)
	}
	it, err := s.rows.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: appendPrefixEnd(nil, prefix)})
	if err != nil {
		return dst, nil, s.e.readFailed(lower, err)
	}
	rows, next, err = s.append(it, dst, from, bytesMax)
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = s.e.readFailed(from, closeErr)
	}
	if err == nil {
		err = s.e.health.stopped()
	}
	if err != nil {
		return dst, nil, err
	}
	return rows, next, nil
}

func (s *GroupSnapshot) append(it *pebble.Iterator, dst, from []byte, bytesMax int) (rows, next []byte, err error) {
	// Pebble's snapshots do not see what an excise took away, so that after one this snapshot would look complete and
	// lack rows. The iterator, which was made before this check, keeps its view.
	if s.e.installs.of(s.group) != s.installs {
		return dst, nil, fmt.Errorf("%w: group %d", ErrSnapshotLost, s.group)
	}
	start, last := len(dst), []byte(nil)
	for ok := it.SeekGE(from); ok; ok = it.Next() {
		row, err := it.ValueAndErr()
		if err != nil {
			return dst, nil, s.e.readFailed(it.Key(), err)
		}
		if last != nil && len(dst)-start+len(it.Key())+len(row) > bytesMax {
			return dst, bytes.Clone(last), nil
		}
		if err := verifyRow(row, it.Key()); err != nil {
			s.e.health.noteCorruption(keyspace(it.Key()), err)
			return dst, nil, err
		}
		suffix := it.Key()[groupPrefixBytes:]
		dst = binary.AppendUvarint(dst, uint64(len(suffix)))
		dst = append(dst, suffix...)
		dst = binary.AppendUvarint(dst, uint64(len(row)))
		dst = append(dst, row...)
		last = append(last[:0], suffix...)
	}
	return dst, nil, nil
}

// eachRow calls fn for each of the rows that AppendRows appended, with the key behind the group's prefix.
func eachRow(rows []byte, fn func(suffix, row []byte) error) error {
	next := func() ([]byte, bool) {
		n, size := binary.Uvarint(rows)
		if size <= 0 || n > uint64(len(rows)-size) {
			return nil, false
		}
		b := rows[size : size+int(n) : size+int(n)]
		rows = rows[size+int(n):]
		return b, true
	}
	for len(rows) > 0 {
		suffix, ok := next()
		if !ok || len(suffix) == 0 {
			return fmt.Errorf("%w: a key of a snapshot is cut short", ErrCorruption)
		}
		row, ok := next()
		if !ok {
			return fmt.Errorf("%w: a row of a snapshot is cut short", ErrCorruption)
		}
		if err := fn(suffix, row); err != nil {
			return err
		}
	}
	return nil
}

// appliedOf reads the applied row of a snapshot.
func appliedOf(g kv.GroupID, suffix, row []byte) (a Applied, err error) {
	key := appendGroupRow(nil, g, groupApplied)
	if !bytes.Equal(suffix, key[groupPrefixBytes:]) {
		return a, corruptRow(key, "is missing: the first row is another one")
	}
	payload, err := openRow(row, formatApplied, key)
	if err != nil {
		return a, err
	}
	if a, err = decodeApplied(payload); err != nil {
		return a, corruptRow(key, "%s", err)
	}
	a.ConfState = bytes.Clone(a.ConfState)
	return a, nil
}

// installCounts counts the beginnings and the ends of installs over each group's rows: while one runs the count is odd.
// What an excise takes away is missing from snapshots that were taken before it, however shortly, so that none may be
// taken while one runs, and none is good whose count has changed.
type installCounts struct {
	mu     sync.Mutex // guards counts
	counts map[kv.GroupID]uint64
}

func (c *installCounts) of(g kv.GroupID) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[g]
}

// step notes that an install begins or ends.
func (c *installCounts) step(g kv.GroupID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[kv.GroupID]uint64)
	}
	c.counts[g]++
}
