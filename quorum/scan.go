package quorum

import (
	"bytes"
	"errors"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// ScanRequest asks a replica for what it holds of the keys with a prefix, in the order of their bytes.
type ScanRequest struct {
	Partition kv.PartitionID
	Epoch     kv.Epoch
	Prefix    []byte
	// After is the key after which to begin; empty for the beginning.
	After []byte
	// Limit is the most rows wanted, at least 1.
	Limit int
}

// ScanRow is what one replica holds of one key: versions, deletions included, and not an answer.
type ScanRow struct {
	Key []byte
	ReadReply
}

// ScanReply is a replica's part of a listing.
//
// Invariant: Rows are sorted by key without repeats. With More the replica may hold further keys after the last row, and
// there is at least one row; without it, it holds none.
type ScanReply struct {
	Rows []ScanRow
	More bool
	// Healing is as in ReadReply.
	Healing bool
}

// scanned is a key as several parts of a listing show it together.
type scanned struct {
	key []byte
	versions
}

// mergeScans merges parts of one listing, whether those of replicas or those of a replica's lanes, up to the limit of keys.
// A part that has more says nothing of the keys after its last row, so that the page ends there at the latest.
func mergeScans(parts []ScanReply, limit int) (page []scanned, more bool) {
	var bound []byte
	at := make([]int, len(parts))
	for i := range parts {
		if p := &parts[i]; p.More {
			more = true
			if last := p.Rows[len(p.Rows)-1].Key; bound == nil || bytes.Compare(last, bound) < 0 {
				bound = last
			}
		}
	}
	for {
		var next []byte
		for i := range parts {
			if rows := parts[i].Rows; at[i] < len(rows) && (next == nil || bytes.Compare(rows[at[i]].Key, next) < 0) {
				next = rows[at[i]].Key
			}
		}
		switch {
		case next == nil:
			return page, more
		case len(page) == limit || bound != nil && bytes.Compare(next, bound) > 0:
			return page, true
		}
		row := scanned{key: next}
		for i := range parts {
			if rows := parts[i].Rows; at[i] < len(rows) && bytes.Equal(rows[at[i]].Key, next) {
				row.add(&rows[at[i]].ReadReply)
				at[i]++
			}
		}
		page = append(page, row)
	}
}

// scanPart collects rows up to the limits of a request.
type scanPart struct {
	ScanReply
	prefix []byte
	limit  int
	size   int
}

// take adds a row and reports whether the next one is wanted.
func (p *scanPart) take(key []byte, r ReadReply) bool {
	if !bytes.HasPrefix(key, p.prefix) {
		return false
	}
	if len(p.Rows) == p.limit || p.size > kv.ListBytesMax {
		p.More = true
		return false
	}
	p.size += len(key) + len(r.Strong.Value)
	for i := range r.Set.Siblings {
		p.size += len(r.Set.Siblings[i].Value)
	}
	p.Rows = append(p.Rows, ScanRow{Key: key, ReadReply: r})
	return true
}

// Scan returns what this replica holds of the keys that are asked for.
func (s *Store) Scan(r ScanRequest) (ScanReply, error) {
	before := s.deps.State.Repair(r.Partition)
	if before.Quarantined {
		return ScanReply{}, errQuarantined(r.Partition)
	}
	now, err := s.deps.Clock.Now()
	if err != nil {
		return ScanReply{}, unread(err)
	}
	from := r.Prefix
	if bytes.Compare(r.After, from) >= 0 && len(r.After) > 0 {
		from = append(bytes.Clone(r.After), 0) // the next key in the order of bytes
		if mutant.Planted == mutant.ListSkipsPageEdge {
			from[len(from)-1] = 0xff
		}
	}
	// E before S, as in Read.
	parts := [...]scanPart{{prefix: r.Prefix, limit: r.Limit}, {prefix: r.Prefix, limit: r.Limit}}
	err = s.deps.State.ScanSiblings(r.Partition, from, func(key []byte, set causal.SiblingSet) (bool, error) {
		return parts[0].take(key, ReadReply{Set: set}), nil
	})
	if err != nil {
		if errors.Is(err, storage.ErrCorruption) {
			s.deps.Damaged(r.Partition)
		}
		return ScanReply{}, unread(err)
	}
	err = s.scanStrong(r.Partition, from, func(key []byte, strong storage.Strong) bool {
		return parts[1].take(key, ReadReply{HasStrong: true, Strong: expired(strong, now)})
	})
	if err != nil {
		return ScanReply{}, err
	}
	page, more := mergeScans([]ScanReply{parts[0].ScanReply, parts[1].ScanReply}, r.Limit)
	after := s.deps.State.Repair(r.Partition)
	if after.Quarantined {
		return ScanReply{}, errQuarantined(r.Partition)
	}
	out := ScanReply{Rows: make([]ScanRow, len(page)), More: more, Healing: before.Healing || after.Healing}
	for i := range page {
		v := &page[i]
		out.Rows[i] = ScanRow{v.key, ReadReply{HasStrong: v.hasStrong, Strong: v.strong, Set: v.set}}
	}
	return out, nil
}

// expired returns the strong lane's state as it is at the time: a value that has expired is deleted.
func expired(s storage.Strong, now causal.HLC) storage.Strong {
	if s.Expiry != 0 && !s.Deleted && s.Expiry <= now {
		// The strong lane will leave a tombstone with this stamp.
		s.Deleted, s.Value = true, nil
	}
	return s
}

// listItems makes answers out of rows: the keys that a reader would find now, as it would find them.
func listItems(page []scanned, resolver func(key []byte) Resolver, keysOnly bool, now causal.HLC) ([]kv.ListItem, error) {
	var out []kv.ListItem
	for i := range page {
		row := &page[i]
		r := resolver(row.key)
		if r == nil {
			return nil, kv.Errorf(kv.CodeInternal, "the policy of a listed key names a resolver that this node does not know")
		}
		row.now = now
		var found kv.Response
		if err := row.resolve(&found, r, kv.SiblingsDefault); err != nil {
			return nil, err
		}
		if !found.Found {
			continue
		}
		item := kv.ListItem{Key: row.key, Value: found.Value, Version: found.Version, Timestamp: found.Timestamp, Siblings: found.Siblings}
		if keysOnly {
			item.Value, item.Siblings = nil, nil
		}
		out = append(out, item)
	}
	return slices.Clip(out), nil
}
