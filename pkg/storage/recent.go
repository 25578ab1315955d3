package storage

import (
	"bytes"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// recentShare is the part of the cache that rows of E have instead of blocks: 16 MiB of 128 MiB, some 40,000 keys with
	// values of 128 bytes.
	recentShare = 8
	// recentShards is the number of parts with a mutex of their own. A power of two.
	recentShards = 32
	// recentRowBytes is about what a row takes in memory beside its bytes, once it has been decoded.
	recentRowBytes = 320
	// recentGenerations is the number of generations that share the room: one that is filled and the one before it.
	recentGenerations = 2
	// recentRowShare is the part of a generation that one row takes at most: a large one saves no more than a small one.
	recentRowShare = 8
)

// recent keeps the rows of E that were written or read last. Every eventual write looks for the set that it is merged with,
// on each replica: a search in skip lists that do not fit into the processor's cache, and a fifth of what a write cost.
//
// A generation is filled; when it is full it becomes the older one, whose rows come back when they are used, and what the
// older one still had is forgotten.
//
// Invariant: a row that is here is the newest visible one, or the batch that replaces it has not returned to whoever applied
// it.
type recent struct {
	// begun counts the batches that change E; applying are those that have not ended.
	begun, applying atomic.Uint64
	// generationBytes bounds a generation of a shard.
	generationBytes int
	shards          [recentShards]recentShard
}

type recentShard struct {
	mu sync.Mutex // guards what follows; never held across I/O
	// version changes with every row that a batch puts in or takes out: what was read from Pebble before is not to be kept.
	version    uint64
	young, old map[rowID]*recentRow
	bytes      int // of the young ones
	hits, miss uint64
	_          [32]byte // keeps neighbours off one another's cache line
}

type rowID struct {
	partition kv.PartitionID
	key       string
}

// recentRow is an encoded sibling set. It never changes, but that it is decoded once somebody asks for it.
type recentRow struct {
	row []byte
	set atomic.Pointer[causal.SiblingSet]
}

func newRecent(cacheBytes int64) *recent {
	r := &recent{generationBytes: int(cacheBytes / recentShare / recentShards / recentGenerations)}
	for i := range r.shards {
		r.shards[i].young = map[rowID]*recentRow{}
	}
	return r
}

func (r *recent) of(key []byte) *recentShard { return &r.shards[xxhash.Sum64(key)%recentShards] }

// get returns the set of the key. When it is not here, version is what keep wants with the row that was read instead.
func (r *recent) get(p kv.PartitionID, key []byte) (set causal.SiblingSet, found bool, version uint64) {
	s := r.of(key)
	s.mu.Lock()
	row := s.young[rowID{p, string(key)}]
	if row == nil {
		if row = s.old[rowID{p, string(key)}]; row != nil {
			id := rowID{p, string(key)}
			delete(s.old, id)
			r.put(s, id, row)
		}
	}
	version = s.version
	if row == nil {
		s.miss++
		s.mu.Unlock()
		return set, false, version
	}
	s.hits++
	s.mu.Unlock()
	if known := row.set.Load(); known != nil {
		return *known, true, version
	}
	set, err := causal.DecodeSet(row.row)
	if err != nil {
		return causal.SiblingSet{}, false, version // it cannot be: what is here was encoded, or decoded, before
	}
	row.set.Store(&set)
	return set, true, version
}

// has reports whether get would find the set.
func (r *recent) has(p kv.PartitionID, key []byte) bool {
	s := r.of(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.young[rowID{p, string(key)}] != nil || s.old[rowID{p, string(key)}] != nil
}

// keep keeps a row that was read from Pebble, unless a batch may have changed it since get returned the version.
func (r *recent) keep(p kv.PartitionID, key, row []byte, set causal.SiblingSet, version uint64) {
	if !r.fits(len(key) + len(row)) {
		return
	}
	kept := &recentRow{row: row}
	kept.set.Store(&set)
	id := rowID{p, string(key)}
	s := r.of(key)
	s.mu.Lock()
	if s.version == version {
		r.put(s, id, kept)
	}
	s.mu.Unlock()
}

func (r *recent) fits(bytes int) bool {
	return bytes+recentRowBytes <= r.generationBytes/recentRowShare
}

// put puts a row among the young ones. The shard must be locked.
func (r *recent) put(s *recentShard, id rowID, row *recentRow) {
	if before := s.young[id]; before != nil {
		s.bytes -= len(id.key) + len(before.row) + recentRowBytes
	}
	size := len(id.key) + len(row.row) + recentRowBytes
	if s.bytes+size > r.generationBytes {
		s.old, s.young, s.bytes = s.young, make(map[rowID]*recentRow, len(s.young)), 0
	}
	s.young[id] = row
	s.bytes += size
}

// remove takes a row out. The shard must be locked.
func (s *recentShard) remove(id rowID) {
	if before := s.young[id]; before != nil {
		s.bytes -= len(id.key) + len(before.row) + recentRowBytes
		delete(s.young, id)
	}
	delete(s.old, id)
}

// turn tells whether a batch was the only one that changed E from its beginning to its end.
type turn struct {
	alone  bool
	number uint64
}

// begin notes that a batch with changes of E is about to be applied.
func (r *recent) begin() turn {
	alone := r.applying.Add(1) == 1
	return turn{alone: alone, number: r.begun.Add(1)}
}

// end takes the batch's rows over, which are visible now. When another batch was applied at the same time, or this one
// failed, nobody here knows which rows are the newest, and they are taken out.
func (r *recent) end(t turn, changes []change, applied bool) {
	for i := range changes {
		c := &changes[i]
		id := rowID{c.tree.partition, c.key}
		s := &r.shards[c.keyHash%recentShards]
		s.mu.Lock()
		s.version++
		// Whoever begins later looks at the shard after this, and then does not find itself alone.
		if applied && t.alone && r.begun.Load() == t.number && c.row != nil && r.fits(len(c.key)+len(c.row)) {
			delete(s.old, id)
			r.put(s, id, &recentRow{row: c.row})
		} else {
			s.remove(id)
		}
		s.mu.Unlock()
		c.row = nil
	}
	r.applying.Add(^uint64(0))
}

// forget takes out all rows of a partition, whose rows were changed by other means than a batch or may be damaged.
func (r *recent) forget(p kv.PartitionID) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		s.version++
		for _, generation := range [...]map[rowID]*recentRow{s.young, s.old} {
			for id := range generation {
				if id.partition == p {
					s.remove(id)
				}
			}
		}
		s.mu.Unlock()
	}
}

// counts returns how often a row was here, and how often it was not.
func (r *recent) counts() (hits, misses uint64) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		hits, misses = hits+s.hits, misses+s.miss
		s.mu.Unlock()
	}
	return hits, misses
}

// kept returns what a batch keeps of an encoded set for recent, nil when it is too large for it.
func (r *recent) kept(key, row []byte) []byte {
	if !r.fits(len(key) + len(row)) {
		return nil
	}
	return bytes.Clone(row)
}
