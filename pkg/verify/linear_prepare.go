package verify

import (
	"math"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// forever is later than any reading of a clock.
const forever = time.Duration(math.MaxInt64)

// step is an operation as the search takes it.
type step struct {
	op *Op
	// until is when it has taken effect at the latest.
	until int64
	// last is the latest time that the clock which decides about expiry may have shown when it took effect.
	last time.Duration
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
	at      time.Duration
	version uint64
}

// showing collects what the operations say about values.
func showing(ops []Op) map[string]evidence {
	read := map[string]evidence{}
	for _, op := range partsOf(ops) {
		if !op.Answered() || !op.Found {
			continue
		}
		e, ok := read[op.Result]
		if !ok || op.Return < e.until {
			e.until, e.at = op.Return, op.Until
		}
		if e.version == 0 {
			e.version = op.Version
		}
		read[op.Result] = e
	}
	return read
}

// shown returns the first evidence that the write was applied: that one of its values was read.
func shown(op *Op, read map[string]evidence) (first evidence, ok bool) {
	for _, part := range op.parts() {
		e, found := read[part.Value]
		if part.Kind == kv.OpPut && found && (!ok || e.until < first.until) {
			first, ok = e, true
		}
	}
	return first, ok
}

// prepare turns a key's operations into steps. An unknown put whose value was read has been applied, before that read was
// answered: that closes its interval, without which each such put would double the search. Failed operations are left out.
func prepare(ops []Op) (sure, all []step) {
	read := showing(ops)
	for i := range ops {
		op := &ops[i]
		switch {
		case op.Outcome == OutcomeOK:
			s := step{op: op, until: op.Return, last: op.Until + expirySlack, applied: op.Wrote(), answered: true}
			if op.Wrote() {
				s.version = op.Version
			}
			sure, all = append(sure, s), append(all, s)
		case op.MayHaveWritten():
			s := step{op: op, until: Never, last: forever}
			e, ok := shown(op, read)
			// A value that was read before it was written stays what it is: there is no order of such operations.
			if ok && e.until > op.Call {
				s.until, s.last, s.applied, s.version = e.until, e.at+expirySlack, true, e.version
				sure = append(sure, s)
			}
			all = append(all, s)
		}
	}
	return sure, all
}
