package consensus

import (
	"fmt"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// kvMachine is the state machine of a partition's group: S, the strong lane's state. In memory it keeps only some of what
// storage holds of its sessions.
//
// A put's stamp is its entry's own position, so that it replaces everything stamped before it without looking. Reading S
// there, only to say whether the key existed, took a third of the lane's CPU on every replica. A delete leaves a tombstone
// with such a stamp, also when there was nothing to delete: an older eventual write that arrives late must still find
// out that it is older.
type kvMachine struct {
	state  storage.State
	memory memory
	// notify is told of the keys that an entry wrote, once that can be seen; written are those of the present entry. They alias
	// it.
	notify  func(g kv.GroupID, keys [][]byte)
	written [][]byte
}

var (
	_ Machine  = (*kvMachine)(nil)
	_ Restorer = (*kvMachine)(nil)
)

// Restored implements Restorer.
func (m *kvMachine) Restored() error {
	m.memory = memory{}
	return nil
}

// visible tells whoever wants to know what the last entry wrote.
func (m *kvMachine) visible(g kv.GroupID) {
	if m.notify != nil && len(m.written) > 0 {
		m.notify(g, m.written)
	}
	clear(m.written)
	m.written = m.written[:0]
}

// Apply implements Machine. The replies are *WriteReply. Everything is read and decided before anything is written, so
// that an entry which cannot be applied leaves the batch alone.
func (m *kvMachine) Apply(b *storage.Batch, e Committed) ([]any, error) {
	ops := e.decoded
	if ops == nil {
		var err error
		if ops, err = decodeCommands(&e); err != nil {
			return nil, err
		}
	}
	replies := make([]WriteReply, len(ops))
	known := sessions{memory: &m.memory, state: m.state, group: e.Group}
	var gone []lapsed
	for i := range ops {
		var err error
		if op := &ops[i]; op.expire != nil {
			var more []lapsed
			more, err = m.decideExpire(op.expire, e)
			gone = append(gone, more...)
		} else {
			replies[i], err = m.decide(op, e, &known, &gone)
		}
		if err != nil {
			m.memory = memory{} // what this entry has changed there will not be written
			return nil, fmt.Errorf("group %d, entry %d, command %d: %w", e.Group, e.Pos.Index, i, err)
		}
	}
	out := make([]any, len(ops))
	for i := range ops {
		out[i] = &replies[i]
		if mutant.Planted == mutant.BatchInPart && !replies[i].Applied && !replies[i].Repeated {
			for j := range replies[i].Missed {
				m.write(b, e, &ops[i].Batch[j])
			}
		}
		if !replies[i].Applied || replies[i].Repeated {
			continue
		}
		if ops[i].Batch == nil {
			m.write(b, e, &ops[i].WriteOp)
		}
		for j := range ops[i].Batch {
			m.write(b, e, &ops[i].Batch[j])
		}
	}
	for i := range gone {
		gone[i].write(b, e)
	}
	known.write(b)
	return out, nil
}

// write adds the row of a put or a delete that was decided to the batch. Its stamp is its own: of a batch's writes some are judged by
// what they replace and some are not.
func (m *kvMachine) write(b *storage.Batch, e Committed, op *WriteOp) {
	m.written = append(m.written, op.Key)
	expiry := expiryOf(op, e)
	if op.Settled != nil {
		expiry = op.Settled.Expiry
	}
	b.SetStrong(e.Group, op.Key, storage.Strong{
		Value: op.Value, Deleted: op.Delete, Revision: e.Pos.Index, Stamp: op.stamp, Expiry: expiry, Covered: op.covered, Before: op.before, Base: op.base,
	})
	if expiry != 0 {
		b.SetExpiry(e.Group, expiry, op.Key)
	}
}

// decide returns what a command does, unless it did so before: then, what it did.
func (m *kvMachine) decide(op *command, e Committed, known *sessions, gone *[]lapsed) (WriteReply, error) {
	if op.ID.IsZero() {
		return m.decideNew(&op.WriteOp, e, gone)
	}
	if err := known.open(e); err != nil {
		return WriteReply{}, err
	}
	s, err := known.find(op.ID.Session)
	if err != nil {
		return WriteReply{}, err
	}
	reply, done, err := s.recall(op)
	if done || err != nil {
		return reply, err
	}
	if reply, err = m.decideNew(&op.WriteOp, e, gone); err == nil && !reply.Overtaken {
		known.remember(s, op, reply)
	}
	return reply, err
}

// decideNew returns what a write, or a batch of them, does. A batch does nothing once a condition in it misses.
//
// To a command that writes nothing a key that it found expired is gone as well, so that it stays gone: what the command
// answered must not be taken back by a later entry with an earlier time.
func (m *kvMachine) decideNew(op *WriteOp, e Committed, gone *[]lapsed) (WriteReply, error) {
	before := len(*gone)
	reply, err := m.decideAll(op, e, gone)
	if reply.Applied {
		*gone = (*gone)[:before]
	}
	return reply, err
}

func (m *kvMachine) decideAll(op *WriteOp, e Committed, gone *[]lapsed) (WriteReply, error) {
	if op.Batch == nil {
		return m.decideWrite(op, op.Guard, 0, e, gone)
	}
	out := WriteReply{Items: make([]bool, len(op.Batch))}
	for i := range op.Batch {
		reply, err := m.decideWrite(&op.Batch[i], op.Guard, i, e, gone)
		if err != nil || reply.Overtaken {
			return reply, err
		}
		if !reply.Applied {
			return WriteReply{Found: reply.Found, Revision: reply.Revision, Missed: i}, nil
		}
		out.Items[i], out.Applied, out.Revision, out.Stamp = reply.Found, true, reply.Revision, reply.Stamp
	}
	return out, nil
}

// decideWrite returns what a put or a delete does, the nth write of its command. It reads the key's row only where the answer
// or the new row depends on it. Whether it did must not show in the answer: replicas differ in what they know to be absent.
func (m *kvMachine) decideWrite(op *WriteOp, g *Guard, n int, e Committed, gone *[]lapsed) (WriteReply, error) {
	x := g.of(n)
	asks := op.Delete || op.Condition.Kind != kv.ConditionNone
	var s storage.Strong
	var found bool
	if !x.Any || asks || op.Settled != nil || !m.state.CoversNothing(e.Group, op.Key) {
		var err error
		if s, found, err = m.state.Strong(e.Group, op.Key); err != nil {
			return WriteReply{}, err
		}
	}
	stamp := op.stampOf(&x, &s, e)
	op.stamp = stamp
	if !x.Any && (revisionOf(&s, found) != x.Revision || found && !stamp.After(s.Stamp)) && mutant.Planted != mutant.SettleWithoutRevision {
		return WriteReply{Overtaken: true}, nil
	}
	op.before, op.base, op.kept = max(s.Before, x.Before), x.Base, s.Expiry // kept is of use only where the key has to exist
	if mutant.Planted == mutant.CoveredForgottenEarly {
		op.before = e.Time
	}
	op.covered = cover(s.Covered, x.Covers, op.before)
	switch {
	case op.Settled != nil:
		op.covered, found = cover(op.covered, []causal.Dot{op.Settled.ID}, op.before), false
	case !asks:
		found = false
	case found && Expired(s, e.Time):
		*gone = append(*gone, lapsed{key: op.Key, state: s, noted: s.Expiry})
		found = false
	}
	reply := decide(op.Condition, s, found, &x, e)
	if reply.Applied {
		reply.Stamp = stamp
	}
	return reply, nil
}

// decide returns what a write guarded by the condition does to a key whose row is s. Versions beside it that were written eventually
// have no number: with any of them the key is at none, and without a value among them it is absent if the row is.
func decide(c kv.Condition, s storage.Strong, found bool, x *Expectation, e Committed) WriteReply {
	live := found && !s.Deleted && !x.Replaced
	present := uint64(0)
	if live {
		present = s.Revision
	}
	live = live || x.Live
	met := true
	switch c.Kind {
	case kv.ConditionVersion:
		met = present == c.Version && (!x.Beside || c.Version == 0 && !live)
	case kv.ConditionExists:
		met = live
	}
	if !met {
		return WriteReply{Found: live, Revision: present}
	}
	return WriteReply{Applied: true, Found: live, Revision: e.Pos.Index}
}
