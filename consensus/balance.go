package consensus

import (
	"go.etcd.io/raft/v3/tracker"

	"github.com/caprockdb/caprock/pkg/kv"
)

// balanceLagMax is how many entries a follower may be behind and still be handed a group: it must have them all before it
// leads, and proposals wait meanwhile.
const balanceLagMax = 128

// homePausesMax bounds the doublings of the pause between two attempts to hand back a group.
const homePausesMax = 5

func (l *loop) mayLead(id kv.NodeID) bool { return l.deps.MayLead == nil || l.deps.MayLead(id) }

// balance hands one group back to the voter that placement put first, which is what spreads leaders evenly over nodes.
// After a restart a node leads nothing; this returns its groups one by one, each only to a replica that keeps up, and
// none that was handed to somebody a short while ago: a cluster in trouble must not pass leaders around.
func (l *loop) balance() {
	if len(l.drains) > 0 || l.ticks%uint64(l.cfg.BalanceTicks) != 0 {
		return
	}
	for _, g := range l.order {
		if l.goesHome(g) {
			// If it fails, others get their turn before it comes again: each attempt holds up the group's proposals.
			g.homeAt = l.ticks + uint64(l.cfg.BalanceCooldownTicks)<<min(g.homeTries, homePausesMax)
			g.homeTries++
			l.metrics.balanced.Inc()
			l.transfer(g.id, g.voters[0])
			return
		}
	}
}

// goesHome reports whether the group should be handed to its preferred voter now.
func (l *loop) goesHome(g *group) bool {
	if g.stopped != nil || g.quarantine != nil || !g.leads() || g.transferring || len(g.voters) == 0 || g.voters[0] == l.deps.Self ||
		l.ticks < g.homeAt || !l.mayLead(g.voters[0]) || g.suspects[g.voters[0]] {
		return false
	}
	home, last := g.voters[0], g.log.last.Index
	pr, found := g.rn.Status().Progress[uint64(home)]
	return found && home != kv.NoNode && pr.RecentActive && pr.State == tracker.StateReplicate &&
		pr.Match+balanceLagMax >= last
}
