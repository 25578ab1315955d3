package storage

import (
	"encoding/binary"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// RepairState is what a replica has to remember of the repair of its part of the eventual lane.
type RepairState struct {
	// Promised is the time at or below which the replica takes no new attempt.
	Promised causal.HLC
	// Committed is the repair watermark: everything stamped at or below it was on every replica when it was set.
	// Invariant: Committed <= Promised.
	Committed causal.HLC
	// Healing says that rows were lost here, and may be missing until they were compared with the other replicas'. Meanwhile
	// the replica counts neither as an acknowledgement nor as an answer (package quorum). BeginHealing sets it, EndHealing
	// takes it back, and nothing else does.
	Healing bool
	// Quarantined says that the rows of the partition are being replaced by copies of those that can still be read.
	Quarantined bool
	// HintsAnywhere says that this disk does not know of all nodes that may keep hints of the partition: others asked them before
	// it kept the partition, or before anybody noted whom it asked.
	HintsAnywhere bool
}

const (
	repairHealing byte = 1 << iota
	repairQuarantined
	repairHintsAnywhere
	repairFlags = repairHealing | repairQuarantined | repairHintsAnywhere
)

func appendRepair(dst []byte, r RepairState) []byte {
	var flags byte
	if r.Healing {
		flags |= repairHealing
	}
	if r.Quarantined {
		flags |= repairQuarantined
	}
	if r.HintsAnywhere {
		flags |= repairHintsAnywhere
	}
	return causal.AppendHLC(causal.AppendHLC(append(dst, flags), r.Promised), r.Committed)
}

func decodeRepair(b []byte) (RepairState, error) {
	if len(b) == 0 {
		return RepairState{}, errCutShort
	}
	flags := b[0]
	if flags&^repairFlags != 0 {
		return RepairState{}, errFlags
	}
	r := RepairState{
		Healing: flags&repairHealing != 0, Quarantined: flags&repairQuarantined != 0,
		HintsAnywhere: flags&repairHintsAnywhere != 0,
	}
	var err error
	if r.Promised, b, err = causal.DecodeHLC(b[1:]); err != nil {
		return RepairState{}, err
	}
	if r.Committed, b, err = causal.DecodeHLC(b); err != nil {
		return RepairState{}, err
	}
	if len(b) > 0 {
		return RepairState{}, errLeftOver
	}
	return r, nil
}

// Repair returns the partition's repair state as it was last set. It is cheap.
func (s State) Repair(p kv.PartitionID) RepairState {
	if r := s.e.trees.of(p).repair.Load(); r != nil {
		return *r
	}
	return RepairState{}
}

// ChangeRepair changes the partition's repair state and returns once the change is durable. Whoever reads the state
// meanwhile may see the old or the new one. Changes of one partition wait for one another.
func (e *Engine) ChangeRepair(p kv.PartitionID, change func(*RepairState)) error {
	t := e.trees.of(p)
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	old := e.State().Repair(p)
	r := old
	change(&r)
	if r == old {
		return nil
	}
	invariant.Check(r.Committed <= r.Promised, "partition %d: watermark %d above the promise %d", p, r.Committed, r.Promised)
	if r.Quarantined {
		e.recent.forget(p)
	}
	if r.Promised > old.Promised || r.Healing {
		// What makes the replica refuse more holds from now on, and on the disk before anybody is told.
		stricter := old
		stricter.Promised, stricter.Healing = max(old.Promised, r.Promised), old.Healing || r.Healing
		stricter.Quarantined = old.Quarantined || r.Quarantined
		t.repair.Store(&stricter)
	}
	return e.writeRepair(t, r)
}

// BeginHealing notes durably that rows of the partition were lost. Whatever was compared before says nothing any more.
func (e *Engine) BeginHealing(p kv.PartitionID) error {
	return e.ChangeRepair(p, func(r *RepairState) {
		e.trees.of(p).losses.Add(1)
		e.recent.forget(p) // what is kept in memory must not hide what the disk has lost
		r.Healing = true
	})
}

// Losses counts how often rows of the partition were found lost since the engine was opened. What a comparison of replicas
// shows is worth something only if the number is the same after it as before.
func (e *Engine) Losses(p kv.PartitionID) uint64 { return e.trees.of(p).losses.Load() }

// EndHealing notes durably that the partition has got back what it lost, unless more was lost since Losses returned the
// number, or its rows are being replaced. It reports whether it did.
func (e *Engine) EndHealing(p kv.PartitionID, losses uint64) (bool, error) {
	same := false
	err := e.ChangeRepair(p, func(r *RepairState) {
		if same = e.trees.of(p).losses.Load() == losses && !r.Quarantined; same {
			r.Healing = false
		}
	})
	return same && err == nil, err
}

// Healing reports whether the replica's rows of the partition may lack some that it has acknowledged. It is cheap.
func (e *Engine) Healing(p kv.PartitionID) bool { return e.State().Healing(p) }

// Healing is Engine.Healing.
func (s State) Healing(p kv.PartitionID) bool {
	r := s.e.trees.of(p).repair.Load()
	return r != nil && (r.Healing || r.Quarantined)
}

// keeperRow is the name of the node row that says that this disk has kept a partition's part of the eventual lane.
func keeperRow(p kv.PartitionID) string {
	return string(binary.BigEndian.AppendUint16([]byte("keeps/"), uint16(p)))
}

// KeepSiblings is called before a node serves a partition. The disk then remembers it in two places: beside the rows of E, and
// among the node's own. Where only the second is left, the rows were taken away underneath, with everything that tells of
// them, and the partition heals. empty says that no replica of the partition can hold anything yet; a disk that is to keep
// a partition which others have had before begins by healing as well.
func (e *Engine) KeepSiblings(p kv.PartitionID, empty bool) error {
	_, kept, err := e.NodeRow(keeperRow(p))
	if err != nil {
		return err
	}
	t := e.trees.of(p)
	beside := t.repair.Load() != nil
	if err := e.keepBeside(t, RepairState{Healing: kept || !empty}); err != nil || kept {
		return err
	}
	if beside || !empty {
		if err := e.ChangeRepair(p, func(r *RepairState) { r.HintsAnywhere = true }); err != nil {
			return err
		}
	}
	// Last, so that a crash in between leaves a disk that has kept nothing yet.
	b := e.NewBatch()
	defer b.Close()
	b.SetNodeRow(keeperRow(p), nil)
	return e.ApplySync(b)
}

// keepBeside writes the repair state of a partition that has none.
func (e *Engine) keepBeside(t *tree, r RepairState) error {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	if t.repair.Load() != nil {
		return nil
	}
	if r.Healing {
		t.losses.Add(1)
		t.repair.Store(&r)
	}
	return e.writeRepair(t, r)
}

// writeRepair makes the repair state durable, and then known. The turn must be held.
func (e *Engine) writeRepair(t *tree, r RepairState) error {
	b := e.NewBatch()
	defer b.Close()
	b.key = appendTreeRow(b.key[:0], t.partition, treeRepair)
	b.head = appendRepair(b.head[:0], r)
	b.put(formatRepair, b.head, nil)
	if err := e.ApplySync(b); err != nil {
		return err
	}
	t.repair.Store(&r)
	return nil
}
