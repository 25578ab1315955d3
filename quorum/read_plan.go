package quorum

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// readPlan decides whom a read asks, and when. It is pure.
//
// It asks r replicas first, in the order given, and all the others as soon as one of those fails or is late: a read is
// then as fast as the fastest r of n, at the price of n requests.
//
// A sampled read asks everybody at once, but those beyond the first r only look on: unless one of the r fails or is late
// they do not count, or the sample would show reads fresher than they are.
type readPlan struct {
	order []kv.NodeID
	// asked is how many of order count.
	asked int
	votes Tracker
}

func newReadPlan(order []kv.NodeID, r int) readPlan {
	return readPlan{order: order, votes: NewTracker(r, len(order))}
}

// start returns whom to ask first.
func (p *readPlan) start(r int) []kv.NodeID {
	p.asked = r
	return p.order[:r]
}

// counts reports whether the node's answer counts already.
func (p *readPlan) counts(node kv.NodeID) bool { return slices.Contains(p.order[:p.asked], node) }

// answered notes a replica's answer.
func (p *readPlan) answered(node kv.NodeID) Outcome { return p.votes.Ack(node) }

// failed notes a replica's failure. A read changes nothing, so that it does not matter what is known about it.
func (p *readPlan) failed(node kv.NodeID) Outcome { return p.votes.Fail(node, true) }

// rest returns who counts from now on as well, because the replicas that did so far are late or have failed.
func (p *readPlan) rest() []kv.NodeID {
	if p.votes.Outcome() != Pending {
		return nil
	}
	more := p.order[p.asked:]
	p.asked = len(p.order)
	return more
}
