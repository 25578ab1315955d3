package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// How a node takes part in switching the lanes of a prefix (ADR 0014): what it lets in by the fences of group 0 as far as it has applied
// them, and when it may say so. laneDriver decides what happens next.

const (
	// laneRowAcknowledged is the row that makes an acknowledged epoch, and all of group 0 before it, durable.
	laneRowAcknowledged = "lanes-acknowledged"
	// laneHintsMax bounds the hints of a prefix that are counted, lanePause how often, laneShare the part of the time it may take.
	laneHintsMax = 10_000
	lanePause    = 250 * time.Millisecond
	laneShare    = 10
)

// lanes is what a node remembers of the switches.
type lanes struct {
	// acknowledged is the policy epoch that is durable here, and by which alone anything that is under way was let in.
	acknowledged atomic.Uint64
	driver       *laneDriver

	mu sync.Mutex // guards what follows
	// hints are the hints kept of each prefix that is being drained, counted for the epoch; not again before again.
	hints map[string]int
	epoch uint64
	again time.Time
}

// shut is quorum.StoreDeps.Shut.
func (n *Node) shut(key []byte) (attempts, repairs bool) {
	st := n.machine.State()
	if len(st.Fences) == 0 {
		return false, false
	}
	mode := st.FenceOf(key).Mode
	return mode != meta.FenceOpen, mode == meta.FenceClosed
}

// closedAt returns the epoch from which on the key has no eventual versions, 0 if it may have.
//
// A strong operation may do without asking for them only if this is the same before the read round that it relies on begins, and after
// it has returned. Before: all that was ever accepted is in the log before the round. After: nothing was accepted meanwhile, since
// that needs this node to have said that it asks again.
func (n *Node) closedAt(key []byte) uint64 {
	st := n.machine.State()
	if len(st.Fences) == 0 {
		return 0
	}
	f := st.FenceOf(key)
	if f.Mode == meta.FenceClosed || mutant.Planted == mutant.PeekSkippedEarly && f.Mode == meta.FenceDraining {
		return f.Epoch
	}
	return 0
}

// admitKey refuses an operation on a key that the policy, or a switch that is under way, does not allow. Meanwhile strong operations go
// on, and so do reads of every level: what they read is there in either lane. Eventual writes wait for the end.
func admitKey(st *meta.State, p *kv.Policy, key []byte, r *kv.Request) error {
	if len(st.Fences) == 0 {
		return p.Admit(r.Level)
	}
	f := st.FenceOf(key)
	switch {
	case !f.Mode.Passing():
		return p.Admit(r.Level)
	case r.Level != kv.LevelStrong && r.Op.IsWrite():
		return kv.Errorf(kv.CodeLevelFenced, "the lanes of the prefix %q are being switched (%s): level %s may not write yet", f.Prefix, f.Mode, r.Level)
	}
	return nil
}

// laneAsk is a question about switches, laneReply the answer; which fields count goes by Kind.
type laneAsk struct {
	Kind      string         `json:"kind"`
	Fence     meta.Fence     `json:"fence"`
	Partition kv.PartitionID `json:"partition"`
	After     []byte         `json:"after,omitempty"`
}

// The kinds of laneAsk.
const (
	laneAcknowledge = "acknowledge"
	laneUnsettled   = "unsettled"
	laneSweep       = "sweep"
	laneProgress    = "progress"
)

type laneReply struct {
	Epoch   uint64         `json:"epoch,omitempty"`
	Reading causal.HLC     `json:"reading,omitempty"`
	Hints   map[string]int `json:"hints,omitempty"`

	Keys [][]byte `json:"keys,omitempty"`
	Last []byte   `json:"last,omitempty"`
	More bool     `json:"more,omitempty"`

	Found       int    `json:"found,omitempty"`
	Settled     int    `json:"settled,omitempty"`
	Conflicts   int    `json:"conflicts,omitempty"`
	ConflictKey []byte `json:"conflict_key,omitempty"`

	Progress []kv.LaneSwitch `json:"progress,omitempty"`
}

// handleLanes answers a peer, or this node itself.
func (n *Node) handleLanes(ctx context.Context, body []byte) ([]byte, error) {
	var ask laneAsk
	if err := json.Unmarshal(body, &ask); err != nil {
		return nil, kv.Errorf(kv.CodeBadRequest, "unreadable question about lanes: %w", err)
	}
	var reply laneReply
	var err error
	switch ask.Kind {
	case laneAcknowledge:
		reply, err = n.acknowledgeLanes(ctx)
	case laneUnsettled:
		reply, err = n.unsettledKeys(&ask)
	case laneSweep:
		reply, err = n.sweepHere(ctx, &ask)
	case laneProgress:
		if n.strong.Leader(kv.MetaGroup) != n.id.Node {
			return nil, kv.Errorf(kv.CodeNoLeader, "node %s does not lead group 0", n.cfg.Name)
		}
		reply.Progress = n.lanes.driver.report()
	default:
		err = kv.Errorf(kv.CodeBadRequest, "unknown question about lanes %q", ask.Kind)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(reply)
}

// askLanes asks another node, or this one.
func (n *Node) askLanes(ctx context.Context, to kv.NodeID, ask laneAsk) (reply laneReply, err error) {
	raw, err := json.Marshal(ask)
	if err != nil {
		return reply, fmt.Errorf("encode a question about lanes: %w", err)
	}
	out, err := n.mux.Meta(ctx, to, append([]byte{metaLanes}, raw...))
	if err == nil {
		err = json.Unmarshal(out, &reply)
	}
	return reply, err
}

// acknowledgeLanes says by which epoch at the least this node acts, whatever becomes of its power: group 0 is durable up to there, what
// was let in by older ones is durable too, and nothing else will be. The reading is later than all that strong operations took
// which relied on an older one.
func (n *Node) acknowledgeLanes(ctx context.Context) (laneReply, error) {
	st := n.machine.State()
	if n.lanes.acknowledged.Load() < st.PolicyEpoch {
		// The state is in memory before it is in a batch. What the loop commits from here on comes after that batch.
		err := wait(ctx, func(done func(error)) {
			row := fmt.Appendf(nil, "%d", st.PolicyEpoch)
			if err := n.strong.Commit(func(b *storage.Batch) { b.SetNodeRow(laneRowAcknowledged, row) }, done); err != nil {
				done(err)
			}
		})
		if err != nil {
			return laneReply{}, err
		}
		for _, o := range n.ownedPartitions() {
			if err := n.eventual.Flush(ctx, o.Partition); err != nil {
				return laneReply{}, err
			}
		}
		for old := n.lanes.acknowledged.Load(); old < st.PolicyEpoch; old = n.lanes.acknowledged.Load() {
			n.lanes.acknowledged.CompareAndSwap(old, st.PolicyEpoch)
		}
	}
	reading, err := n.clock.Now()
	if err != nil {
		return laneReply{}, kv.Errorf(kv.CodeNotReady, "the clock cannot be read: %w", err)
	}
	hints, err := n.drainingHints(st)
	// Not what another question may have had acknowledged meanwhile: the hints were counted by this state.
	return laneReply{Epoch: st.PolicyEpoch, Reading: reading, Hints: hints}, err
}

// drainingHints counts the hints of the prefixes that are being drained, now and then.
func (n *Node) drainingHints(st *meta.State) (map[string]int, error) {
	l := &n.lanes
	l.mu.Lock()
	if l.epoch == st.PolicyEpoch && time.Now().Before(l.again) {
		defer l.mu.Unlock()
		return l.hints, nil
	}
	l.mu.Unlock()
	began, counts := time.Now(), map[string]int{}
	for _, f := range st.Passing() {
		if f.Mode != meta.FenceDraining {
			continue
		}
		count, err := n.hints.Count(func(key []byte) bool { return sameFence(st, key, &f) }, laneHintsMax)
		if err != nil {
			return nil, err
		}
		counts[string(f.Prefix)] = count
	}
	l.mu.Lock()
	l.hints, l.epoch, l.again = counts, st.PolicyEpoch, time.Now().Add(max(lanePause, laneShare*time.Since(began)))
	l.mu.Unlock()
	return counts, nil
}

// sameFence reports whether the key stands by the fence.
func sameFence(st *meta.State, key []byte, f *meta.Fence) bool {
	g := st.FenceOf(key)
	return g.Epoch == f.Epoch && string(g.Prefix) == string(f.Prefix)
}

var errOtherFence = errors.New("the switch that this is about is over, or has not begun here")

// fenceIs refuses what is asked about a switch that is not the one in force here.
func (n *Node) fenceIs(f *meta.Fence) (*meta.State, error) {
	st := n.machine.State()
	if !sameFence(st, f.Prefix, f) {
		return nil, kv.Errorf(kv.CodeNotReady, "%w", errOtherFence)
	}
	return st, nil
}
