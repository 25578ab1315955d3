package storage

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// loadTrees reads what the disk knows of the trees.
func (e *Engine) loadTrees() error {
	e.trees.full, e.trees.all = make(chan struct{}, 1), make(map[kv.PartitionID]*tree)
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixSiblings}, UpperBound: []byte{prefixDead}})
	if err != nil {
		return e.readFailed([]byte{prefixTree}, err)
	}
	l := treeLoader{e: e, it: it}
	err = l.load()
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = e.readFailed([]byte{prefixTree}, closeErr)
	}
	if err != nil {
		return err
	}
	for _, p := range l.treeless {
		if err := e.beginTree(p); err != nil {
			return err
		}
	}
	for _, p := range l.rowless {
		if err := e.BeginHealing(p); err != nil {
			return err
		}
	}
	for p, t := range e.trees.all {
		if e.Healing(p) {
			t.distrust()
		}
	}
	return nil
}

// distrust has the tree folded in anew, from E: a hash whose row was lost would make the replicas look alike that are not, and
// the lost row would never be asked for.
func (t *tree) distrust() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.segments {
		t.segments[i].sealed, t.segments[i].lost = false, true
	}
}

// beginTree gives a tree to a partition that has rows of E and none: they were written by a version without trees, or the
// tree was lost, and perhaps more with it.
func (e *Engine) beginTree(p kv.PartitionID) error {
	b := e.NewBatch()
	defer b.Close()
	t := e.trees.of(p)
	for i := range t.segments {
		t.segments[i] = segment{number: 2, lost: true}
		b.setSegment(p, treeMark, i, 1)
	}
	if err := e.ApplyNoSync(b); err != nil {
		return err
	}
	return e.BeginHealing(p)
}

// treeLoader reads the trees' rows. A partition has a few thousand besides its index, which is skipped.
type treeLoader struct {
	e  *Engine
	it *pebble.Iterator
	// treeless are the partitions that have rows of E and no tree.
	treeless []kv.PartitionID
	// rowless are those whose tree speaks of rows of which none is left.
	rowless []kv.PartitionID
}

func (l *treeLoader) load() error {
	known := map[kv.PartitionID]bool{}
	for ok := l.it.SeekGE([]byte{prefixTree}); ok; {
		key := l.it.Key()
		if len(key) < treeRowBytes {
			return corruptRow(key, "is cut short")
		}
		p := kv.PartitionID(binary.BigEndian.Uint16(key[1:]))
		known[p] = true
		if err := l.partition(p); err != nil {
			return err
		}
		ok = l.it.SeekGE(appendTreeRow(nil, p, treeEnd))
	}
	filled := map[kv.PartitionID]bool{}
	for ok := l.it.SeekGE([]byte{prefixSiblings}); ok && l.it.Key()[0] == prefixSiblings; {
		p := kv.PartitionID(binary.BigEndian.Uint16(l.it.Key()[1:]))
		filled[p] = true
		if !known[p] {
			l.treeless = append(l.treeless, p)
		}
		ok = l.it.SeekGE(appendPrefixEnd(nil, appendSiblingsPrefix(nil, p)))
	}
	if err := l.it.Error(); err != nil {
		return l.e.readFailed([]byte{prefixTree}, err)
	}
	for p := range known {
		if !filled[p] && l.e.trees.of(p).rows() > 0 {
			l.rowless = append(l.rowless, p)
		}
	}
	return nil
}

// rows returns how many rows the digests speak of.
func (t *tree) rows() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.digests != nil {
		for i := range t.digests {
			n += int(t.digests[i].Rows)
		}
	}
	return n
}

// partition loads one partition's rows. Where one of them cannot be read its segment is folded in anew.
func (l *treeLoader) partition(p kv.PartitionID) error {
	t := l.e.trees.of(p)
	if err := l.repair(t); err != nil {
		return err
	}
	var marks, seals [TreeSegments]uint32
	end := appendTreeRow(nil, p, treeCopy)
	for ok := l.it.SeekGE(appendTreeRow(nil, p, treeNode)); ok && string(l.it.Key()) < string(end); ok = l.it.Next() {
		key := l.it.Key()
		kind, n := key[treeRowBytes-1], -1
		if len(key) == treeRowBytes+2 {
			n = int(binary.BigEndian.Uint16(key[treeRowBytes:]))
		}
		segments := kind != treeNode
		if n < 0 || n >= TreeNodes || segments && n >= TreeSegments {
			return corruptRow(key, "names no part of a tree")
		}
		var err error
		switch kind {
		case treeNode:
			err = l.use(formatNode, func(payload []byte) (err error) {
				t.sums()[n], err = decodeNodeDigest(payload)
				return err
			})
			n >>= treeNodeBits - treeSegmentBits
		case treeMark:
			err = l.number(&marks[n])
		default:
			err = l.number(&seals[n])
		}
		if stopped := l.e.health.stopped(); stopped != nil {
			return stopped
		}
		if err != nil {
			t.segments[n].lost = true
		}
	}
	if err := l.it.Error(); err != nil {
		return l.e.readFailed(end, err)
	}
	for i := range t.segments {
		s := &t.segments[i]
		s.lost = s.lost || marks[i] > seals[i]
		s.sealed, s.number = !s.lost, max(marks[i], seals[i])+1
	}
	return nil
}

func (l *treeLoader) number(to *uint32) error {
	return l.use(formatSegment, func(payload []byte) error {
		if len(payload) != 4 {
			return errCutShort
		}
		*to = binary.BigEndian.Uint32(payload)
		return nil
	})
}

// repair loads the repair state.
func (l *treeLoader) repair(t *tree) error {
	key := appendTreeRow(nil, t.partition, treeRepair)
	if !l.it.SeekGE(key) || string(l.it.Key()) != string(key) {
		return l.it.Error()
	}
	r := RepairState{Healing: true} // unless it can be read
	_ = l.use(formatRepair, func(payload []byte) (err error) {
		r, err = decodeRepair(payload)
		return err
	})
	t.repair.Store(&r)
	return l.e.health.stopped()
}

// use hands the payload of the iterator's row to fn. Damage is counted and logged there.
func (l *treeLoader) use(format byte, fn func(payload []byte) error) error {
	row, err := l.it.ValueAndErr()
	if err != nil {
		return l.e.readFailed(l.it.Key(), err)
	}
	return l.e.useRow(l.it.Key(), row, format, fn)
}
