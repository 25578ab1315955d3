package verify

import (
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// CheckBounded judges reads of level bounded. Each says how stale it is at most when it is answered, so that it must not be older than
// what had been acknowledged that long before it was asked for. What it was answered is older than a write if the write that it comes
// from was itself acknowledged before the other one began; what merely took place at the same time may be on either side.
//
// Strong writes count, and eventual ones of the cluster's own quorum if overlap says that a majority acknowledges those.
func CheckBounded(h *History, overlap bool) Result {
	res := newResult("bounded")
	keys, groups := byKey(h.Ops(), func(*Op) bool { return true })
	for _, key := range keys {
		k := boundedKey{writer: map[string]*Op{}}
		ops := groups[key]
		for i := range ops {
			k.note(&ops[i], overlap)
		}
		judged := 0
		for i := range ops {
			if op := &ops[i]; op.Level == kv.LevelBounded && op.Answered() {
				judged++
				k.check(&res, key, op)
			}
		}
		if judged > 0 {
			res.Keys++
			res.Operations += judged
		}
	}
	return res
}

// boundedKey is what is known of the writes of a key.
type boundedKey struct {
	writer map[string]*Op // by value
	// acked are the writes that must not be missed, deletes all that may have removed the key.
	acked, deletes []*Op
}

func (k *boundedKey) note(op *Op, overlap bool) {
	if !op.MayHaveWritten() {
		return
	}
	if op.Kind == kv.OpPut {
		k.writer[op.Value] = op
	} else {
		k.deletes = append(k.deletes, op)
	}
	counts := op.Level == kv.LevelStrong || op.Level == kv.LevelEventual && overlap && op.Quorum == (kv.Quorum{})
	if op.Wrote() && counts {
		k.acked = append(k.acked, op)
	}
}

func (k *boundedKey) check(res *Result, key string, op *Op) {
	if took := op.Until - op.At; op.Staleness > op.MaxStaleness && op.Staleness > took+time.Millisecond {
		res.add("bound above what was asked for", key, fmt.Sprintf("%s stale, %s was asked for and it took %s", op.Staleness, op.MaxStaleness, took), op)
	}
	since := op.At - op.Staleness
	for _, w := range k.acked {
		if w.Until >= since || !k.older(op, w) {
			continue
		}
		res.add("staler than it says", key, fmt.Sprintf("it says at most %s, and lacks what was acknowledged %s before it was asked for",
			op.Staleness, op.At-w.Until), op, w)
		return
	}
}

// older reports whether all that the read may have seen was over before the write began.
func (k *boundedKey) older(read, w *Op) bool {
	before := func(o *Op) bool { return o.Return < w.Call }
	if read.Found {
		from := k.writer[read.Result]
		return from != nil && before(from) // what comes from nowhere is for CheckValues
	}
	if w.Kind == kv.OpDelete {
		return false
	}
	for _, d := range k.deletes {
		if d.Call < read.Return && !before(d) {
			return false
		}
	}
	return true
}
