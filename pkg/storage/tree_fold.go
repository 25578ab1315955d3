package storage

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// treeCheckEvery is the number of rows between two looks at the context.
	treeCheckEvery = 1024
	// foldBytesMax is about how large a batch of a folding becomes.
	foldBytesMax = 256 << 10
	// refoldRowsMax bounds the rows that are held in memory while lost segments are folded in from E. Where there are more,
	// E is read again for the rest.
	refoldRowsMax = 1 << 18
)

// Digests returns the digests of the partition's tree, with every batch folded in that was visible when the call began.
func (e *Engine) Digests(ctx context.Context, p kv.PartitionID) (*TreeDigests, error) {
	t := e.trees.of(p)
	select {
	case t.folding <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	err := e.fold(ctx, t)
	<-t.folding
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.copied()
	return &out, nil
}

// FoldTrees folds in the changes of every partition that has many of them.
func (e *Engine) FoldTrees(ctx context.Context) error {
	e.trees.mu.RLock()
	var full []kv.PartitionID
	for p, t := range e.trees.all {
		t.mu.Lock()
		if len(t.changes) >= changesMax/4 {
			full = append(full, p)
		}
		t.mu.Unlock()
	}
	e.trees.mu.RUnlock()
	for _, p := range full {
		if _, err := e.Digests(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// folding is one folding of a tree.
type folding struct {
	e    *Engine
	t    *tree
	ctx  context.Context
	rows int
	// begun are the segments as they were when the folding began, todo those that were not sealed.
	begun   [TreeSegments]segment
	todo    [TreeSegments]bool
	changes []change
	b       *Batch
	key     []byte // scratch
	// digests are those of the nodes that b changes.
	digests map[int]NodeDigest
	// orphans counts hashes in lost segments of rows that are not there, and were not collected.
	orphans int
	// collected are the keys whose rows may have been collected, once they are needed.
	collected map[string]struct{}
}

// fold folds in what is known of changes, and from E what is not. t.folding is held.
func (e *Engine) fold(ctx context.Context, t *tree) error {
	f := &folding{e: e, t: t, ctx: ctx, digests: map[int]NodeDigest{}}
	if !f.begin() {
		return nil
	}
	f.b = e.NewBatch()
	defer func() { f.b.Close() }()
	err := f.foldChanges()
	if err == nil {
		err = f.flush()
	}
	if err == nil {
		err = f.refold()
	}
	if err == nil {
		err = f.flush()
	}
	if err != nil {
		f.giveBack()
		return err
	}
	if f.orphans > 0 {
		// Nobody removes such rows. They were lost.
		if err := e.BeginHealing(t.partition); err != nil {
			return err
		}
	}
	return f.seal()
}

// begin takes the changes over. Changes that begin later write marks of their own. It reports whether there is anything to
// fold in.
func (f *folding) begin() bool {
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	f.changes, t.changes = t.changes, nil
	some := false
	for i := range t.segments {
		s := &t.segments[i]
		f.begun[i] = *s
		s.lost = false
		if s.sealed {
			continue
		}
		some, f.todo[i] = true, true
		s.number++
		s.marked = false
	}
	return some
}

// giveBack leaves the changes to the next folding. What was folded in already is so again.
func (f *folding) giveBack() {
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.segments {
		t.segments[i].lost = t.segments[i].lost || f.begun[i].lost
	}
	later := t.changes
	t.changes = f.changes
	for _, c := range later {
		t.keep(c)
	}
}

// seal notes on the disk which segments have all of their changes folded in: those that nobody was changing when the
// folding began, or has since.
func (f *folding) seal() error {
	t, b := f.t, f.e.NewBatch()
	defer b.Close()
	t.mu.Lock()
	for i := range t.segments {
		s, begun := &t.segments[i], &f.begun[i]
		if !f.todo[i] {
			continue
		}
		if begun.applying == 0 && s.version == begun.version && !s.lost {
			s.sealed = true
			b.setSegment(t.partition, treeSeal, i, begun.number)
		}
	}
	t.mu.Unlock()
	if b.Empty() {
		return nil
	}
	return f.e.ApplyNoSync(b)
}

// flush writes what was collected and makes it the digests in memory.
func (f *folding) flush() error {
	for node, d := range f.digests {
		f.b.setDigest(f.t.partition, node, d)
	}
	if f.b.Empty() {
		return nil
	}
	if err := f.e.ApplyNoSync(f.b); err != nil {
		return err
	}
	f.b.Close()
	f.b = f.e.NewBatch()
	f.t.mu.Lock()
	for node, d := range f.digests {
		f.t.sums()[node] = d
	}
	f.t.mu.Unlock()
	clear(f.digests)
	return nil
}

// step is called between two nodes.
func (f *folding) step() error {
	if f.b.Len() < foldBytesMax {
		return nil
	}
	if err := f.ctx.Err(); err != nil {
		return err
	}
	return f.flush()
}

func (f *folding) digest(node int) NodeDigest {
	if d, ok := f.digests[node]; ok {
		return d
	}
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.t.digests == nil {
		return NodeDigest{}
	}
	return f.t.digests[node]
}

// foldChanges folds in the changes of segments that are not lost.
func (f *folding) foldChanges() error {
	slices.SortFunc(f.changes, func(a, b change) int {
		if c := cmp.Compare(a.place, b.place); c != 0 {
			return c
		}
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		return cmp.Compare(a.seq, b.seq)
	})
	lower, upper := indexBounds(f.t.partition, 0, 1<<placeBits)
	it, err := f.e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return f.e.readFailed(lower, err)
	}
	for i := range f.changes {
		c := &f.changes[i]
		last := i+1 == len(f.changes) || f.changes[i+1].place != c.place || f.changes[i+1].key != c.key
		if !last || f.begun[c.place.segment()].lost {
			continue
		}
		if err = f.foldChange(it, c); err != nil {
			break
		}
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = f.e.readFailed(lower, closeErr)
	}
	return err
}

func (f *folding) foldChange(it *pebble.Iterator, c *change) error {
	f.key = appendIndexKey(f.key[:0], f.t.partition, c.place, c.key)
	key := f.key
	var old uint64
	if it.SeekGE(key) && bytes.Equal(it.Key(), key) {
		row, err := it.ValueAndErr()
		if err == nil {
			old, err = f.e.useIndex(key, row)
		}
		if err != nil {
			// What it counted for is not known, so that the segment has to be summed up anew.
			f.begun[c.place.segment()].lost = true
			return f.e.health.stopped()
		}
	} else if err := it.Error(); err != nil {
		return f.e.readFailed(key, err)
	}
	if old == c.hash {
		return nil
	}
	d := f.digest(c.place.Node())
	d.replace(old, c.hash)
	f.digests[c.place.Node()] = d
	f.b.setIndex(f.t.partition, c.place, c.key, c.hash)
	return f.step()
}
