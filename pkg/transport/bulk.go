package transport

import (
	"context"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The data of snapshots, of anti-entropy's exchanges, and hints that are handed over have links of their own: a second peer for
// each node, with its own outbox, connection and ids, which is made when the first of it is asked for. On the link of everything else a chunk of a megabyte would stand in
// front of heartbeats, and what the receiver's window holds of it would hold up what comes behind. Frames of either kind
// may arrive by any link; their kind says which peer they belong to.

// Pull asks the peer for a part of a snapshot and waits for the answer, which is the caller's to keep.
func (m *Mux) Pull(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	if to == m.self {
		return wait(ctx, m.deadline(ctx, time.Now()), false, func(reply func([]byte, error)) { m.handlePull(to, payload, reply) })
	}
	return m.await(ctx, to, kindPull, false, func(dst []byte) []byte { return append(dst, payload...) })
}

func (m *Mux) handlePull(from kv.NodeID, payload []byte, reply func([]byte, error)) {
	if m.pull == nil {
		reply(nil, kv.Errorf(kv.CodeNotReady, "this node serves no snapshots"))
		return
	}
	m.pull(from, payload, reply)
}
