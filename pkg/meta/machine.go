package meta

import (
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/storage"
)

// stateName is the row of group 0 that holds the encoded State.
const stateName = "state"

// Machine is the state machine of group 0. Apply is called by the store loop only; State may be called by anyone.
type Machine struct {
	rows  storage.State
	state atomic.Pointer[State]
	// changed holds a token after the state has changed. One slot: a reader reads the newest state anyway.
	changed chan struct{}
}

// NewMachine loads the state that this node's disk holds, if any.
func NewMachine(st storage.State) (*Machine, error) {
	m := &Machine{rows: st, changed: make(chan struct{}, 1)}
	if err := m.load(); err != nil {
		return nil, err
	}
	return m, nil
}

// load takes over what the disk holds.
func (m *Machine) load() error {
	raw, found, err := m.rows.MetaValue(stateName)
	if err != nil {
		return fmt.Errorf("meta: %w", err)
	}
	s := &State{Format: stateFormat}
	if found {
		if s, err = decodeState(raw); err != nil {
			return err
		}
	}
	m.state.Store(s)
	return nil
}

// Restored implements consensus.Restorer: a snapshot took the place of the state on the disk.
func (m *Machine) Restored() error {
	if err := m.load(); err != nil {
		return err
	}
	m.noteChange()
	return nil
}

func (m *Machine) noteChange() {
	select {
	case m.changed <- struct{}{}:
	default: // a token is already waiting
	}
}

// State returns the state as far as this node has applied it. It must not be changed.
func (m *Machine) State() *State { return m.state.Load() }

// Changed receives after the state has changed. It has one slot and is meant for one reader.
func (m *Machine) Changed() <-chan struct{} { return m.changed }

// Apply implements consensus.Machine.
func (m *Machine) Apply(b *storage.Batch, e consensus.Committed) ([]any, error) {
	before := m.state.Load()
	s := before
	replies := make([]any, 0, len(e.Commands))
	for _, raw := range e.Commands {
		next, r, err := apply(s, raw)
		if err != nil {
			return nil, err
		}
		s = next
		r.PolicyEpoch = s.PolicyEpoch
		replies = append(replies, r)
	}
	if s == before {
		return replies, nil
	}
	enc, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("meta: encode state: %w", err)
	}
	b.SetMetaValue(stateName, enc)
	m.state.Store(s)
	m.noteChange()
	return replies, nil
}
