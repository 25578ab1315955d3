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

// apply returns the register after the step; false when the step cannot come here.
func (r register) apply(s *step) (register, bool) {
	op := s.op
	switch {
	case op.Kind == kv.OpGet:
		return r.get(op)
	case op.Missed:
		return r.missed(op)
	case s.applied:
		return r.write(s)
	}
	// It is not known whether the write was applied. Where it can be it is, otherwise its condition misses. That it may not be
	// applied though it could needs no case: that is the same as coming last, which it may.
	if next, ok := r.write(s); ok {
		return next, true
	}
	return r, true
}

func (r register) get(op *Op) (register, bool) {
	switch {
	case !op.Found && !r.exists:
		return r, true
	case !op.Found || !r.exists || r.value != op.Result:
		return r, false
	}
	return r.bind(op.Version)
}

// bind returns the register with the version known to be v; false when it cannot be. v is 0 when nothing is known.
func (r register) bind(v uint64) (register, bool) {
	switch {
	case v == 0 || r.bound && r.version == v:
		return r, true
	case r.bound || v <= r.version:
		return r, false
	}
	r.version, r.bound = v, true
	return r, true
}

// missed is a conditional write that observed another version than it asked for.
func (r register) missed(op *Op) (register, bool) {
	if op.Version == 0 {
		asked := op.Condition.Kind == kv.ConditionVersion && op.Condition.Version == 0
		return r, !r.exists && !asked
	}
	if !r.exists || op.Condition.Kind == kv.ConditionExists || op.Condition.Version == op.Version {
		return r, false
	}
	return r.bind(op.Version)
}

// meet returns the register knowing that the condition holds; false when it cannot.
func (r register) meet(c kv.Condition) (register, bool) {
	switch c.Kind {
	case kv.ConditionNone:
		return r, true
	case kv.ConditionExists:
		return r, r.exists
	}
	if c.Version == 0 || !r.exists {
		return r, c.Version == 0 && !r.exists
	}
	return r.bind(c.Version)
}

// write is a write that is applied.
func (r register) write(s *step) (register, bool) {
	r, ok := r.meet(s.op.Condition)
	switch {
	case !ok, s.version != 0 && s.version <= r.version:
		return r, false
	// Whether a put found something is not part of every interface's answer; of a delete it is.
	case s.answered && s.op.Kind == kv.OpDelete && s.op.Level == kv.LevelStrong && s.op.Found != r.exists:
		return r, false
	}
	next := register{exists: s.op.Kind == kv.OpPut, value: s.op.Value, version: s.version, bound: s.version != 0}
	if !next.bound {
		next.version = r.version
	}
	return next, true
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
		Init: func() any { return register{bound: true} },
		StepContext: func(_ context.Context, state, input, _ any) (bool, any) {
			if m.steps.Add(1) > m.stepsMax {
				return false, state
			}
			next, ok := state.(register).apply(input.(*step))
			return ok, next
		},
		Hash:              func(state any) uint64 { return maphash.Comparable(seed, state.(register)) },
		DescribeOperation: func(input, _ any) string { return input.(*step).op.describe() },
		DescribeState:     func(state any) string { return state.(register).String() },
		DescribeOperationMetadata: func(info any) string {
			return fmt.Sprintf("operation #%v", info)
		},
	}
	return m
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
