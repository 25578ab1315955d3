package consensus

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/caprockdb/caprock/pkg/kv"
)

// drain hands over every group that this node leads. done is closed when none is left.
type drain struct{ done chan struct{} }

// transfer starts to hand a group over. Raft gives up by itself after an election timeout.
func (l *loop) transfer(id kv.GroupID, to kv.NodeID) {
	g := l.groups[id]
	if g == nil || g.stopped != nil || !g.leads() || to == l.deps.Self {
		return
	}
	g.rn.TransferLeader(uint64(to))
	g.transferring = g.rn.BasicStatus().LeadTransferee != 0
	l.touch(g)
}

func (l *loop) startDrain(d *drain) { l.drains = append(l.drains, d) }

// stopDrain ends a drain, unless it has ended.
func (l *loop) stopDrain(d *drain) {
	if i := slices.Index(l.drains, d); i >= 0 {
		close(d.done)
		l.drains = slices.Delete(l.drains, i, i+1)
	}
}

// continueDrain starts the transfers that can be started, and ends all drains when nothing is led any more that another
// voter could lead.
func (l *loop) continueDrain() {
	led := false
	for _, g := range l.order {
		if g.stopped != nil || !g.leads() || len(g.conf.Voters) < 2 {
			continue
		}
		led = true
		if g.transferring {
			continue
		}
		if to, ok := l.successor(g); ok {
			l.transfer(g.id, to)
		}
	}
	if !led {
		for len(l.drains) > 0 {
			l.stopDrain(l.drains[0])
		}
	}
}

// successor returns the voter, other than this node, that may lead, has been heard of lately and holds most of the log.
func (l *loop) successor(g *group) (kv.NodeID, bool) {
	best, match, found := kv.NoNode, uint64(0), false
	g.rn.WithProgress(func(id uint64, kind raft.ProgressType, pr tracker.Progress) {
		if kind != raft.ProgressTypePeer || id == uint64(l.deps.Self) || !pr.RecentActive ||
			!l.mayLead(kv.NodeID(id)) || g.suspects[kv.NodeID(id)] {
			return
		}
		if !found || pr.Match > match || (pr.Match == match && kv.NodeID(id) < best) {
			best, match, found = kv.NodeID(id), pr.Match, true
		}
	})
	return best, found
}
