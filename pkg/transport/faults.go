package transport

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// rulesMax bounds the rules in force: every frame is held against all of them.
const rulesMax = 256

// Faults is the fault injector of --dev. Its rules apply to frames, on their way out as they are queued and on their way
// in as they arrive, so that a link stays up whatever they do: to the lanes, a cut peer looks like one behind a
// network that swallows everything.
//
// A frame that several rules match is dropped if any of them drops it, and delayed by the longest of their delays.
type Faults struct {
	// active says that there are rules, so that frames pay one load when there are none.
	active atomic.Bool

	mu    sync.Mutex // guards the fields below
	rules []Rule
	rand  *rand.Rand
}

// NewFaults returns an injector without rules. The seed decides which frames a probability hits.
func NewFaults(seed uint64) *Faults {
	return &Faults{rand: rand.New(rand.NewPCG(seed, 0xfa017))}
}

// Set replaces all rules, or none of them when one is invalid.
func (f *Faults) Set(rules []Rule) error {
	if len(rules) > rulesMax {
		return errTooManyRules
	}
	for i := range rules {
		if err := rules[i].Validate(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = slices.Clone(rules)
	f.active.Store(len(rules) > 0)
	return nil
}

// Rules returns the rules in force, never nil.
func (f *Faults) Rules() []Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Rule{}, f.rules...)
}

// Clear removes all rules. Frames that are held back still arrive.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
	f.active.Store(false)
}

// fate is what becomes of one frame.
type fate struct {
	drop      bool
	duplicate bool
	delay     time.Duration
}

// fate decides about one frame to or from the peer.
func (f *Faults) fate(peer kv.NodeID, d Direction, c Class) (out fate) {
	if !f.active.Load() {
		return fate{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.rules {
		r := &f.rules[i]
		if !r.matches(peer, d, c) {
			continue
		}
		out.drop = out.drop || r.Cut || f.hits(r.Drop)
		out.duplicate = out.duplicate || f.hits(r.Duplicate)
		out.delay = max(out.delay, r.Delay)
	}
	return out
}

func (f *Faults) hits(probability float64) bool {
	return probability > 0 && f.rand.Float64() < probability
}
