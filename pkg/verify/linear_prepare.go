package verify

import "github.com/caprockdb/caprock/pkg/kv"

// step is an operation as the search takes it.
type step struct {
	op *Op
	// until is when it has taken effect at the latest.
	until int64
	// applied: it is known to have been applied, by its answer or because its value was read.
	applied bool
	// answered: what was answered must follow from the order. False for a write whose answer never came.
	answered bool
	// version that it wrote, 0 when that is not known.
	version uint64
}

// evidence is what reads say about the write of a value.
type evidence struct {
	until   int64 // the first answer that showed it
	version uint64
}

// prepare turns a key's operations into steps. An unknown put whose value was read has been applied, before that read was
// answered: that closes its interval, without which each such put would double the search. Failed operations are left out.
func prepare(ops []Op) (sure, all []step) {
	read := map[string]evidence{}
	for i := range ops {
		op := &ops[i]
		if !op.Answered() || !op.Found {
			continue
		}
		e, ok := read[op.Result]
		if !ok || op.Return < e.until {
			e.until = op.Return
		}
		if e.version == 0 {
			e.version = op.Version
		}
		read[op.Result] = e
	}
	for i := range ops {
		op := &ops[i]
		switch {
		case op.Outcome == OutcomeOK:
			s := step{op: op, until: op.Return, applied: op.Wrote(), answered: true}
			if op.Wrote() {
				s.version = op.Version
			}
			sure, all = append(sure, s), append(all, s)
		case op.MayHaveWritten():
			s := step{op: op, until: Never}
			e, ok := read[op.Value]
			// A value that was read before it was written stays what it is: there is no order of such operations.
			if op.Kind == kv.OpPut && ok && e.until > op.Call {
				s.until, s.applied, s.version = e.until, true, e.version
				sure = append(sure, s)
			}
			all = append(all, s)
		}
	}
	return sure, all
}
