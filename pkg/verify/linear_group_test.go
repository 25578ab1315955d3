package verify

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Two keys of one tag, and what is said about both.
var (
	a   = script{kv.LevelStrong, "{t}a"}
	b   = script{kv.LevelStrong, "{t}b"}
	tag = script{kv.LevelStrong, "{t}"}
)

func (s script) batch(call, end int64, version uint64, items ...Item) Op {
	op := s.op(kv.OpBatch, call, end)
	op.Key, op.Items, op.Version = items[0].Key, items, version
	return op
}

func (s script) batchMissed(call, end int64, present uint64, items ...Item) Op {
	op := s.batch(call, end, present, items...)
	op.Missed = true
	return op
}

func (s script) list(call, end int64, rows ...Row) Op {
	op := s.op(kv.OpList, call, end)
	op.Listed = rows
	return op
}

func putItem(s script, value string) Item { return Item{Kind: kv.OpPut, Key: s.key, Value: value} }

func putItemIf(s script, value string, version uint64) Item {
	it := putItem(s, value)
	it.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
	return it
}

func deleteItem(s script, found bool) Item { return Item{Kind: kv.OpDelete, Key: s.key, Found: found} }

func row(s script, value string, version uint64) Row { return Row{s.key, value, version} }

func TestHistoriesThatAtomicBatchesCanGiveAreValid(t *testing.T) {
	for name, ops := range map[string][]Op{
		"all of it": {
			tag.batch(1, 2, 5, putItem(a, "1"), putItem(b, "2")), tag.list(3, 4, row(a, "1", 5), row(b, "2", 5)), a.get(5, 6, "1", 5),
		},
		"before and after": {
			tag.batch(1, 9, 5, putItem(a, "1"), putItem(b, "2")), tag.list(2, 3), tag.list(4, 5, row(a, "1", 5), row(b, "2", 5)),
		},
		"delete": {
			a.put(1, 2, "1", 5), tag.batch(3, 4, 6, deleteItem(a, true), deleteItem(b, false), putItemIf(script{key: "{t}c"}, "3", 0)),
			tag.list(5, 6, Row{"{t}c", "3", 6}),
		},
		"none of it": {
			a.put(1, 2, "1", 5), tag.batchMissed(3, 4, 5, putItem(b, "2"), putItemIf(a, "3", 4)), tag.list(5, 6, row(a, "1", 5)),
		},
		"one of two conditions missed": {
			a.put(1, 2, "1", 5), b.put(3, 4, "2", 6), tag.batchMissed(5, 6, 6, putItemIf(a, "3", 5), putItemIf(b, "4", 5)), a.get(7, 8, "1", 5),
		},
		"unknown and seen":  {tag.batch(1, 0, 0, putItem(a, "1"), putItem(b, "2")), b.get(2, 3, "2", 5), a.get(4, 5, "1", 5)},
		"unknown and never": {tag.batch(1, 0, 0, putItem(a, "1"), putItem(b, "2")), tag.list(2, 3)},
		"one version of a batch and a write of another key": {
			tag.batch(1, 4, 5, putItem(a, "1"), putItem(b, "2")), script{kv.LevelStrong, "{t}c"}.put(2, 3, "3", 5),
		},
	} {
		h := historyOf(ops...)
		requireValid(t, CheckBatches(h, 0))
		requireValid(t, CheckValues(h))
		require.NotPanics(t, func() { require.NoError(t, Visualize(h, nil, &bytes.Buffer{})) }, name)
	}
}

func TestBatchesThatAreSeenInPartAreCaught(t *testing.T) {
	both := []Item{putItem(a, "1"), putItem(b, "2")}
	const order = "not linearizable"
	for name, c := range map[string]struct {
		kind string
		ops  []Op
	}{
		"half of it listed":     {order, []Op{tag.batch(1, 9, 5, both...), tag.list(2, 3, row(a, "1", 5))}},
		"half of it read":       {order, []Op{tag.batch(1, 9, 5, both...), a.get(2, 3, "1", 5), b.absent(4, 5)}},
		"half of it for ever":   {order, []Op{tag.batch(1, 0, 0, both...), a.get(2, 3, "1", 5), b.absent(4, 5)}},
		"two versions":          {order, []Op{tag.batch(1, 2, 5, both...), a.get(3, 4, "1", 5), b.get(5, 6, "2", 6)}},
		"applied in part":       {order, []Op{a.put(1, 2, "x", 4), tag.batchMissed(3, 4, 4, putItem(b, "2"), putItemIf(a, "1", 3)), b.get(5, 6, "2", 5)}},
		"missed and met":        {order, []Op{a.put(1, 2, "x", 4), tag.batchMissed(3, 4, 9, putItem(b, "2"), putItemIf(a, "1", 3))}},
		"met though it misses":  {order, []Op{a.put(1, 2, "x", 4), tag.batch(3, 4, 5, putItem(b, "2"), putItemIf(a, "1", 3))}},
		"listing of two times":  {order, []Op{a.put(1, 2, "x", 4), a.put(3, 4, "y", 5), b.put(5, 6, "z", 6), tag.list(7, 8, row(a, "x", 4), row(b, "z", 6))}},
		"delete of what is not": {order, []Op{tag.batch(1, 2, 5, deleteItem(a, true), putItem(b, "2"))}},
		"version given twice":   {"version given twice", []Op{tag.batch(1, 4, 5, both...), a.put(2, 3, "3", 5)}},
	} {
		t.Run(name, func(t *testing.T) {
			h := historyOf(c.ops...)
			requireCaught(t, CheckBatches(h, 0), c.kind)
			require.NoError(t, Visualize(h, []string{"{t}"}, &bytes.Buffer{}))
		})
	}
}

// timed sets the readings of the clock: milliseconds, as the history's times.
func timed(ops ...Op) []Op {
	for i := range ops {
		ops[i].At = time.Duration(ops[i].Call) * time.Millisecond
		if ops[i].Outcome == OutcomeOK {
			ops[i].Until = time.Duration(ops[i].Return) * time.Millisecond
		}
	}
	return ops
}

// fleeting is a put of a value that is there for two seconds.
func fleeting(op Op) Op {
	op.TTL = 2 * time.Second
	return op
}

func TestHistoriesOfValuesThatExpireInTimeAreValid(t *testing.T) {
	for _, ops := range [][]Op{
		{fleeting(k.put(1000, 1100, "a", 5)), k.get(2900, 2950, "a", 5), k.absent(3000, 3050)},
		{fleeting(k.put(1000, 1100, "a", 5)), k.get(3500, 3550, "a", 5)},
		{fleeting(k.put(1000, 1100, "a", 5)), k.putIf(3200, 3300, "b", 0, 7), k.get(9000, 9001, "b", 7)},
		{fleeting(k.put(1000, 1100, "a", 5)), k.missed(3200, 3300, "b", 5, 0), k.delete(3400, 3401, false, 8)},
		{fleeting(k.put(1000, 1100, "a", 5)), k.put(1500, 1600, "b", 6), k.get(9000, 9001, "b", 6)},
		{fleeting(k.put(1000, 0, "a", 0)), k.get(8000, 8001, "a", 5), k.get(10400, 10401, "a", 5), k.absent(10500, 10501)},
	} {
		requireValid(t, CheckLinearizable(historyOf(timed(ops...)...), 0))
	}
}

func TestValuesThatExpireAtTheWrongTimeAreCaught(t *testing.T) {
	for name, ops := range map[string][]Op{
		"read after its expiry":      {fleeting(k.put(1000, 1100, "a", 5)), k.get(3700, 3701, "a", 5)},
		"condition met after expiry": {fleeting(k.put(1000, 1100, "a", 5)), k.putIf(3700, 3701, "b", 5, 6)},
		"deleted after its expiry":   {fleeting(k.put(1000, 1100, "a", 5)), k.delete(3700, 3701, true, 6)},
		"gone too early":             {fleeting(k.put(1000, 1100, "a", 5)), k.absent(2300, 2400)},
		"created too early":          {fleeting(k.put(1000, 1100, "a", 5)), k.putIf(2300, 2400, "b", 0, 6)},
		"back after its expiry":      {fleeting(k.put(1000, 1100, "a", 5)), k.absent(3000, 3001), k.get(3002, 3003, "a", 5)},
		"what replaced it is gone":   {fleeting(k.put(1000, 1100, "a", 5)), k.put(1500, 1600, "b", 6), k.absent(4000, 4001)},
		"unknown, seen, too long":    {fleeting(k.put(1000, 0, "a", 0)), k.get(1200, 1300, "a", 5), k.get(3900, 3901, "a", 5)},
	} {
		t.Run(name, func(t *testing.T) {
			requireCaught(t, CheckLinearizable(historyOf(timed(ops...)...), 0), "not linearizable")
		})
	}
}
