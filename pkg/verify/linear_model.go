package verify

import (
	"context"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync/atomic"
	"time"

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
	// expires: the value may be gone from early on, by the client's clock, and is not seen by what begins after late.
	expires     bool
	early, late time.Duration
}

// expirySlack is how far ahead of the clients' clock the clock may be that decides whether a value has expired. Where clocks
// are right it is the hybrid clock of the nodes, which after a restart goes on at the ceiling that it had kept ahead of itself.
const expirySlack = 500 * time.Millisecond

// apply returns the register after the step; false when the step cannot come here.
func (r register) apply(s *step) (register, bool) {
	op := s.op
	switch {
	case op.Kind == kv.OpGet:
		return r.get(s)
	case op.Missed:
		return r.missed(op.Condition, op.Version, s)
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

func (r register) get(s *step) (register, bool) {
	if !s.op.Found {
		return r.absent(s)
	}
	return r.shows(s.op.Result, s.op.Version, s)
}

// shows returns the register knowing that the step found it with the value and the version; false when it cannot have.
func (r register) shows(value string, version uint64, s *step) (register, bool) {
	if !r.present(s) || r.value != value {
		return r, false
	}
	return r.bind(version)
}

// present reports whether the step can find a value. Until late one that expires may still be there.
func (r register) present(s *step) bool { return r.exists && (!r.expires || s.op.At <= r.late) }

// absent returns the register knowing that the step found nothing; false when there must have been something. What was found to
// have expired stays gone.
func (r register) absent(s *step) (register, bool) {
	if r.exists {
		if !r.expires || s.last < r.early {
			return r, false
		}
		r = register{version: r.version, bound: r.bound}
	}
	return r, true
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
func (r register) missed(c kv.Condition, version uint64, s *step) (register, bool) {
	if version == 0 {
		if c.Kind == kv.ConditionVersion && c.Version == 0 {
			return r, false
		}
		return r.absent(s)
	}
	if !r.present(s) || c.Kind == kv.ConditionExists || c.Version == version {
		return r, false
	}
	return r.bind(version)
}

// meet returns the register knowing that the condition holds; false when it cannot.
func (r register) meet(c kv.Condition, s *step) (register, bool) {
	switch c.Kind {
	case kv.ConditionNone:
		return r, true
	case kv.ConditionExists:
		return r, r.present(s)
	}
	if c.Version == 0 {
		return r.absent(s)
	}
	if !r.present(s) {
		return r, false
	}
	return r.bind(c.Version)
}

// write is a write that is applied.
func (r register) write(s *step) (register, bool) { return r.put(s.op, s) }

// put is the write of op, which is the step's or a part of it, when it is applied.
func (r register) put(op *Op, s *step) (register, bool) {
	r, ok := r.meet(op.Condition, s)
	if !ok || s.version != 0 && s.version <= r.version {
		return r, false
	}
	// Whether a put found something is not part of every interface's answer; of a delete it is.
	if s.answered && op.Kind == kv.OpDelete && op.Level == kv.LevelStrong {
		if op.Found && !r.present(s) {
			return r, false
		}
		if !op.Found {
			if r, ok = r.absent(s); !ok {
				return r, false
			}
		}
	}
	next := register{exists: op.Kind == kv.OpPut, value: op.Value, version: s.version, bound: s.version != 0}
	if !next.bound {
		next.version = r.version
	}
	if next.exists && op.TTL > 0 {
		next.expires, next.early, next.late = true, op.At+op.TTL, forever
		if s.last != forever {
			next.late = s.last + op.TTL
		}
	}
	return next, true
}

// state is what operations that are judged together change: a key, or the keys of a tag.
type state[S any] interface {
	comparable
	fmt.Stringer
	// home names the state that the operation is about.
	home(*Op) string
	// initial returns the state before the first operation.
	initial() S
	// apply returns the state after the step; false when the step cannot come here.
	apply(*step) (S, bool)
}

func (register) home(op *Op) string { return op.Key }

func (register) initial() register { return register{bound: true} }

// model is porcupine's model of one state, with a limit on the steps of one search.
type model struct {
	model porcupine.Model
	// steps is atomic because a search that ran out of time still takes a few.
	steps    atomic.Int64
	stepsMax int64
}

func (m *model) exceeded() bool { return m.steps.Load() > m.stepsMax }

// newModel makes a model for one search of at most stepsMax steps.
func newModel[S state[S]](stepsMax int64) *model {
	m := &model{stepsMax: stepsMax}
	seed := maphash.MakeSeed()
	m.model = porcupine.Model{
		Init: func() any {
			var s S
			return s.initial()
		},
		StepContext: func(_ context.Context, state, input, _ any) (bool, any) {
			if m.steps.Add(1) > m.stepsMax {
				return false, state
			}
			next, ok := state.(S).apply(input.(*step))
			return ok, next
		},
		Hash:              func(state any) uint64 { return maphash.Comparable(seed, state.(S)) },
		DescribeOperation: func(input, _ any) string { return input.(*step).op.describe() },
		DescribeState:     func(state any) string { return state.(S).String() },
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
	if r.expires {
		version += fmt.Sprintf(" that expires between %s and %s", r.early, timeLimit(r.late))
	}
	return strconv.Quote(r.value) + version
}

func timeLimit(d time.Duration) string {
	if d == forever {
		return "no known time"
	}
	return d.String()
}
