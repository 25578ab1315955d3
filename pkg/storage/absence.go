package storage

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// absenceShare is the part of the block cache's size that the filter has beside it: 8 MiB at 128 MiB, which tells 39
	// absent keys out of 40 with ten million others there.
	absenceShare = 16
	// absenceWordsMin is the size of the smallest filter, in words of 64 bits.
	absenceWordsMin = 1 << 10
	// absenceProbes is the number of bits of a key.
	absenceProbes = 4
	// absenceCheckEvery is after how many rows the first scan looks whether the engine is being closed.
	absenceCheckEvery = 1024
)

// absence knows of most keys that the strong lane has never written that it has no row of theirs: a Bloom filter over S.
//
// The eventual lane looks for S on each replica with each read and write, and most often in vain. Pebble's own filters
// are those of tables: what is not in a table is looked for in the memtables, whose skip lists do not fit into the
// processor's cache, and that look was a third of what an eventual write cost.
//
// Invariant: every key of a row of S that is or may become visible has its bits set before that row is visible, once
// complete is set. Keys are never taken out.
type absence struct {
	// words has a power of two of them.
	words    []atomic.Uint64
	complete atomic.Bool
}

func newAbsence(cacheBytes int64) *absence {
	words := absenceWordsMin
	for int64(words)*16 <= cacheBytes/absenceShare {
		words *= 2
	}
	return &absence{words: make([]atomic.Uint64, words)}
}

// bits calls fn with the place of each of the key's bits.
func (a *absence) bits(key []byte, fn func(word *atomic.Uint64, bit uint64) bool) {
	// Two halves of one hash make as many as are needed (Kirsch, Mitzenmacher: "Less Hashing, Same Performance", 2006).
	h := xxhash.Sum64(key)
	step := h>>32 | 1
	for range absenceProbes {
		if !fn(&a.words[h>>6&uint64(len(a.words)-1)], 1<<(h&63)) {
			return
		}
		h += step
	}
}

// add notes that there may be a row with this key of S, the group's prefix included.
func (a *absence) add(key []byte) {
	a.bits(key, func(word *atomic.Uint64, bit uint64) bool {
		if word.Load()&bit == 0 {
			word.Or(bit)
		}
		return true
	})
}

// absent reports whether there is certainly no row with the key.
func (a *absence) absent(key []byte) bool {
	if !a.complete.Load() {
		return false
	}
	missing := false
	a.bits(key, func(word *atomic.Uint64, bit uint64) bool {
		missing = word.Load()&bit == 0
		return !missing
	})
	return missing
}

// coveringShare is the size of the absence filter in that of the filter of keys whose state covers eventual writes: there are
// few of them.
const coveringShare = 16

// noteState notes a row of S in the filters: that it is there, and whether it covers eventual writes.
func (e *Engine) noteState(key []byte, covers bool) {
	e.absence.add(key)
	if covers {
		e.covering.add(key)
	}
}

// rowCovers reports whether a row of S, as it is stored, covers eventual writes.
func rowCovers(row []byte) bool { return len(row) > 1 && row[1]&strongCovers != 0 }

// CoversNothing reports whether the strong lane's state of the key certainly covers no eventual write. It is cheap.
func (s State) CoversNothing(g kv.GroupID, key []byte) bool {
	buf := s.e.keys.Get().(*keyBuffer)
	buf.b = appendStateKey(buf.b[:0], g, key)
	nothing := s.e.covering.absent(buf.b)
	s.e.keys.Put(buf)
	return nothing
}

// fillAbsence notes the rows that are there at the start. Those that come meanwhile are noted where they are written. When it
// cannot read them the filters stay unused.
func (e *Engine) fillAbsence(stop <-chan struct{}) {
	lower := appendGroupPrefix(nil, kv.MetaGroup)[:1]
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: appendPrefixEnd(nil, lower)})
	if err != nil {
		return
	}
	defer it.Close()
	rows := 0
	for ok := it.First(); ok; rows++ {
		if rows%absenceCheckEvery == 0 {
			select {
			case <-stop:
				return
			default:
			}
		}
		key := it.Key()
		switch g, grouped := groupOfKey(key); {
		case !grouped:
			ok = it.Next()
		case key[groupPrefixBytes] < groupState:
			ok = it.SeekGE(appendGroupRow(nil, g, groupState))
		case key[groupPrefixBytes] > groupState:
			ok = it.SeekGE(appendGroupPrefix(nil, g+1))
		default:
			row, err := it.ValueAndErr()
			if err != nil {
				return
			}
			e.noteState(key, rowCovers(row))
			ok = it.Next()
		}
	}
	if it.Error() == nil && e.health.stopped() == nil {
		e.absence.complete.Store(true)
		e.covering.complete.Store(true)
	}
}
