package consensus

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Recall returns what the partition's group answered to the operation, and false when it does not know it: it was not
// applied so far, or so long ago that it was forgotten. The answer reflects everything that was committed when Recall was
// called. It works on the leader only.
func (s *Store) Recall(ctx context.Context, p kv.PartitionID, id kv.OpID) (WriteReply, bool, error) {
	if err := s.ReadBarrier(ctx, p.Group()); err != nil {
		return WriteReply{}, false, err
	}
	return recall(s.deps.Engine.State(), p.Group(), id)
}

// recall looks an operation up under the eras that are kept.
func recall(state storage.State, g kv.GroupID, id kv.OpID) (WriteReply, bool, error) {
	row, found, err := state.Dedup(g, []byte{dedupEra})
	if err != nil || !found {
		return WriteReply{}, false, err
	}
	if len(row) != 8 {
		return WriteReply{}, false, fmt.Errorf("%w: era row of group %d", ErrUnreadable, g)
	}
	session, err := readSession(state, g, id.Session, binary.BigEndian.Uint64(row))
	if err != nil {
		return WriteReply{}, false, err
	}
	i, found := session.search(id.Sequence)
	if !found {
		return WriteReply{}, false, nil
	}
	reply, err := decodeReply(session.records[i].reply)
	return reply, err == nil, err
}
