package verify

// CheckValues checks that whatever was read, at any level, had been written to that key, by a write that did not fail and
// that had begun before the read was answered. It also checks what the other checkers rely on: that values are unique.
func CheckValues(h *History) Result {
	res := newResult("values")
	ops := partsOf(h.Ops())
	keys, groups := byKey(ops, func(*Op) bool { return true })
	writes := map[string]*Op{}
	for i := range ops {
		op := &ops[i]
		if op.Kind.String() != "put" {
			continue
		}
		if first, ok := writes[op.Value]; ok {
			res.add("value not unique", op.Key, "the run itself is broken: two puts have one value", first, op)
		}
		writes[op.Value] = op
	}
	for _, key := range keys {
		res.Keys++
		for i := range groups[key] {
			if op := &groups[key][i]; op.Answered() {
				res.Operations++
				checkRead(&res, op, writes)
			}
		}
	}
	return res
}

func checkRead(res *Result, op *Op, writes map[string]*Op) {
	for _, v := range op.Values() {
		switch w := writes[v]; {
		case w == nil:
			res.add("value never written", op.Key, "nobody wrote "+quote(v), op)
		case w.Key != op.Key:
			res.add("value of another key", op.Key, quote(v)+" was written to another key", op, w)
		case !w.MayHaveWritten():
			res.add("failed write read", op.Key, quote(v)+" comes from a write that failed", op, w)
		case w.Call > op.Return:
			res.add("value read before it was written", op.Key, quote(v)+" was not written yet", op, w)
		}
	}
}
