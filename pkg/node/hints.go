package node

import (
	"context"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/quorum"
	"github.com/caprockdb/caprock/ring"
)

// composeHints makes the store of what other nodes could not take.
func (n *Node) composeHints(reg prometheus.Registerer) (err error) {
	n.hints, err = quorum.NewHints(n.cfg.Hints, quorum.HintDeps{
		Self: n.id.Node, State: n.engine.State(), Committer: spaceCommitter{n}, Clock: n.clock, Replicas: n.mux,
		Alive: n.alive, Target: n.standing, Shut: func(key []byte) bool { shut, _ := n.shut(key); return shut }, Name: n.NodeName, Logger: n.log, Registerer: reg,
	})
	return err
}

// standing returns the epoch of the map in force and what it says of the node.
func (n *Node) standing(p kv.PartitionID, id kv.NodeID) (kv.Epoch, quorum.Standing) {
	st := n.machine.State()
	_, member := st.Member(id)
	switch {
	case !st.Ready():
		return 0, quorum.StandingUnknown
	case st.Map.Owns(p, id):
		return st.Map.Epoch, quorum.StandingOwner
	case member:
		return st.Map.Epoch, quorum.StandingMoved
	default:
		return st.Map.Epoch, quorum.StandingLeft
	}
}

// takeHint keeps a write for another node, unless the two sides route by different maps or that node has no part in it.
func (n *Node) takeHint(w quorum.WriteRequest, reply func(quorum.WriteReply, error)) {
	epoch, standing := n.standing(w.Partition, w.HintFor)
	if epoch != w.Epoch || standing != quorum.StandingOwner {
		n.metrics.staleEpoch.Inc()
		reply(quorum.WriteReply{}, &quorum.StaleEpochError{Epoch: epoch})
		return
	}
	n.hints.Take(w, reply)
}

// memberIDs lists the nodes of the cluster.
func (n *Node) memberIDs() []kv.NodeID {
	st := n.machine.State()
	out := make([]kv.NodeID, len(st.Members))
	for i, m := range st.Members {
		out[i] = m.ID
	}
	return out
}

// ringOrder is the order in which the nodes are met going round the ring from each partition.
type ringOrder struct {
	mu      sync.Mutex // guards what follows
	members []meta.Member
	order   [][]kv.NodeID
}

// of returns the order for a partition. It is worked out anew when the members have changed.
func (r *ringOrder) of(st *meta.State, p kv.PartitionID) []kv.NodeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.members, st.Members) || len(r.order) != len(st.Map.Partitions) {
		nodes := make([]ring.Node, len(st.Members))
		for i, m := range st.Members {
			nodes[i] = ring.Node{ID: m.ID, Zone: m.Zone, DC: m.DC, Weight: 1}
		}
		cfg := ring.DefaultConfig()
		cfg.Partitions, cfg.Replicas = len(st.Map.Partitions), st.Map.Replicas
		order, err := ring.Walk(nodes, cfg)
		if err != nil {
			return nil // fewer members than replicas: then nobody is left to stand in
		}
		r.members, r.order = slices.Clone(st.Members), order
	}
	return r.order[p]
}

// forwardWrite hands an eventual write to the leader of its partition. An error before anything was sent says "not applied".
func (n *Node) forwardWrite(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error) {
	if r.Hops >= hopsMax {
		return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "the request was forwarded %d times already", r.Hops)
	}
	return n.forward(ctx, to, r)
}

// HintDocument is what this node keeps for another one, in GET /admin/status.
type HintDocument struct {
	Target string `json:"target"`
	Hints  int    `json:"hints"`
	Bytes  int64  `json:"bytes"`
	// Oldest is the age of the oldest hint in seconds.
	Oldest float64 `json:"oldest_seconds"`
}

func (n *Node) hintDocuments() []HintDocument {
	out := []HintDocument{}
	for _, st := range n.hints.Status() {
		out = append(out, HintDocument{Target: n.NodeName(st.Target), Hints: st.Hints, Bytes: st.Bytes, Oldest: st.Oldest.Seconds()})
	}
	return out
}
