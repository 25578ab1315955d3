package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// copyBytesMax is how much is copied in one batch.
const copyBytesMax = 1 << 20

// ReplaceSiblings takes all rows of E of the partition away, with its tree, whatever blocks of them are damaged, and leaves
// copies of those that could be read (ScanCopies). The partition must be quarantined: nobody writes to it meanwhile. It may
// be called again after a crash or an error at any moment.
func (e *Engine) ReplaceSiblings(ctx context.Context, p kv.PartitionID) error {
	if err := e.copySiblings(ctx, p); err != nil {
		return err
	}
	b := e.NewBatch()
	defer b.Close()
	b.key = appendTreeRow(b.key[:0], p, treeRepair)
	b.head = appendRepair(b.head[:0], e.State().Repair(p))
	b.put(formatRepair, b.head, nil)
	if err := e.ApplySync(b); err != nil { // and all copies with it
		return err
	}
	rows := appendSiblingsPrefix(nil, p)
	for _, span := range []pebble.KeyRange{
		{Start: rows, End: appendPrefixEnd(nil, rows)},
		{Start: appendTreeRow(nil, p, treeIndex), End: appendTreeRow(nil, p, treeMark)},
	} {
		err := e.db.Excise(context.Background(), span)
		if e.settle != nil {
			e.settle.Settle()
		}
		if stopped := e.health.stopped(); stopped != nil {
			return stopped
		}
		if err != nil {
			return fmt.Errorf("storage: clear the siblings of partition %d: %s", p, oneLine(err))
		}
	}
	e.recent.forget(p)
	e.trees.of(p).reset()
	return nil
}

// reset makes the tree that of no rows, except those that were changed meanwhile.
func (t *tree) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.digests = nil
	t.forget()
	for i := range t.segments {
		s := &t.segments[i]
		s.version++
		s.number++
		s.sealed, s.marked, s.lost = false, false, true
	}
}

// RefoldTree has the whole tree of the partition folded in anew, from E, by the next Digests.
func (e *Engine) RefoldTree(p kv.PartitionID) error {
	b := e.NewBatch()
	defer b.Close()
	t := e.trees.of(p)
	t.mu.Lock()
	for i := range t.segments {
		s := &t.segments[i]
		s.version++
		s.sealed, s.lost = false, true
		b.setSegment(p, treeMark, i, s.number)
	}
	t.mu.Unlock()
	return e.ApplyNoSync(b)
}

// copySiblings copies every row of E that can be read: in their order up to the first damaged block, then those that the
// tree names.
func (e *Engine) copySiblings(ctx context.Context, p kv.PartitionID) error {
	c := copier{ctx: ctx, e: e, p: p, b: e.NewBatch()}
	defer func() { c.b.Close() }()
	prefix := appendSiblingsPrefix(nil, p)
	var last []byte
	err := e.scan(prefix, appendPrefixEnd(nil, prefix), prefix, func(key, row []byte) (bool, error) {
		last = append(last[:0], key...)
		return true, c.add(key, row)
	})
	if errors.Is(err, ErrCorruption) {
		err = e.State().ScanTree(p, 0, 1<<placeBits, func(_ Place, key []byte, _ uint64) (bool, error) {
			full := appendSiblingsKey(nil, p, key)
			if bytes.Compare(full, last) <= 0 {
				return true, nil
			}
			row, closer, err := e.db.Get(full)
			if err != nil {
				return true, e.health.stopped() // what cannot be read is what the other replicas are asked for
			}
			err = c.add(full, row)
			if closeErr := closer.Close(); err == nil && closeErr != nil {
				err = e.readFailed(full, closeErr)
			}
			return true, err
		})
	}
	if err != nil && !errors.Is(err, ErrCorruption) {
		return err
	}
	return c.flush()
}

type copier struct {
	ctx context.Context
	e   *Engine
	p   kv.PartitionID
	b   *Batch
}

func (c *copier) add(key, row []byte) error {
	if verifyRow(row, key) != nil {
		return nil // as above
	}
	user := key[siblingsPrefixBytes:]
	c.b.key = append(appendTreeRow(c.b.key[:0], c.p, treeCopy), user...)
	c.b.put(formatSiblings, nil, row[1:len(row)-checksumBytes])
	if c.b.Len() < copyBytesMax {
		return nil
	}
	return c.flush()
}

func (c *copier) flush() error {
	if err := c.ctx.Err(); err != nil || c.b.Empty() {
		return err
	}
	err := c.e.ApplyNoSync(c.b)
	c.b.Close()
	c.b = c.e.NewBatch()
	return err
}

// ScanCopies calls fn for each copy that ReplaceSiblings left, until fn returns false or an error. What fn gets is its own.
func (s State) ScanCopies(p kv.PartitionID, fn func(key []byte, set causal.SiblingSet) (more bool, err error)) error {
	prefix := appendTreeRow(nil, p, treeCopy)
	return s.scanSets(prefix, appendTreeRow(nil, p, treeEnd), prefix, fn)
}

// DeleteCopy removes a copy that has been merged.
func (b *Batch) DeleteCopy(p kv.PartitionID, key []byte) {
	b.key = append(appendTreeRow(b.key[:0], p, treeCopy), key...)
	b.remove()
}
