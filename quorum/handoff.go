package quorum

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// handoff is what becomes of the present attempt's set for a replica that did not take it: another node keeps it (a sloppy
// write), or this one does. The zero value: nothing.
type handoff struct {
	replica kv.NodeID
	// to is kv.NoNode for this node's own hints.
	to      kv.NodeID
	attempt int
	set     causal.SiblingSet
	dot     causal.Dot
	until   callContext
}

// missed decides what becomes of the set for a replica that did not take the attempt. o.mu must be held.
func (o *writeOp) missed(attempt int, replica kv.NodeID) handoff {
	if attempt != o.vote.attempt || replica == o.c.deps.Self || o.vote.failed || o.set.IsZero() || slices.Contains(o.diverted, replica) {
		// What was sent earlier is superseded by the present attempt, which is on its way.
		return handoff{}
	}
	return o.turnTo(replica)
}

// spare has a sloppy write turn to another node in the place of a replica that has taken the attempt and does not count.
// o.mu must be held.
func (o *writeOp) spare(attempt int, replica kv.NodeID) handoff {
	if len(o.fallbacks) == o.fallen || o.answered {
		return handoff{} // it needs no hint
	}
	return o.missed(attempt, replica)
}

// turnTo returns who is to keep the set for the replica. o.mu must be held.
func (o *writeOp) turnTo(replica kv.NodeID) handoff {
	h := handoff{replica: replica, attempt: o.vote.attempt, set: o.set, dot: o.dot, until: o.until}
	if len(o.fallbacks) > o.fallen && !o.answered {
		h.to = o.fallbacks[o.fallen]
		o.fallen++
		o.vote.diverted()
		if !slices.Contains(o.diverted, replica) {
			o.diverted = append(o.diverted, replica)
		}
	}
	return h
}

// handOff does what missed decided. o.mu must not be held.
func (o *writeOp) handOff(h handoff) {
	switch {
	case h.replica == kv.NoNode:
	case h.to != kv.NoNode:
		o.divert(h)
	case o.c.deps.Hints != nil:
		o.c.deps.Hints.Keep(h.replica, o.call.Partition, o.call.Request.Key, h.set, h.dot)
		if mutant.Planted == mutant.HintCountedAsAck {
			o.mu.Lock()
			o.vote.diverted()
			o.vote.hinted(h.attempt, h.replica, true)
			o.mu.Unlock()
		}
	}
}

// divert asks another node to keep the set for the replica, once it is noted that this node did.
func (o *writeOp) divert(h handoff) {
	if o.c.deps.Hints == nil {
		o.divertNoted(h)
		return
	}
	o.c.deps.Hints.Ask(o.call.Partition, h.to, func(err error) {
		// The watermark asks those that were noted when this replica promised it.
		if err == nil && h.dot.Time <= o.c.deps.Store.deps.State.Repair(o.call.Partition).Promised {
			err = kv.Errorf(kv.CodeNotReady, "the attempt is from before what the replica has promised").WithOutcome(kv.OutcomeNotApplied)
		}
		if err != nil {
			o.kept(h, WriteReply{}, err)
			return
		}
		o.divertNoted(h)
	})
}

func (o *writeOp) divertNoted(h handoff) {
	if !o.c.calls.begin(h.to) {
		o.kept(h, WriteReply{}, o.c.errNotCalled(h.to))
		return
	}
	w := WriteRequest{
		Partition: o.call.Partition, Epoch: o.call.Epoch, Key: o.call.Request.Key, Set: h.set, New: h.dot, HintFor: h.replica,
	}
	o.c.deps.Replicas.Write(h.until, h.to, w, func(r WriteReply, err error) {
		o.c.calls.end(h.to)
		o.kept(h, r, err)
	})
}

// kept takes what a node said that was asked to keep a hint. If it does not, the next one is asked, and at last this node
// keeps it itself, where it counts for nothing.
func (o *writeOp) kept(h handoff, r WriteReply, err error) {
	o.mu.Lock()
	durable := err == nil && r.Accepted
	o.vote.hinted(h.attempt, h.replica, durable)
	var next handoff
	if !durable && h.attempt == o.vote.attempt && !o.vote.failed {
		next = o.turnTo(h.replica)
	}
	o.mu.Unlock()
	o.handOff(next)
	o.poke()
}

// divertLate has other nodes keep hints for the replicas that have not answered a sloppy write in time, or are believed dead.
func (o *writeOp) divertLate(nodes []kv.NodeID) {
	if len(o.fallbacks) == 0 {
		return
	}
	var all []handoff
	o.mu.Lock()
	for _, node := range nodes {
		if node != o.c.deps.Self && o.vote.votes.ballotOf(node) == ballotNone && !slices.Contains(o.diverted, node) && len(o.fallbacks) > o.fallen {
			all = append(all, o.turnTo(node))
		}
	}
	o.mu.Unlock()
	for _, h := range all {
		if h.to != kv.NoNode { // a replica that is merely late may still take it; its own hint waits for its failure
			o.handOff(h)
		}
	}
}

// poke wakes who waits for the vote.
func (o *writeOp) poke() {
	select {
	case o.wake <- struct{}{}:
	default: // it has not looked since the last signal
	}
}

// fallbacksOf returns the live nodes that a sloppy write may turn to.
func (c *Coordinator) fallbacksOf(call *Call) []kv.NodeID {
	if !call.Request.Sloppy || call.Fallbacks == nil {
		return nil
	}
	var out []kv.NodeID
	for _, id := range call.Fallbacks() {
		if id != c.deps.Self && !slices.Contains(call.Owners, id) && c.deps.Alive(id) {
			out = append(out, id)
		}
	}
	return out
}
