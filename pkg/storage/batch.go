package storage

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// Batch collects changes that are applied together. It belongs to one goroutine at a time; its arguments are copied, so
// that callers keep their slices.
//
// Changes take effect in the order in which they were added. A batch is applied once and then closed.
type Batch struct {
	engine *Engine
	rows   *pebble.Batch
	key    []byte // scratch for keys
	head   []byte // scratch for what precedes a row's large part
	// changes are the rows of E that the batch changes.
	changes []change
	// waiting is true from ApplyNoSyncWait until SyncWait returned: Pebble still writes into rows.
	waiting bool
	applied bool
	// err is why the batch could not be applied or synced.
	err error
	// abandoned is true when the engine stopped while Pebble had the batch. Pebble may hold on to it, so that it is
	// left to the garbage collector.
	abandoned bool
}

// batchScratchBytesMax is the scratch a batch keeps when it goes back to the pool. One huge sibling set must not be
// held by every pooled batch for ever.
const batchScratchBytesMax = 64 << 10

// NewBatch returns an empty batch. Close gives it back.
func (e *Engine) NewBatch() *Batch {
	b := e.batches.Get().(*Batch)
	b.engine, b.rows = e, e.db.NewBatch()
	return b
}

// Close gives up the batch, which must not be used afterwards. It waits for a sync that was asked for and not waited for.
func (b *Batch) Close() {
	if b.rows == nil {
		return
	}
	if b.waiting {
		_ = b.SyncWait() // whoever cares about the outcome has asked for it
	}
	if !b.abandoned {
		// Pebble reports only a second Close, which the check above excludes.
		_ = b.rows.Close()
	}
	e := b.engine
	b.engine, b.rows, b.applied, b.abandoned, b.err = nil, nil, false, false, nil
	clear(b.changes)
	if b.changes = b.changes[:0]; cap(b.changes) > changesKeptMax {
		b.changes = nil
	}
	if cap(b.head) > batchScratchBytesMax {
		b.head = nil
	}
	e.batches.Put(b)
}

// Len returns the batch's size in bytes.
func (b *Batch) Len() int { return b.rows.Len() }

// Empty reports whether nothing was added.
func (b *Batch) Empty() bool { return b.rows.Empty() }

// Mark adds a record that is in the log only, so that a batch with nothing to write can be synced: it makes durable what was applied before
// it. One that is empty would not reach the log.
func (b *Batch) Mark() error {
	if err := b.rows.LogData([]byte{logMark}, nil); err != nil {
		return fmt.Errorf("storage: mark the log: %w", err)
	}
	return nil
}

// logMark is what a mark of the log holds. Nobody reads it.
const logMark = 1

// ApplyNoSync applies the batch: it is visible at return, and durable once something applied at the same time or later
// was synced.
func (e *Engine) ApplyNoSync(b *Batch) error { return e.apply(b, false) }

// ApplyNoSyncWait applies the batch and asks for a sync without waiting for it: the batch is visible at return, and
// durable, with all that was applied before it, once b.SyncWait returned nil.
func (e *Engine) ApplyNoSyncWait(b *Batch) error { return e.apply(b, true) }

// ApplySync applies the batch and waits until it is durable, with all that was applied before it.
func (e *Engine) ApplySync(b *Batch) error {
	if err := e.apply(b, true); err != nil {
		return err
	}
	return b.SyncWait()
}

func (e *Engine) apply(b *Batch, sync bool) error {
	b.err = e.tryApply(b, sync)
	return b.err
}

func (e *Engine) tryApply(b *Batch, sync bool) (err error) {
	invariant.Check(b.engine == e, "a batch is applied to the engine that made it")
	invariant.Check(!b.applied, "a batch is applied once")
	if err := e.usable(); err != nil {
		return err
	}
	if b.Len() > batchBytesMax {
		return fmt.Errorf("%w: it has %d bytes, the limit is %d", ErrBatchTooLarge, b.Len(), batchBytesMax)
	}
	if len(b.changes) > 0 {
		e.beginChanges(b)
		turn := e.recent.begin()
		defer func() {
			e.recent.end(turn, b.changes, err == nil)
			e.endChanges(b)
		}()
	}
	b.applied = true
	if mutant.Planted == mutant.NoSync {
		sync = false // and say that it was
	}
	if sync {
		err = e.db.ApplyNoSyncWait(b.rows, pebble.Sync)
	} else {
		err = e.db.Apply(b.rows, pebble.NoSync)
	}
	// Pebble returns success after Logger.Fatalf came back to it, and the guard tells it that its log is well.
	if stopped := e.health.stopped(); stopped != nil {
		b.abandoned = true
		return stopped
	}
	if err != nil {
		return fmt.Errorf("storage: apply a batch: %w", err)
	}
	b.waiting = sync
	return nil
}

// SyncWait waits for the sync that ApplyNoSyncWait asked for. Only nil means that the batch is durable; after an error
// it may be or may not be. It repeats its answer, and that of an apply that failed; where no sync was asked for there
// is nothing to wait for and the answer is nil.
func (b *Batch) SyncWait() error {
	if !b.waiting {
		return b.err
	}
	err := b.rows.SyncWait()
	if b.engine.settle != nil {
		b.engine.settle.Settle()
	}
	b.waiting = false
	if err != nil {
		// The guard keeps the log's errors away from Pebble. Should one come by another way, it is as fatal.
		b.engine.health.trip(fmt.Errorf("sync of the write-ahead log: %w", err))
	}
	b.err = b.engine.health.stopped()
	return b.err
}

// put adds the row of b.key. The payload is head followed by tail; only tail may be large.
func (b *Batch) put(format byte, head, tail []byte) {
	invariant.Check(!b.applied, "a batch that was applied does not change")
	op := b.rows.SetDeferred(len(b.key), rowBytesMin+len(head)+len(tail))
	copy(op.Key, b.key)
	sealRow(op.Value, format, b.key, head, tail)
	b.must(op.Finish())
}

func (b *Batch) remove() {
	invariant.Check(!b.applied, "a batch that was applied does not change")
	op := b.rows.DeleteDeferred(len(b.key))
	copy(op.Key, b.key)
	b.must(op.Finish())
}

// removeRange adds the removal of the keys in [start, end).
func (b *Batch) removeRange(start, end []byte) {
	invariant.Check(!b.applied, "a batch that was applied does not change")
	b.must(b.rows.DeleteRange(start, end, nil))
}

// must asserts that adding to a batch worked. Pebble reports errors here for indexed batches only, which these are not.
func (b *Batch) must(err error) { invariant.Check(err == nil, "adding to a batch: %v", err) }

// SetNodeRow sets a row of the node itself. Names starting with "storage/" are this package's own.
func (b *Batch) SetNodeRow(name string, value []byte) {
	b.key = appendNodeKey(b.key[:0], name)
	b.put(formatOpaque, nil, value)
}

// SetHardState sets the group's hard state.
func (b *Batch) SetHardState(g kv.GroupID, h HardState) {
	b.key = appendGroupRow(b.key[:0], g, groupHardState)
	b.head = appendHardState(b.head[:0], h)
	b.put(formatHardState, b.head, nil)
}

// SetTruncated records the position up to which, itself included, the group's log no longer exists. The entries are
// removed with DeleteEntriesThrough.
func (b *Batch) SetTruncated(g kv.GroupID, p causal.Position) {
	b.key = appendGroupRow(b.key[:0], g, groupTruncated)
	b.head = appendTruncated(b.head[:0], p)
	b.put(formatTruncated, b.head, nil)
}

// SetApplied records what the group's state machine has applied. It belongs into the batch of the changes it covers.
func (b *Batch) SetApplied(g kv.GroupID, a Applied) {
	b.key = appendGroupRow(b.key[:0], g, groupApplied)
	b.head = appendAppliedHead(b.head[:0], &a)
	b.put(formatApplied, b.head, a.ConfState)
}

// AppendEntry sets the log entry at its index.
func (b *Batch) AppendEntry(g kv.GroupID, e LogEntry) {
	b.key = appendEntryKey(b.key[:0], g, e.Index)
	b.head = appendEntryHead(b.head[:0], &e)
	b.put(formatEntry, b.head, e.Data)
}

// DeleteEntriesFrom removes the group's log entries from index on: a suffix that conflicts with the leader's log.
func (b *Batch) DeleteEntriesFrom(g kv.GroupID, index uint64) {
	b.key = appendEntryKey(b.key[:0], g, index)
	b.head = appendPrefixEnd(b.head[:0], b.key[:groupRowBytes])
	b.removeRange(b.key, b.head)
}

// TruncateLog records that the group's log begins behind the position, and removes the entries after from, where it
// began before, up to the position. It names a range that no earlier truncation covers, so that Pebble need not keep
// many over one another.
func (b *Batch) TruncateLog(g kv.GroupID, from uint64, through causal.Position) {
	invariant.Check(from < through.Index, "group %d: truncated from %d to %d", g, from, through.Index)
	b.SetTruncated(g, through)
	b.key = appendEntryKey(b.key[:0], g, from+1)
	b.head = appendEntryKey(b.head[:0], g, through.Index+1)
	b.removeRange(b.key, b.head)
}

// SetDedup keeps the reply of an operation that the group's state machine has applied.
func (b *Batch) SetDedup(g kv.GroupID, opID, reply []byte) {
	b.key = appendDedupKey(b.key[:0], g, opID)
	b.put(formatOpaque, nil, reply)
}

// DeleteDedup forgets the reply of an operation.
func (b *Batch) DeleteDedup(g kv.GroupID, opID []byte) {
	b.key = appendDedupKey(b.key[:0], g, opID)
	b.remove()
}

// SetMetaValue sets a row of the metadata group's state machine.
func (b *Batch) SetMetaValue(name string, value []byte) {
	b.key = append(appendGroupRow(b.key[:0], kv.MetaGroup, groupState), name...)
	b.put(formatOpaque, nil, value)
}

// SetStrong sets the strong lane's state of a key.
func (b *Batch) SetStrong(g kv.GroupID, key []byte, s Strong) {
	invariant.Check(g != kv.MetaGroup, "the metadata group has no user keys")
	invariant.Check(!s.Deleted || len(s.Value) == 0, "a tombstone has no value")
	b.key = appendStateKey(b.key[:0], g, key)
	b.engine.noteState(b.key, len(s.Covered) > 0 || s.Before != 0)
	b.head = appendStrongHead(b.head[:0], &s)
	b.put(formatStrong, b.head, s.Value)
}
