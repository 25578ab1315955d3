package verify

import (
	"context"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync/atomic"

	"github.com/anishathalye/porcupine"

	"github.com/caprockdb/caprock/pkg/kv"
)

// register is the state of one key in the strong lane.
type register struct {
	exists bool
	value  string
	// version of the last write, a delete included. While bound is false it is not known, but above version.
	version uint64
	bound   bool
}

// states are those that may follow from one: none, one, or two when it is not known whether a condition holds.
type states struct {
	at [2]register
	n  int
}

func one(r register) states { return states{at: [2]register{r}, n: 1} }

// apply returns the states in which the register may be after the step; none when the step cannot come here.
func (r register) apply(s *step) states {
	op := s.op
	switch {
	case op.Kind == kv.OpGet:
		return r.get(op)
	case op.Missed:
		return r.missed(op)
	case s.applied:
		return r.write(s)
	default:
		return r.mayWrite(s)
	}
}

func (r register) get(op *Op) states {
	switch {
	case !op.Found && !r.exists:
		return one(r)
	case !op.Found || !r.exists || r.value != op.Result:
		return states{}
	}
	return r.bind(op.Version)
}

// bind returns the state with the version known to be v; none when it cannot be. v is 0 when nothing is known.
func (r register) bind(v uint64) states {
	switch {
	case v == 0 || r.bound && r.version == v:
		return one(r)
	case r.bound || v <= r.version:
		return states{}
	}
	r.version, r.bound = v, true
	return one(r)
}

// missed is a conditional write that observed another version than it asked for.
func (r register) missed(op *Op) states {
	if op.Version == 0 {
		if r.exists || op.Condition == (kv.Condition{Kind: kv.ConditionVersion}) {
			return states{}
		}
		return one(r)
	}
	if !r.exists || op.Condition.Kind == kv.ConditionExists || op.Condition.Version == op.Version {
		return states{}
	}
	return r.bind(op.Version)
}

// holds returns the states in which the condition holds, as far as they can be those of r.
func (r register) holds(c kv.Condition) states {
	switch {
	case c.Kind == kv.ConditionNone,
		c.Kind == kv.ConditionExists && r.exists,
		c.Kind == kv.ConditionVersion && c.Version == 0 && !r.exists:
		return one(r)
	case c.Kind == kv.ConditionVersion && c.Version != 0 && r.exists:
		return r.bind(c.Version)
	}
	return states{}
}

// write is a write that was applied.
func (r register) write(s *step) states {
	held := r.holds(s.op.Condition)
	if held.n == 0 {
		return held
	}
	r = held.at[0]
	// Whether a put found something is not part of every interface's answer; of a delete it is.
	if s.answered && s.op.Kind == kv.OpDelete && s.op.Level == kv.LevelStrong && s.op.Found != r.exists {
		return states{}
	}
	if s.version != 0 && s.version <= r.version {
		return states{}
	}
	next := register{exists: s.op.Kind == kv.OpPut, value: s.op.Value, version: s.version, bound: s.version != 0}
	if !next.bound {
		next.version = r.version
	}
	return one(next)
}

// mayWrite is a write of which it is not known whether it was applied. Its condition may hold, or not, or it may not be
// known which; a write that never takes effect at all is one that comes last.
func (r register) mayWrite(s *step) states {
	applied := r.write(s)
	certain := s.op.Condition.Kind != kv.ConditionVersion || s.op.Condition.Version == 0 || r.bound || !r.exists
	if applied.n > 0 && certain {
		return applied
	}
	if applied.n == 0 {
		return one(r)
	}
	return states{at: [2]register{applied.at[0], r}, n: 2}
}

// model is porcupine's model of one key, with a limit on the steps of one search.
type model struct {
	model porcupine.Model
	// steps is atomic because a search that ran out of time still takes a few.
	steps    atomic.Int64
	stepsMax int64
}

func (m *model) exceeded() bool { return m.steps.Load() > m.stepsMax }

// newModel makes a model for one search of at most stepsMax steps.
func newModel(stepsMax int64) *model {
	m := &model{stepsMax: stepsMax}
	seed := maphash.MakeSeed()
	m.model = porcupine.Model{
		Init: func() any { return []register{{bound: true}} },
		StepContext: func(_ context.Context, state, input, _ any) (bool, any) {
			if m.steps.Add(1) > m.stepsMax {
				return false, state
			}
			next := applyAll(state.([]register), input.(*step))
			return len(next) > 0, next
		},
		Equal: func(a, b any) bool { return sameStates(a.([]register), b.([]register)) },
		Hash: func(state any) uint64 {
			var sum uint64
			for _, r := range state.([]register) {
				sum += maphash.Comparable(seed, r)
			}
			return sum
		},
		DescribeOperation: func(input, _ any) string { return input.(*step).op.describe() },
		DescribeState:     func(state any) string { return describeStates(state.([]register)) },
		DescribeOperationMetadata: func(info any) string {
			return fmt.Sprintf("operation #%v", info)
		},
	}
	return m
}

// applyAll returns every state that may follow from any of the states.
func applyAll(from []register, s *step) []register {
	out := make([]register, 0, 1)
	for _, r := range from {
		next := r.apply(s)
		for _, n := range next.at[:next.n] {
			if !contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func contains(list []register, r register) bool {
	for i := range list {
		if list[i] == r {
			return true
		}
	}
	return false
}

// sameStates compares two lists without repeats as sets.
func sameStates(a, b []register) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !contains(b, a[i]) {
			return false
		}
	}
	return true
}

func describeStates(list []register) string {
	out := ""
	for i, r := range list {
		if i > 0 {
			out += " or "
		}
		out += r.String()
	}
	return out
}

// String describes the state.
func (r register) String() string {
	version := " version " + strconv.FormatUint(r.version, 10)
	if !r.bound {
		version = " version above " + strconv.FormatUint(r.version, 10)
	}
	if !r.exists {
		return "absent after" + version
	}
	return strconv.Quote(r.value) + version
}
