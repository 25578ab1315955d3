package quorum

import (
	"errors"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// step is what a coordinator does next with a write.
type step uint8

const (
	// stepWait: nothing is decided yet.
	stepWait step = iota
	// stepApplied: W replicas hold the attempt durably, this one among them. Answer.
	stepApplied
	// stepRestamp: replicas refused the attempt. Stamp the write anew.
	stepRestamp
	// stepFail: W cannot be reached any more. Answer.
	stepFail
)

// String names the step.
func (s step) String() string {
	return [...]string{"wait", "applied", "restamp", "fail"}[s]
}

// writeVote decides over one write. It is pure: what happened goes in, what to do comes out.
type writeVote struct {
	self     kv.NodeID
	required int
	replicas int
	// attempt counts from 1; what is said about an earlier one is late and changes nothing.
	attempt int
	// votes are about the present attempt.
	votes Tracker
	// own says that this node's copy of the present attempt is durable, failed that it will not be. An answer needs it:
	// the sets that this node sends later cover the attempt's dot, so that a copy which only others have would be taken
	// for superseded after a crash.
	own, failed bool
	// refusals counts the replicas that refused the present attempt.
	refusals int
	// hints are the replicas for which another node has made a hint of the present attempt durable, in a sloppy write.
	// Invariant: such a hint counts towards W and never as the replica's own acknowledgement.
	hints []kv.NodeID
	// diverting counts the nodes that were asked to keep such a hint and have not answered.
	diverting int
	// above and base are what the refusals of all attempts named.
	above causal.Stamp
	base  causal.Position
	// heldBefore says that an earlier attempt may be held somewhere.
	heldBefore bool
	// cause is the last failure that was not a refusal; stale the newest epoch that a replica named.
	cause error
	stale *StaleEpochError
}

func newWriteVote(self kv.NodeID, required, replicas int) writeVote {
	if mutant.Planted == mutant.QuorumCountedEarly {
		required = max(1, required-1)
	}
	return writeVote{self: self, required: required, replicas: replicas}
}

// begin starts the next attempt.
func (v *writeVote) begin() {
	if v.attempt > 0 {
		v.heldBefore = v.heldBefore || v.mayBeHeld()
	}
	v.attempt++
	v.votes = NewTracker(v.required, v.replicas)
	v.own, v.failed, v.refusals = false, false, 0
	v.hints, v.diverting = nil, 0
}

// mayBeHeld reports whether anybody may come to hold the present attempt.
func (v *writeVote) mayBeHeld() bool { return v.votes.MayBeHeld() || len(v.hints)+v.diverting > 0 }

// diverted notes that another node is asked to keep a hint for a replica.
func (v *writeVote) diverted() { v.diverting++ }

// hinted notes what a node said that was asked to keep a hint for the replica.
func (v *writeVote) hinted(attempt int, replica kv.NodeID, durable bool) {
	if attempt != v.attempt {
		return
	}
	v.diverting--
	if durable {
		v.hints = append(v.hints, replica)
	}
}

// hintedAcks counts the replicas for which a hint stands in: those that have acknowledged since count for themselves.
func (v *writeVote) hintedAcks() (n int) {
	for _, replica := range v.hints {
		if v.votes.ballotOf(replica) != ballotAcked {
			n++
		}
	}
	return n
}

// acks counts all that stands for W.
func (v *writeVote) acks() int { return v.votes.Acked() + v.hintedAcks() }

// acked notes that the node holds the attempt durably.
func (v *writeVote) acked(attempt int, node kv.NodeID) {
	if attempt != v.attempt {
		return
	}
	v.votes.Ack(node)
	if node == v.self {
		v.own = true
	}
}

// stored notes that the node holds the attempt durably and, for the reason given, counts for nothing.
func (v *writeVote) stored(attempt int, node kv.NodeID, why error) {
	if attempt != v.attempt {
		return
	}
	v.votes.Fail(node, false)
	v.cause = clearest(v.cause, why)
	if node == v.self {
		v.own = true
	}
}

// refused notes that the node refused the attempt, and why.
func (v *writeVote) refused(attempt int, node kv.NodeID, r WriteReply) {
	if attempt != v.attempt {
		return
	}
	v.votes.Fail(node, true)
	v.refusals++
	if r.Highest.After(v.above) {
		v.above = r.Highest
	}
	if r.Base.Compare(v.base) > 0 {
		v.base = r.Base
	}
}

// failure notes that the node failed.
func (v *writeVote) failure(attempt int, node kv.NodeID, err error) {
	if attempt != v.attempt {
		return
	}
	if mutant.Planted == mutant.FailureCountedAsAck && node != v.self {
		v.votes.Ack(node)
		return
	}
	v.votes.Fail(node, refused(err))
	v.cause = clearest(v.cause, err)
	if stale, ok := errors.AsType[*StaleEpochError](err); ok && (v.stale == nil || stale.Epoch > v.stale.Epoch) {
		v.stale = stale
	}
	if node == v.self {
		v.failed = true
	}
}

// next decides. late says that the replicas which have not answered had their time to; without it a refusal waits for
// them, because an attempt that reaches W needs no other.
func (v *writeVote) next(late bool) step {
	acks, open := v.acks(), v.votes.Missing()+v.diverting
	switch met := acks >= v.required; {
	case v.failed:
		return stepFail
	case met && (v.own || mutant.Planted == mutant.OwnCopyIgnored):
		return stepApplied
	case met:
		return stepWait
	case acks+v.refusals+open < v.required:
		// Not even if all that refused took the next attempt.
		return stepFail
	case acks+open < v.required, late && v.refusals > 0:
		return stepRestamp
	default:
		return stepWait
	}
}

// outcome returns what may be said of the write: that nothing of it was applied only if no attempt can be held anywhere.
func (v *writeVote) outcome() kv.Outcome {
	switch {
	case v.next(false) == stepApplied:
		return kv.OutcomeApplied
	case v.heldBefore || v.attempt > 0 && v.mayBeHeld():
		return kv.OutcomeUnknown
	default:
		return kv.OutcomeNotApplied
	}
}
