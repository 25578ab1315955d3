package quorum

import "github.com/caprockdb/caprock/pkg/kv"

// readPlan decides whom a read asks, and when. It is pure.
//
// It asks r replicas first, in the order given, and all the others as soon as one of those fails or is late: a read is
// then as fast as the fastest r of n, at the price of n requests.
type readPlan struct {
	order []kv.NodeID
	// asked is how many of order have been asked.
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

// answered notes a replica's answer.
func (p *readPlan) answered(node kv.NodeID) Outcome { return p.votes.Ack(node) }

// failed notes a replica's failure. A read changes nothing, so that it does not matter what is known about it.
func (p *readPlan) failed(node kv.NodeID) Outcome { return p.votes.Fail(node, true) }

// rest returns whom to ask now that the replicas asked so far are late or have failed.
func (p *readPlan) rest() []kv.NodeID {
	if p.votes.Outcome() != Pending {
		return nil
	}
	more := p.order[p.asked:]
	p.asked = len(p.order)
	return more
}
