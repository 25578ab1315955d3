package verify

import (
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
)

// CheckSession looks at keys that one client writes with puts, one after the other: the order of their values is then known. It
// reports reads in which a client missed its own acknowledged write, and pairs of reads in which a client went back in
// time. Without a promise of sessions these are no anomalies; they are in Observed.
func CheckSession(h *History, promised bool) Result {
	res := newResult("session")
	report := res.observe
	if promised {
		report = res.add
	}
	keys, groups := byKey(h.Ops(), func(*Op) bool { return true })
	for _, key := range keys {
		if order, single := writeOrder(groups[key]); single {
			res.Keys++
			checkSessionKey(&res, report, key, groups[key], order)
		}
	}
	return res
}

func checkSessionKey(res *Result, report func(kind, key, text string, ops ...*Op), key string, ops []Op, order map[string]int) {
	wrote := map[int]*Op{} // each client's last acknowledged write
	read := map[int]*Op{}  // each client's last read
	for i := range ops {
		op := &ops[i]
		if op.Wrote() {
			wrote[op.Client] = op
		}
		if !op.Answered() || len(op.Siblings) > 0 {
			continue
		}
		res.Operations++
		at := place(order, op)
		if w := wrote[op.Client]; w != nil && w.Return < op.Call && order[w.Value] > at {
			report("own write not read", key, fmt.Sprintf("client %d does not see what it wrote", op.Client), op, w)
		}
		if r := read[op.Client]; r != nil && r.Return < op.Call && place(order, r) > at {
			report("read went back", key, fmt.Sprintf("client %d sees less than before", op.Client), op, r)
		}
		read[op.Client] = op
	}
}

// writeOrder numbers the values of a key from 1 in the order of their puts. single is false when several clients wrote, or
// something was deleted.
func writeOrder(ops []Op) (order map[string]int, single bool) {
	order = map[string]int{}
	writer := -1
	for i := range ops {
		op := &ops[i]
		switch {
		case !op.IsWrite():
			continue
		case op.Kind == kv.OpDelete || writer >= 0 && writer != op.Client:
			return nil, false
		}
		writer = op.Client
		order[op.Value] = len(order) + 1
	}
	return order, writer >= 0
}

// place returns the number of the value that was read, 0 when the key was absent.
func place(order map[string]int, read *Op) int {
	if !read.Found {
		return 0
	}
	return order[read.Result]
}
