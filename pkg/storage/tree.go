package storage

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// The hash tree of a partition stands over E. Each row of E has a small one with its hash, ordered by the hash of the key
// (04 <partition> 01): the index. TreeNodes digests sum the index up, each changed in the same batch as the index, so that
// the two always agree.
//
// A write of E does not touch either: a second row a put, somewhere else in the memtable, was tried and tripled what an
// eventual put costs the engine. Instead its batch's changes are kept in memory and folded into index and digests later,
// many at once and in order, before somebody asks for the digests. What the disk has to know is which rows may not have
// been folded in when memory is lost. A batch therefore writes a mark along for each of the TreeSegments segments that it
// changes, but only the first one since the segment was last sealed: marks and seals carry a number that grows with each
// folding, and rows of a segment whose mark has the higher number are folded in anew, from E. Nobody ever deletes a mark, so
// that no order in which batches reach the log can lose one.

const (
	// TreeNodes is the number of nodes whose digests are kept.
	TreeNodes = 1 << treeNodeBits
	// TreeSegments is the number of parts of which the disk knows whether they are folded in.
	TreeSegments = 1 << treeSegmentBits

	treeNodeBits    = 12
	treeSegmentBits = 6
	placeBits       = 32
	// changesMax bounds the changes of a partition that wait to be folded in. Beyond it they are forgotten, and their
	// segments are folded in from E.
	changesMax = 1 << 16
)

// Place is where a key's row stands in the tree: 32 bits of the hash of the key. The high bits of the hash choose the
// partition, so that these are the low ones.
type Place uint32

// PlaceOf returns the key's place.
func PlaceOf(key []byte) Place { return placeOfHash(xxhash.Sum64(key)) }

func placeOfHash(hash uint64) Place { return Place(uint32(hash)) }

// Node returns the node that the place belongs to.
func (p Place) Node() int { return int(p >> (placeBits - treeNodeBits)) }

func (p Place) segment() int { return int(p >> (placeBits - treeSegmentBits)) }

// placesOf returns the first place of part n of 1<<bits and the one behind its last.
func placesOf(n, bits int) (from Place, to uint64) {
	shift := placeBits - bits
	return Place(n << shift), uint64(n+1) << shift
}

// NodePlaces returns the first place of a node and the one behind its last.
func NodePlaces(node int) (from Place, to uint64) { return placesOf(node, treeNodeBits) }

// hashSiblings hashes a row of E. Equal sets have equal bytes, so they have equal hashes. It is never 0.
func hashSiblings(key, set []byte) uint64 { return hashRow(xxhash.Sum64(key), set) }

func hashRow(keyHash uint64, set []byte) uint64 {
	// The set's hash alone would let two keys that swap their sets go unseen.
	h := xxhash.Sum64(set)
	h ^= keyHash * 0x9e3779b97f4a7c15
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	return max(h^h>>32, 1)
}

// NodeDigest sums up the rows of a node: the sum of their hashes, and their number.
type NodeDigest struct {
	Sum  uint64
	Rows uint32
}

// Add counts a row in.
func (d *NodeDigest) Add(hash uint64) {
	d.Sum += hash
	d.Rows++
}

// replace counts a row in for another one; 0 is none.
func (d *NodeDigest) replace(old, hash uint64) {
	d.Sum += hash - old
	if old != 0 {
		d.Rows--
	}
	if hash != 0 {
		d.Rows++
	}
}

// TreeDigests are the digests of all nodes.
type TreeDigests [TreeNodes]NodeDigest

// trees are the hash trees of an engine's partitions.
type trees struct {
	// full has one slot: a token says that a tree has many changes to fold in.
	full chan struct{}

	mu  sync.RWMutex // guards all
	all map[kv.PartitionID]*tree
}

// of returns the partition's tree, which is empty if nobody has asked for it before.
func (t *trees) of(p kv.PartitionID) *tree {
	t.mu.RLock()
	found := t.all[p]
	t.mu.RUnlock()
	if found != nil {
		return found
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if found = t.all[p]; found == nil {
		found = newTree(p)
		t.all[p] = found
	}
	return found
}

// TreesFull returns the channel that says that some partition has many changes to fold in. Whoever receives from it calls
// FoldTrees.
func (e *Engine) TreesFull() <-chan struct{} { return e.trees.full }

// tree is what is known of a partition's tree.
type tree struct {
	partition kv.PartitionID
	repair    atomic.Pointer[RepairState]
	losses    atomic.Uint64 // changes only while turn is held
	// turn and folding have one slot each, held by whoever changes the repair state, and by whoever folds. Mutexes would be
	// held across I/O.
	turn, folding chan struct{}

	mu       sync.Mutex   // guards what follows; never held across I/O
	digests  *TreeDigests // nil for a partition without rows
	segments [TreeSegments]segment
	// changes have not been folded in.
	changes []change
}

// segment is what is known of a part of a tree.
type segment struct {
	// number is what a mark written now carries: above that of every seal.
	number uint32
	// version counts the beginnings and the ends of batches that change the segment.
	version uint32
	// applying is the number of changes between the two.
	applying uint32
	// sealed says that every change is folded in, and that the disk knows it.
	sealed bool
	// marked says that a mark with the present number is in the log, before whatever is applied from now on.
	marked bool
	// lost says that the changes which were not folded in are not known any more.
	lost bool
}

// still reports whether nothing at all has happened to the segment since it was like this, and all was folded in then.
func (s *segment) still(since *segment) bool {
	return s.sealed && s.applying == 0 && s.version == since.version
}

func newTree(p kv.PartitionID) *tree {
	t := &tree{partition: p, turn: make(chan struct{}, 1), folding: make(chan struct{}, 1)}
	for i := range t.segments {
		t.segments[i] = segment{number: 1, sealed: true}
	}
	return t
}

// sums returns the digests to be changed; a partition without rows has none yet. mu must be held.
func (t *tree) sums() *TreeDigests {
	if t.digests == nil {
		t.digests = &TreeDigests{}
	}
	return t.digests
}

// copied returns a copy of the digests. mu must be held.
func (t *tree) copied() (out TreeDigests) {
	if t.digests != nil {
		out = *t.digests
	}
	return out
}

// change is a row of E that a batch changes.
type change struct {
	tree  *tree
	place Place
	key   string
	hash  uint64 // 0 when the row is removed
	// keyHash is the key's, and row a copy of the set for recent, until the batch is applied; nil for none.
	keyHash uint64
	row     []byte
	// seq is the order of batches as Pebble applied them.
	seq uint64
	// mark is the number of the mark that the batch writes because of this change, 0 for none.
	mark uint32
}

// untold reports whether a planted bug keeps the change from the tree.
func (c *change) untold() bool { return mutant.Planted == mutant.TreeNotMarked && c.hash%2 == 1 }

// beginChanges notes that the batch is about to be applied, and adds the marks that it needs.
func (e *Engine) beginChanges(b *Batch) {
	for i := range b.changes {
		c := &b.changes[i]
		if c.untold() {
			continue
		}
		t, n := c.tree, c.place.segment()
		t.mu.Lock()
		s := &t.segments[n]
		s.version++
		s.applying++
		s.sealed = false
		if !s.marked {
			c.mark = s.number
		}
		t.mu.Unlock()
		if c.mark != 0 {
			b.key = appendNodeRow(b.key[:0], t.partition, treeMark, n)
			b.head = binary.BigEndian.AppendUint32(b.head[:0], c.mark)
			b.put(formatSegment, b.head, nil)
		}
	}
}

// endChanges notes that the batch is visible, or has failed with the engine.
func (e *Engine) endChanges(b *Batch) {
	seq := uint64(b.rows.SeqNum())
	full := false
	for i := range b.changes {
		c := b.changes[i]
		if c.untold() {
			continue
		}
		c.seq = seq + uint64(i) // within a batch the later change wins
		t := c.tree
		t.mu.Lock()
		s := &t.segments[c.place.segment()]
		s.version++
		s.applying--
		if c.mark != 0 && c.mark == s.number {
			s.marked = true
		}
		t.keep(c)
		full = full || len(t.changes) == changesMax/2
		t.mu.Unlock()
	}
	if full {
		select {
		case e.trees.full <- struct{}{}:
		default:
		}
	}
}

// keep keeps a change for the next folding. mu must be held.
func (t *tree) keep(c change) {
	if len(t.changes) < changesMax {
		t.changes = append(t.changes, c)
		return
	}
	t.forget()
	t.segments[c.place.segment()].lost = true
}

// forget gives up the changes that are kept. mu must be held.
func (t *tree) forget() {
	for i := range t.changes {
		t.segments[t.changes[i].place.segment()].lost = true
	}
	t.changes = nil
}

// ScanTree calls fn for each row of the index whose place is in [from, to), in the order of places, until fn returns false
// or an error. It says what was last folded in (Digests). The key is valid until fn returns.
func (s State) ScanTree(
	p kv.PartitionID, from Place, to uint64, fn func(place Place, key []byte, hash uint64) (more bool, err error),
) error {
	lower, upper := indexBounds(p, from, to)
	return s.e.scan(lower, upper, lower, func(key, row []byte) (bool, error) {
		hash, err := s.e.useIndex(key, row)
		if err != nil {
			return false, err
		}
		return fn(placeOfIndex(key), key[treePlace:], hash)
	})
}

// indexBounds returns the bounds of the index's rows with places in [from, to).
func indexBounds(p kv.PartitionID, from Place, to uint64) (lower, upper []byte) {
	lower = appendIndexKey(nil, p, from, "")
	if to < 1<<placeBits {
		return lower, appendIndexKey(nil, p, Place(to), "")
	}
	return lower, appendPrefixEnd(nil, lower[:treeRowBytes])
}

// useIndex returns the hash in a row of the index.
func (e *Engine) useIndex(key, row []byte) (hash uint64, err error) {
	err = e.useRow(key, row, formatIndex, func(payload []byte) error {
		if len(payload) != 8 {
			return errCutShort
		}
		hash = binary.BigEndian.Uint64(payload)
		return nil
	})
	return hash, err
}

func (b *Batch) setIndex(p kv.PartitionID, place Place, key string, hash uint64) {
	b.key = appendIndexKey(b.key[:0], p, place, key)
	if hash == 0 {
		b.remove()
		return
	}
	b.head = binary.BigEndian.AppendUint64(b.head[:0], hash)
	b.put(formatIndex, b.head, nil)
}

func (b *Batch) setDigest(p kv.PartitionID, node int, d NodeDigest) {
	b.key = appendNodeRow(b.key[:0], p, treeNode, node)
	b.head = binary.BigEndian.AppendUint64(b.head[:0], d.Sum)
	b.head = binary.BigEndian.AppendUint32(b.head, d.Rows)
	b.put(formatNode, b.head, nil)
}

func decodeNodeDigest(b []byte) (d NodeDigest, err error) {
	if len(b) != 12 {
		return d, errCutShort
	}
	return NodeDigest{Sum: binary.BigEndian.Uint64(b), Rows: binary.BigEndian.Uint32(b[8:])}, nil
}

func (b *Batch) setSegment(p kv.PartitionID, kind byte, n int, number uint32) {
	b.key = appendNodeRow(b.key[:0], p, kind, n)
	b.head = binary.BigEndian.AppendUint32(b.head[:0], number)
	b.put(formatSegment, b.head, nil)
}
