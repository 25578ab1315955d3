package consensus

import (
	"context"

	"github.com/caprockdb/caprock/pkg/kv"
)

// What tests ask of a Store, beside what the product does.

// Put is Write of a value.
func (s *Store) Put(ctx context.Context, p kv.PartitionID, w WriteOp) (WriteReply, error) {
	w.Delete = false
	return s.Write(ctx, p, w)
}

// Delete is Write of a tombstone.
func (s *Store) Delete(ctx context.Context, p kv.PartitionID, w WriteOp) (WriteReply, error) {
	w.Delete, w.Value = true, nil
	return s.Write(ctx, p, w)
}

// TransferLeader asks this node, if it leads the group, to hand it over to the voter. Proposals wait meanwhile.
func (s *Store) TransferLeader(g kv.GroupID, to kv.NodeID) {
	s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) { l.transfer(g, to) })
		return true
	})
}
