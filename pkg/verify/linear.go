package verify

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caprockdb/caprock/pkg/kv"
)

// stepsPerKeyMax bounds the search for an order of one key's operations. The search keeps a few hundred bytes a step. It
// is what ends a search in a bubble, where time stands still as long as the checker computes.
const stepsPerKeyMax = 1_000_000

// CheckLinearizable checks that there is, for each key, an order of the strong operations that agrees with real time and in
// which each answer follows from the operations before it: reads, deletes with whether they found something, conditional
// writes that hit or missed, and versions, which must grow.
//
// timeout bounds the time for all keys together, 0 leaves it to the limit on the steps of each key. Keys left without a
// verdict are Undecided, and the result is then not valid.
func CheckLinearizable(h *History, timeout time.Duration) Result {
	return checkLinearizable[register]("linearizable", h, timeout, func(op *Op) bool { return op.Level == kv.LevelStrong })
}

// CheckBatches checks the strong operations on keys with a {tag}, atomic batches and listings of a whole tag among them: for
// each tag there is one order of all of them, in which a batch changes all of its keys at once or none, and a listing
// shows them all at once. The keys of a tag are the tag and one letter, of which there are batchKeys.
func CheckBatches(h *History, timeout time.Duration) Result {
	return checkLinearizable[group]("batches", h, timeout, func(op *Op) bool { return op.Level == kv.LevelStrong })
}

// CheckMixed checks strong and eventual operations on the same keys: strong operations reflect each eventual write that was
// acknowledged before they began, so that they are linearizable together with the eventual writes of the key. These must have
// asked for a majority. What eventual reads answer is not judged.
func CheckMixed(h *History, timeout time.Duration) Result {
	return checkLinearizable[register]("mixed", h, timeout, func(op *Op) bool {
		return op.Level == kv.LevelStrong || op.IsWrite()
	})
}

// checkLinearizable checks the operations on each state by themselves.
func checkLinearizable[S state[S]](name string, h *History, timeout time.Duration, keep func(*Op) bool) Result {
	res := newResult(name)
	var s S
	keys, groups := grouped(h.Ops(), keep, s.home)
	deadline := time.Now().Add(timeout)
	for _, key := range keys {
		ops := groups[key]
		res.Keys++
		res.Operations += len(ops)
		single, parts := byKey(partsOf(ops), keep)
		for _, k := range single {
			checkVersions(&res, k, parts[k])
		}
		left := time.Duration(0)
		if timeout > 0 {
			left = max(time.Until(deadline), time.Nanosecond)
		}
		switch search := newSearch[S](ops, stepsPerKeyMax); search.verdict(left) {
		case porcupine.Ok:
		case porcupine.Illegal:
			search.explain(&res, key, left)
		default:
			res.Undecided++
			res.add("undecided", key, fmt.Sprintf(
				"no order of its %d operations was found, nor that there is none, within the limits of the search", len(ops)))
		}
	}
	return res
}

// checkVersions reports what is wrong with versions by themselves, whatever the order.
func checkVersions(res *Result, key string, ops []Op) {
	writers := map[uint64]*Op{}
	for i := range ops {
		op := &ops[i]
		switch {
		case op.Level != kv.LevelStrong || op.Outcome != OutcomeOK:
			continue
		case op.Version == 0 && (op.Wrote() || op.Answered() && op.Found && !anyEventual(ops)):
			res.add("answer without a version", key, "a strong answer names the version", op)
		case op.Missed && op.Condition.Kind == kv.ConditionVersion && op.Condition.Version == op.Version:
			res.add("miss at the asked version", key, "a condition that holds cannot miss", op)
		case op.Wrote():
			if first, ok := writers[op.Version]; ok {
				res.add("version given twice", key, "two writes cannot have one version", first, op)
			}
			writers[op.Version] = op
		}
	}
}

// anyEventual reports whether an eventual write is among the operations: then a strong read may find a value that no
// strong write gave a version.
func anyEventual(ops []Op) bool {
	for i := range ops {
		if ops[i].Level != kv.LevelStrong {
			return true
		}
	}
	return false
}

// search looks for an order of the operations on one state.
type search[S state[S]] struct {
	// sure are the operations without the unknown writes that left no trace. When there is an order of them there is one
	// of all: what left no trace may come last. all has everything that may have been applied.
	sure, all []step
	stepsMax  int64
}

func newSearch[S state[S]](ops []Op, stepsMax int64) *search[S] {
	sure, all := prepare(ops)
	return &search[S]{sure: sure, all: all, stepsMax: stepsMax}
}

// verdict says whether there is an order. Unknown means that the search was cut off.
func (s *search[S]) verdict(timeout time.Duration) porcupine.CheckResult {
	first := s.run(s.sure, timeout)
	if first == porcupine.Ok || len(s.all) == len(s.sure) {
		return first
	}
	return s.run(s.all, timeout)
}

func (s *search[S]) run(steps []step, timeout time.Duration) porcupine.CheckResult {
	m := newModel[S](s.stepsMax)
	got := porcupine.CheckOperationsTimeout(m.model, operations(steps), timeout)
	if m.exceeded() {
		return porcupine.Unknown
	}
	return got
}

// operations is the form in which porcupine takes steps.
func operations(steps []step) []porcupine.Operation {
	out := make([]porcupine.Operation, len(steps))
	for i := range steps {
		s := &steps[i]
		out[i] = porcupine.Operation{ClientId: s.op.Client, Input: s, Call: s.op.Call, Output: s, Return: s.until, Metadata: s.op.ID}
	}
	return out
}
