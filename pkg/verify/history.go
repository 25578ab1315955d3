package verify

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Note is something that happened beside the operations, such as a fault that began or ended.
type Note struct {
	Time int64
	Text string
}

// History records operations as clients make them. It is safe for many goroutines. The zero History is not usable.
type History struct {
	// clock is the time of the history: it only grows, and no two events share a reading.
	clock atomic.Int64
	// epoch is when the history began, by the client's clock.
	epoch time.Time

	// mu guards the fields below.
	mu    sync.Mutex
	ops   []Op
	notes []Note
}

// NewHistory returns an empty history.
func NewHistory() *History { return &History{epoch: time.Now()} }

// Call records that a client is about to send the operation, and returns its id. The history sets ID, Call, Return and
// Outcome.
func (h *History) Call(op Op) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	op.ID, op.Call, op.Return, op.Outcome = len(h.ops), h.clock.Add(1), Never, OutcomePending
	op.At = time.Since(h.epoch)
	h.ops = append(h.ops, op)
	return op.ID
}

// Return records that the operation with the id has ended; end fills in what was answered. It returns the whole
// operation. A write that is unknown keeps Never as its return.
func (h *History) Return(id int, end func(*Op)) Op {
	now, until := h.clock.Add(1), time.Since(h.epoch)
	h.mu.Lock()
	defer h.mu.Unlock()
	op := &h.ops[id]
	op.Return, op.Until = now, until
	end(op)
	if op.Outcome == OutcomeUnknown && op.IsWrite() {
		op.Return = Never
	}
	return *op
}

// Note records that something happened now.
func (h *History) Note(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes = append(h.notes, Note{Time: h.clock.Add(1), Text: text})
}

// Now returns the history's time.
func (h *History) Now() int64 { return h.clock.Load() }

// Ops returns a copy of the operations in the order of their calls.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}

// Notes returns a copy of the notes in order.
func (h *History) Notes() []Note {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.notes)
}

// Counts says how many operations had each outcome. Pending ones count as unknown.
type Counts struct {
	Operations, OK, Failed, Unknown int
}

// Counts returns how many operations the history has.
func (h *History) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := Counts{Operations: len(h.ops)}
	for i := range h.ops {
		switch h.ops[i].Outcome {
		case OutcomeOK:
			c.OK++
		case OutcomeFail:
			c.Failed++
		case OutcomePending, OutcomeUnknown:
			c.Unknown++
		}
	}
	return c
}

// byKey returns the operations that keep accepts, grouped by key, with the keys in order.
func byKey(ops []Op, keep func(*Op) bool) (keys []string, groups map[string][]Op) {
	return grouped(ops, keep, func(op *Op) string { return op.Key })
}

// grouped returns the operations that keep accepts in groups of one home, with the homes in order.
func grouped(ops []Op, keep func(*Op) bool, home func(*Op) string) (keys []string, groups map[string][]Op) {
	groups = map[string][]Op{}
	for i := range ops {
		if keep(&ops[i]) {
			key := home(&ops[i])
			groups[key] = append(groups[key], ops[i])
		}
	}
	for k := range groups {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys, groups
}
