package node

import (
	"context"
	"encoding/json"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/transport"
	"github.com/caprockdb/caprock/quorum"
)

// First bytes of what peers send about group 0.
const (
	metaCommand = 'c'
	metaProbe   = 'p'
	metaPing    = 'a'
	metaLanes   = 'l'
)

// handler serves peers: it is the node's face towards the transport. Raft frames go straight to the store loop's inbox;
// everything that may wait for the disk leaves the stream's goroutine, so that one slow read does not hold up a
// heartbeat behind it.
type handler struct{ n *Node }

// spawn runs f and lets a stop wait for it. Once the node has stopped f is not run, and nobody is left to be answered: the
// links to the peers are closed.
func (h handler) spawn(f func()) { h.n.spawn(f) }

// spawn is handler.spawn. It returns false when f is not run.
func (n *Node) spawn(f func()) bool {
	if !n.gate.enter() {
		return false
	}
	n.workers.run(func() {
		defer n.gate.leave()
		f()
	})
	return true
}

// serve runs f here and now when it need not wait for the disk: handing it to another goroutine would cost more than it does.
func (h handler) serve(atHand bool, f func()) {
	if !atHand {
		h.spawn(f)
		return
	}
	if h.n.gate.enter() {
		defer h.n.gate.leave()
		f()
	}
}

// HandleRaft implements transport.Handler.
func (h handler) HandleRaft(from kv.NodeID, frame []byte) {
	if err := h.n.strong.Receive(from, frame); err != nil {
		h.n.log.Warn("a raft frame could not be read", "from", h.n.NodeName(from), "error", err)
	}
}

// checkEpoch refuses a peer's request unless both sides route by the same map and this node owns the partition by it.
func (n *Node) checkEpoch(p kv.PartitionID, epoch kv.Epoch) error {
	m := &n.machine.State().Map
	if epoch != m.Epoch || !m.Owns(p, n.id.Node) {
		n.metrics.staleEpoch.Inc()
		return &quorum.StaleEpochError{Epoch: m.Epoch}
	}
	return nil
}

// HandleWrite implements transport.Handler.
func (h handler) HandleWrite(_ kv.NodeID, w quorum.WriteRequest, reply func(quorum.WriteReply, error)) {
	if w.HintFor != kv.NoNode {
		h.spawn(func() { h.n.takeHint(w, reply) })
		return
	}
	if err := h.n.checkEpoch(w.Partition, w.Epoch); err != nil {
		reply(quorum.WriteReply{}, err)
		return
	}
	h.serve(h.n.eventual.AtHand(w.Partition, w.Key), func() { h.n.eventual.Write(w, reply) })
}

// HandleRead implements transport.Handler.
func (h handler) HandleRead(_ kv.NodeID, r quorum.ReadRequest, reply func(quorum.ReadReply, error)) {
	if err := h.n.checkEpoch(r.Partition, r.Epoch); err != nil {
		reply(quorum.ReadReply{}, err)
		return
	}
	if r.Peek { // it may wait for the clock to pass what it promises
		h.spawn(func() { reply(h.n.eventual.Peek(r)) })
		return
	}
	h.serve(h.n.eventual.AtHand(r.Partition, r.Key), func() { reply(h.n.eventual.Read(r)) })
}

// HandleWrites implements transport.Handler.
func (h handler) HandleWrites(_ kv.NodeID, ws []quorum.WriteRequest, reply func([]quorum.WriteResult)) {
	h.spawn(func() {
		owned, results := ws[:0:0], make([]quorum.WriteResult, len(ws))
		places := make([]int, 0, len(ws))
		for i := range ws {
			if results[i].Err = h.n.checkEpoch(ws[i].Partition, ws[i].Epoch); results[i].Err == nil {
				owned, places = append(owned, ws[i]), append(places, i)
			}
		}
		h.n.eventual.WriteEach(owned, func(some []quorum.WriteResult) {
			for i, at := range places {
				results[at] = some[i]
			}
			reply(results)
		})
	})
}

// HandleReads implements transport.Handler.
func (h handler) HandleReads(_ kv.NodeID, rs []quorum.ReadRequest, reply func([]quorum.ReadResult)) {
	h.spawn(func() {
		results := make([]quorum.ReadResult, len(rs))
		for i := range rs {
			if results[i].Err = h.n.checkEpoch(rs[i].Partition, rs[i].Epoch); results[i].Err == nil {
				results[i].Reply, results[i].Err = h.n.eventual.Read(rs[i])
			}
		}
		reply(results)
	})
}

// HandleForwards implements transport.Handler.
func (h handler) HandleForwards(_ kv.NodeID, rs []kv.Request, deadline time.Time, reply func([]kv.Answer)) {
	if h.n.draining.Load() {
		h.n.forwardedAt.Store(time.Now().UnixNano())
	}
	h.spawn(func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		reply(h.n.ExecuteEach(ctx, rs))
	})
}

// HandleScan implements transport.Handler.
func (h handler) HandleScan(_ kv.NodeID, r quorum.ScanRequest, reply func(quorum.ScanReply, error)) {
	if err := h.n.checkEpoch(r.Partition, r.Epoch); err != nil {
		reply(quorum.ScanReply{}, err)
		return
	}
	h.spawn(func() { reply(h.n.eventual.Scan(r)) })
}

// HandleForward implements transport.Handler. Admission was passed where the user's request came in, but this node has
// its own budget too.
func (h handler) HandleForward(_ kv.NodeID, r kv.Request, deadline time.Time, reply func(kv.Response, error)) {
	if h.n.draining.Load() {
		h.n.forwardedAt.Store(time.Now().UnixNano())
	}
	h.spawn(func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		reply(h.n.Execute(ctx, &r))
	})
}

// HandleExchange implements transport.Handler.
func (h handler) HandleExchange(from kv.NodeID, payload []byte, reply func([]byte, error)) {
	h.spawn(func() {
		ctx, cancel := context.WithTimeout(context.Background(), h.n.cfg.AntiEntropy.Timeout)
		defer cancel()
		reply(h.n.exchange.Handle(ctx, from, payload))
	})
}

// HandlePull serves a part of a snapshot.
func (h handler) HandlePull(from kv.NodeID, payload []byte, reply func([]byte, error)) {
	h.spawn(func() {
		ctx, cancel := context.WithTimeout(h.n.gate.closing, h.n.cfg.Consensus.SnapshotPullTimeout)
		defer cancel()
		reply(h.n.strong.ServePull(ctx, from, payload))
	})
}

// HandleMeta implements transport.Handler.
func (h handler) HandleMeta(_ kv.NodeID, payload []byte, reply func([]byte, error)) {
	if len(payload) == 0 {
		reply(nil, kv.Errorf(kv.CodeBadRequest, "empty metadata request"))
		return
	}
	body := payload[1:]
	switch payload[0] {
	case metaPing:
		reply(nil, nil) // it is enough to be there
	case metaProbe:
		reply(h.n.answerProbe(body))
	case metaCommand:
		if !h.n.bootstrapped.Load() {
			reply(nil, kv.Errorf(kv.CodeNotReady, "node %s has not opened group 0 yet", h.n.cfg.Name))
			return
		}
		h.spawn(func() {
			ctx, cancel := context.WithTimeout(context.Background(), h.n.cfg.Meta.ProposeTimeout)
			defer cancel()
			reply(h.n.metadata.Handle(ctx, body))
		})
	case metaLanes:
		h.spawn(func() {
			ctx, cancel := context.WithTimeout(h.n.gate.closing, sweepTimeout)
			defer cancel()
			reply(h.n.handleLanes(ctx, body))
		})
	default:
		reply(nil, kv.Errorf(kv.CodeBadRequest, "unknown metadata request %d", payload[0]))
	}
}

func (n *Node) answerProbe(body []byte) ([]byte, error) {
	var p meta.Probe
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, kv.Errorf(kv.CodeBadRequest, "unreadable probe: %w", err)
	}
	return json.Marshal(meta.AnswerProbe(n.machine.State(), n.id.Genesis, p))
}

// metaForwarder sends commands for group 0 to its leader.
type metaForwarder struct{ mux *transport.Mux }

// Meta implements meta.Forwarder.
func (f metaForwarder) Meta(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	return f.mux.Meta(ctx, to, append([]byte{metaCommand}, payload...))
}
