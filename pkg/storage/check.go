package storage

import (
	"bytes"
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Whoever checks the rows of E against the tree wants both from one moment: a batch changes them together, so that any
// difference in one view is damage.

// SiblingsCheck is what a check found.
type SiblingsCheck struct {
	// Rows is how much was looked at.
	Rows int
	// Lost are keys whose row the tree has a hash of, and that is not there, cannot be read, or is another one.
	Lost [][]byte
	// Unindexed are keys with a row that the tree does not have the hash of.
	Unindexed [][]byte
	// TreeDamaged says that rows of the tree itself are missing or cannot be read.
	TreeDamaged bool
	// BlockDamaged says that a scan ended at a block that cannot be read, so that rows behind it could not be looked at.
	BlockDamaged bool
	// Busy says that the rows were being changed, so that not all of them could be held against the tree.
	Busy bool
	// Next is the key to go on behind, nil at the end.
	Next []byte
}

// Sound reports whether nothing is wrong.
func (c *SiblingsCheck) Sound() bool {
	return len(c.Lost) == 0 && len(c.Unindexed) == 0 && !c.TreeDamaged && !c.BlockDamaged
}

// CheckNode looks at each row that a node of the partition's tree has a hash of, and at the node's digest.
func (e *Engine) CheckNode(ctx context.Context, p kv.PartitionID, node int) (c SiblingsCheck, err error) {
	if err := e.usable(); err != nil {
		return c, err
	}
	view, still, digests := e.viewOf(p)
	defer func() { _ = view.Close() }() // it cannot fail
	from, to := NodePlaces(node)
	if !still[from.segment()] {
		c.Busy = true
		return c, nil
	}
	lower, upper := indexBounds(p, from, to)
	it, err := view.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return c, e.readFailed(lower, err)
	}
	var sum NodeDigest
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		err = e.checkIndexed(view, it, p, &sum, &c)
		if c.Rows%treeCheckEvery == 0 && err == nil {
			err = ctx.Err()
		}
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = e.readFailed(lower, closeErr)
	}
	if errors.Is(err, ErrCorruption) {
		c.TreeDamaged, err = true, nil
	}
	if sum != digests[node] {
		c.TreeDamaged = true
	}
	return c, err
}

// viewOf returns a view of the storage, the segments of which all changes were folded in by then, and the digests.
func (e *Engine) viewOf(p kv.PartitionID) (view *pebble.Snapshot, still [TreeSegments]bool, digests TreeDigests) {
	t := e.trees.of(p)
	t.mu.Lock()
	before := t.segments
	digests = t.copied()
	t.mu.Unlock()
	view = e.db.NewSnapshot()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.segments {
		still[i] = before[i].sealed && t.segments[i].still(&before[i])
	}
	return view, still, digests
}

// checkIndexed looks at the row of E that the iterator's row of the tree is about.
func (e *Engine) checkIndexed(view *pebble.Snapshot, it *pebble.Iterator, p kv.PartitionID, sum *NodeDigest, c *SiblingsCheck) error {
	row, err := it.ValueAndErr()
	if err != nil {
		return e.readFailed(it.Key(), err)
	}
	hash, damaged := e.useIndex(it.Key(), row)
	if stopped := e.health.stopped(); stopped != nil {
		return stopped
	}
	c.Rows++
	key := bytes.Clone(it.Key()[treePlace:])
	sum.Add(hash)
	if damaged != nil {
		c.TreeDamaged = true
		c.Unindexed = append(c.Unindexed, key)
		return nil
	}
	got, found, err := e.hashIn(view, p, key)
	switch {
	case errors.Is(err, ErrCorruption), err == nil && (!found || got != hash):
		c.Lost = append(c.Lost, key)
	case err != nil:
		return err
	}
	return nil
}

// hashIn hashes the row of E as a view has it.
func (e *Engine) hashIn(view *pebble.Snapshot, p kv.PartitionID, key []byte) (hash uint64, found bool, err error) {
	full := appendSiblingsKey(nil, p, key)
	row, closer, err := view.Get(full)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, e.health.stopped()
	}
	if err != nil {
		return 0, false, e.readFailed(full, err)
	}
	err = e.useRow(full, row, formatSiblings, func(payload []byte) error {
		hash = hashSiblings(key, payload)
		return nil
	})
	if closeErr := closer.Close(); err == nil && closeErr != nil {
		err = e.readFailed(full, closeErr)
	}
	return hash, err == nil, err
}

// CheckRows looks for rows of E, behind the key after, that the tree does not know: as many as rowsMax.
func (e *Engine) CheckRows(p kv.PartitionID, after []byte, rowsMax int) (c SiblingsCheck, err error) {
	if err := e.usable(); err != nil {
		return c, err
	}
	view, still, _ := e.viewOf(p)
	defer func() { _ = view.Close() }() // it cannot fail
	prefix := appendSiblingsPrefix(nil, p)
	from := prefix
	if after != nil {
		from = append(appendSiblingsKey(nil, p, after), 0)
	}
	it, err := view.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: appendPrefixEnd(nil, prefix)})
	if err != nil {
		return c, e.readFailed(prefix, err)
	}
	for ok := it.SeekGE(from); ok && err == nil; ok = it.Next() {
		if c.Rows == rowsMax {
			break
		}
		err = e.checkRow(view, &still, it, p, &c)
		c.Next = bytes.Clone(it.Key()[len(prefix):])
	}
	if c.Rows < rowsMax {
		c.Next = nil
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = e.readFailed(from, closeErr)
	}
	if errors.Is(err, ErrCorruption) {
		c.BlockDamaged, err = true, nil
	}
	return c, err
}

func (e *Engine) checkRow(
	view *pebble.Snapshot, still *[TreeSegments]bool, it *pebble.Iterator, p kv.PartitionID, c *SiblingsCheck,
) error {
	row, err := it.ValueAndErr()
	if err != nil {
		return e.readFailed(it.Key(), err)
	}
	key := it.Key()[siblingsPrefixBytes:]
	c.Rows++
	var hash uint64
	damaged := e.useRow(it.Key(), row, formatSiblings, func(payload []byte) error {
		hash = hashSiblings(key, payload)
		return nil
	})
	if stopped := e.health.stopped(); stopped != nil {
		return stopped
	}
	if damaged != nil {
		c.Lost = append(c.Lost, bytes.Clone(key))
		return nil
	}
	if !still[PlaceOf(key).segment()] {
		c.Busy = true
		return nil
	}
	full := appendIndexKey(nil, p, PlaceOf(key), key)
	indexed, closer, err := view.Get(full)
	if errors.Is(err, pebble.ErrNotFound) {
		c.Unindexed = append(c.Unindexed, bytes.Clone(key))
		return e.health.stopped()
	}
	if err != nil {
		if err = e.readFailed(full, err); errors.Is(err, ErrCorruption) {
			c.TreeDamaged, err = true, nil
		}
		return err
	}
	got, unread := e.useIndex(full, indexed)
	switch {
	case unread != nil:
		c.Unindexed = append(c.Unindexed, bytes.Clone(key))
	case got != hash:
		c.Lost = append(c.Lost, bytes.Clone(key))
	}
	if err := closer.Close(); err != nil {
		return e.readFailed(full, err)
	}
	return e.health.stopped()
}

// LoseAllSiblings takes all rows of E of a partition away, for whoever tests what becomes of that, with all that lies beside
// them and tells of them. What is known of them in memory stays until the engine is closed.
func (e *Engine) LoseAllSiblings(p kv.PartitionID) error {
	for _, prefix := range [][]byte{appendSiblingsPrefix(nil, p), appendTreeRow(nil, p, 0)[:treeRowBytes-1], appendDeadKey(nil, p, 0, nil)[:siblingsPrefixBytes]} {
		if err := e.db.Excise(context.Background(), pebble.KeyRange{Start: prefix, End: appendPrefixEnd(nil, prefix)}); err != nil {
			return e.readFailed(prefix, err)
		}
		if e.settle != nil {
			e.settle.Settle()
		}
	}
	return e.health.stopped()
}

// LoseSiblings damages the storage for whoever tests what becomes of that: the rows of E of the keys are taken away, or
// with flip set one bit of them is turned, and the tree knows nothing of it. With tree set its rows go as well.
func (e *Engine) LoseSiblings(p kv.PartitionID, flip, tree bool, keys ...[]byte) error {
	b := e.NewBatch()
	defer b.Close()
	for _, key := range keys {
		full := appendSiblingsKey(nil, p, key)
		b.key = append(b.key[:0], full...)
		if !flip {
			b.remove()
		} else {
			row, closer, err := e.db.Get(full)
			if err != nil {
				return e.readFailed(full, err)
			}
			bad := bytes.Clone(row)
			bad[len(bad)/2] ^= 1
			if err := errors.Join(closer.Close(), b.rows.Set(full, bad, nil)); err != nil {
				return err
			}
		}
		if tree {
			b.key = appendIndexKey(b.key[:0], p, PlaceOf(key), key)
			b.remove()
		}
	}
	return e.ApplySync(b)
}
