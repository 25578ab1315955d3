package verify

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

func (f *fakeCluster) strong(r *kv.Request, p plan) (kv.Response, error) {
	switch r.Op {
	case kv.OpGet:
		return f.strongRead(string(r.Key), p), nil
	case kv.OpList:
		return f.list(r, p), nil
	case kv.OpBatch:
		return f.batch(r, p)
	default:
		item := kv.BatchItem{Op: r.Op, Key: r.Key, Value: r.Value, Condition: r.Condition, TTL: r.TTL}
		found, err := f.check(&item, p)
		if err != nil {
			return kv.Response{}, err
		}
		f.clock++
		f.write(&item, uint64(f.clock), p)
		return kv.Response{Outcome: kv.OutcomeApplied, Found: found, Version: uint64(f.clock)}, nil
	}
}

func (r *fakeRow) expired() bool { return !r.expiry.IsZero() && !time.Now().Before(r.expiry) }

// row returns the key's row as it is now.
func (f *fakeCluster) row(key string) fakeRow {
	row := f.rows[key]
	if row.expired() {
		row = fakeRow{version: row.version}
	}
	return row
}

func (f *fakeCluster) strongRead(key string, p plan) kv.Response {
	row := f.row(key)
	if old := f.rows[key]; old.exists && old.expired() && f.isBuggy(p, expiredRead) {
		row = old
	}
	if f.isBuggy(p, staleRead) {
		row = f.before[key]
	}
	if !row.exists {
		return kv.Response{}
	}
	return kv.Response{Found: true, Value: []byte(row.value), Version: row.version}
}

func (f *fakeCluster) list(r *kv.Request, p plan) kv.Response {
	res := kv.Response{Found: true}
	for _, key := range slices.Sorted(maps.Keys(f.rows)) {
		if !strings.HasPrefix(key, string(r.List.Prefix)) {
			continue
		}
		if one := f.strongRead(key, p); one.Found {
			res.Listed = append(res.Listed, kv.ListItem{Key: []byte(key), Value: one.Value, Version: one.Version})
		}
	}
	return res
}

// check returns whether the key exists, or that a condition misses.
func (f *fakeCluster) check(item *kv.BatchItem, p plan) (found bool, err error) {
	row := f.row(string(item.Key))
	present := row.version
	if !row.exists {
		present = 0
	}
	c := item.Condition
	misses := c.Kind == kv.ConditionVersion && c.Version != present || c.Kind == kv.ConditionExists && !row.exists
	if misses && !f.isBuggy(p, conditionFree) {
		err := kv.Errorf(kv.CodeVersionMismatch, "at %d", present)
		err.CurrentVersion = present
		return false, err
	}
	return row.exists, nil
}

func (f *fakeCluster) write(item *kv.BatchItem, version uint64, p plan) {
	key, row := string(item.Key), f.rows[string(item.Key)]
	next := fakeRow{exists: item.Op == kv.OpPut, value: string(item.Value), version: version}
	if item.TTL > 0 {
		next.expiry = time.Now().Add(item.TTL)
		if f.isBuggy(p, expiredEarly) {
			next.expiry = time.Now().Add(item.TTL / 10)
		}
	}
	if item.Op == kv.OpPut && f.isBuggy(p, lostWrite) || item.Op == kv.OpDelete && f.isBuggy(p, deleteUndone) {
		return
	}
	if row.exists && !row.expiry.IsZero() && f.isBuggy(p, removedLate) {
		f.late.Go(func() {
			time.Sleep(time.Until(row.expiry) + time.Second)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.rows[key] = fakeRow{version: f.rows[key].version}
		})
	}
	f.before[key], f.rows[key] = row, next
}

func (f *fakeCluster) batch(r *kv.Request, p plan) (kv.Response, error) {
	res := kv.Response{Outcome: kv.OutcomeApplied}
	for i := range r.Items {
		found, err := f.check(&r.Items[i], p)
		if err != nil {
			if i > 0 && f.isBuggy(p, halfBatch) {
				f.clock++
				f.write(&r.Items[0], uint64(f.clock), p)
			}
			return kv.Response{}, err
		}
		res.Items = append(res.Items, kv.ItemResult{Found: found && r.Items[i].Op == kv.OpDelete})
	}
	f.clock++
	res.Version = uint64(f.clock)
	for i := range r.Items {
		if i == 0 || !f.isBuggy(p, tornBatch) {
			f.write(&r.Items[i], res.Version, p)
			continue
		}
		f.late.Go(func() {
			time.Sleep(10 * time.Millisecond)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.write(&r.Items[i], res.Version, plan{})
		})
	}
	return res, nil
}
