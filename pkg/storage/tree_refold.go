package storage

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// found is a row of E that a lost segment is folded in from. A hash of 0 stands for a row that cannot be read.
type found struct {
	place Place
	key   string
	hash  uint64
}

func (a found) compare(b found) int {
	if c := cmp.Compare(a.place, b.place); c != 0 {
		return c
	}
	return strings.Compare(a.key, b.key)
}

// refold folds the lost segments in from E.
func (f *folding) refold() error {
	for first := 0; first < TreeSegments; {
		if !f.begun[first].lost {
			first++
			continue
		}
		rows, behind, err := f.collect(first)
		if err != nil {
			return err
		}
		slices.SortFunc(rows, found.compare)
		for n := first; n < behind; n++ {
			if !f.begun[n].lost {
				continue
			}
			_, to := placesOf(n, treeSegmentBits)
			own := 0
			for own < len(rows) && uint64(rows[own].place) < to {
				own++
			}
			if err := f.refoldSegment(n, rows[:own]); err != nil {
				return err
			}
			rows = rows[own:]
		}
		first = behind
	}
	return nil
}

// collect reads the rows of E of lost segments from first on, of as many segments as memory is meant to hold.
func (f *folding) collect(first int) (rows []found, behind int, err error) {
	behind = TreeSegments
	prefix := appendSiblingsPrefix(nil, f.t.partition)
	err = f.e.scan(prefix, appendPrefixEnd(nil, prefix), prefix, func(key, row []byte) (bool, error) {
		if f.rows++; f.rows%treeCheckEvery == 0 && f.ctx.Err() != nil {
			return false, f.ctx.Err()
		}
		user := key[len(prefix):]
		place := PlaceOf(user)
		if n := place.segment(); n < first || n >= behind || !f.begun[n].lost {
			return true, nil
		}
		r := found{place: place, key: string(user)}
		if err := f.e.useRow(key, row, formatSiblings, func(payload []byte) error {
			r.hash = hashSiblings(user, payload)
			return nil
		}); err != nil && !errors.Is(err, ErrCorruption) {
			return false, err
		}
		if rows = append(rows, r); len(rows) > refoldRowsMax && behind > first+1 {
			behind = first + (behind-first+1)/2
			rows = slices.DeleteFunc(rows, func(r found) bool { return r.place.segment() >= behind })
		}
		return true, nil
	})
	return rows, behind, err
}

// collectedMax bounds the keys that a folding remembers as collected. Beyond it a replica heals that need not.
const collectedMax = 1 << 16

// missed takes note of a hash whose row is not there. A row behind the watermark that holds no value is removed in passing, and
// its entry in the index of dead sets stays until well after that: without it each crash after a collection would look
// like a loss, and the replica would count for nothing until it was compared with the others.
func (f *folding) missed(key string) error {
	if f.collected == nil {
		f.collected = map[string]struct{}{}
		upTo := f.e.State().Repair(f.t.partition).Committed
		err := f.e.State().ScanDead(f.t.partition, nil, upTo, func(n DeadNote) (bool, error) {
			f.collected[string(n.Key)] = struct{}{}
			return len(f.collected) < collectedMax, nil
		})
		if err != nil {
			return err
		}
	}
	if _, collected := f.collected[key]; !collected {
		f.orphans++
	}
	return nil
}

// refoldSegment makes the index of a segment that of its rows.
func (f *folding) refoldSegment(n int, rows []found) error {
	from, to := placesOf(n, treeSegmentBits)
	lower, upper := indexBounds(f.t.partition, from, to)
	it, err := f.e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return f.e.readFailed(lower, err)
	}
	const perSegment = TreeNodes / TreeSegments
	for node := n * perSegment; node < (n+1)*perSegment; node++ {
		f.digests[node] = NodeDigest{}
	}
	ok := it.First()
	for ok || len(rows) > 0 {
		var at found // the index's row
		if ok {
			key := it.Key()
			at = found{place: placeOfIndex(key), key: string(key[treePlace:])}
			at.hash = f.indexed(it)
		}
		c := -1
		switch {
		case !ok:
			c = 1
		case len(rows) > 0:
			c = at.compare(rows[0])
		}
		var r found
		if c < 0 {
			// A hash without a row: it goes, and whether the row ought to be there the other replicas know.
			if err = f.missed(at.key); err != nil {
				break
			}
			f.b.setIndex(f.t.partition, at.place, at.key, 0)
		} else {
			r, rows = rows[0], rows[1:]
			if r.hash == 0 && c == 0 {
				r.hash = at.hash // a row that cannot be read is still missed
			}
			if r.hash != 0 {
				d := f.digests[r.place.Node()]
				d.Add(r.hash)
				f.digests[r.place.Node()] = d
			}
			if r.hash != at.hash || c > 0 {
				f.b.setIndex(f.t.partition, r.place, r.key, r.hash)
			}
		}
		if ok && c <= 0 {
			ok = it.Next()
		}
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = f.e.readFailed(lower, closeErr)
	}
	if err != nil {
		return err
	}
	return f.step()
}

func placeOfIndex(key []byte) Place { return Place(binary.BigEndian.Uint32(key[treeRowBytes:])) }

// indexed returns the hash in the iterator's row, 0 when it cannot be read.
func (f *folding) indexed(it *pebble.Iterator) uint64 {
	row, err := it.ValueAndErr()
	if err != nil {
		return 0
	}
	hash, err := f.e.useIndex(it.Key(), row)
	if err != nil {
		return 0
	}
	return hash
}
