package quorum

import (
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Outcome is where a vote stands.
type Outcome uint8

// The outcomes of a vote.
const (
	// Pending: the votes still missing can decide either way.
	Pending Outcome = iota
	// Met: enough replicas acknowledged. A vote that was met stays met.
	Met
	// Unreachable: even if every missing vote were an acknowledgement it would not be enough.
	Unreachable
)

// String names the outcome.
func (o Outcome) String() string {
	switch o {
	case Pending:
		return "pending"
	case Met:
		return "met"
	case Unreachable:
		return "unreachable"
	default:
		return "invalid"
	}
}

// ballot is what one replica said.
type ballot uint8

const (
	ballotNone ballot = iota
	// ballotRefused: the replica holds nothing of the request and never will.
	ballotRefused
	// ballotUnknown: the replica failed and may hold it.
	ballotUnknown
	ballotAcked
)

// votersInline is the number of voters that a tracker keeps without allocating: more than the usual replicas.
const votersInline = 7

// Tracker counts the votes of replicas about one request. It is pure: it sends nothing and knows no time. The zero
// Tracker is not usable.
type Tracker struct {
	needed, total int
	acked         int
	refused       int
	unknown       int
	inline        [votersInline]vote
	more          []vote
	voters        int
}

type vote struct {
	node   kv.NodeID
	ballot ballot
}

// NewTracker returns a tracker of a vote that is met at needed acknowledgements out of total voters.
// Invariant: 1 <= needed <= total.
func NewTracker(needed, total int) Tracker {
	invariant.Check(needed >= 1 && needed <= total, "needed %d of %d votes", needed, total)
	return Tracker{needed: needed, total: total}
}

// Ack counts the node's acknowledgement. It may correct an unknown failure of the same node; anything else said twice
// is ignored.
func (t *Tracker) Ack(node kv.NodeID) Outcome { return t.cast(node, ballotAcked) }

// Fail counts the node's failure. definite says that the node holds nothing of the request and never will: it refused,
// or nothing was sent.
func (t *Tracker) Fail(node kv.NodeID, definite bool) Outcome {
	if definite {
		return t.cast(node, ballotRefused)
	}
	return t.cast(node, ballotUnknown)
}

func (t *Tracker) cast(node kv.NodeID, b ballot) Outcome {
	v := t.find(node)
	switch {
	case v.ballot == ballotNone:
	case v.ballot == ballotUnknown && b == ballotAcked:
		t.unknown--
	default:
		return t.Outcome()
	}
	v.ballot = b
	switch b {
	case ballotAcked:
		t.acked++
	case ballotUnknown:
		t.unknown++
	case ballotRefused:
		t.refused++
	case ballotNone:
	}
	return t.Outcome()
}

// find returns the node's vote, a new one if it has not voted. Voters are few, so that walking beats a map.
func (t *Tracker) find(node kv.NodeID) *vote {
	for i := range t.voters {
		if v := t.at(i); v.node == node {
			return v
		}
	}
	invariant.Check(t.voters < t.total, "node %d is one voter too many of %d", node, t.total)
	if t.voters >= votersInline {
		t.more = append(t.more, vote{})
	}
	v := t.at(t.voters)
	v.node = node
	t.voters++
	return v
}

func (t *Tracker) at(i int) *vote {
	if i < votersInline {
		return &t.inline[i]
	}
	return &t.more[i-votersInline]
}

// ballotOf returns what the node said, ballotNone for one that has not voted.
func (t *Tracker) ballotOf(node kv.NodeID) ballot {
	for i := range t.voters {
		if v := t.at(i); v.node == node {
			return v.ballot
		}
	}
	return ballotNone
}

// Outcome returns where the vote stands.
func (t *Tracker) Outcome() Outcome {
	switch {
	case t.acked >= t.needed:
		return Met
	case t.acked+t.Missing() < t.needed:
		return Unreachable
	default:
		return Pending
	}
}

// Acked returns the number of acknowledgements.
func (t *Tracker) Acked() int { return t.acked }

// Missing returns the number of voters that have not voted.
func (t *Tracker) Missing() int { return t.total - t.acked - t.refused - t.unknown }

// Voted returns the number of voters that have voted.
func (t *Tracker) Voted() int { return t.total - t.Missing() }

// MayBeHeld reports whether anybody holds, or may yet come to hold, something of the request: somebody acknowledged it,
// failed in a way that proves nothing, or has not answered.
func (t *Tracker) MayBeHeld() bool { return t.refused < t.total }

// AckedNodes appends the nodes that acknowledged, in the order in which they first voted.
func (t *Tracker) AckedNodes(dst []kv.NodeID) []kv.NodeID {
	for i := range t.voters {
		if v := t.at(i); v.ballot == ballotAcked {
			dst = append(dst, v.node)
		}
	}
	return dst
}
