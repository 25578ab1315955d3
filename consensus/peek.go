package consensus

import (
	"encoding/binary"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// A strong operation has to know what eventual versions a majority holds that the log does not know of yet (design.md §8,
// Peek). Most often there are none in the whole partition, and then the heartbeats that confirm the leadership for a read
// round say so at no cost: whoever answers one adds whether it holds such versions, up to where it has applied the log, and,
// where the round asks for it, promises to take no more eventual writes with clock readings up to the round's.
//
// A replica's answer counts for every round that was issued before the heartbeat was sent, as every reader of those had begun.

// Peeked is what a read barrier learnt beside the order of the log.
type Peeked struct {
	// Clean says that a majority held no eventual version in the partition that its state does not cover, at some moment after
	// the barrier began. The state, once the barrier returns, then is all there is.
	Clean bool
	// Promised, which is zero unless it was asked for and Clean is set, is the clock reading up to which that majority takes no
	// more eventual writes.
	Promised causal.HLC
}

// peekRoundsMax bounds the rounds of a group that wait for answers. Beyond it the oldest are answered as not clean.
const peekRoundsMax = 256

// peekRound collects the answers to a round.
type peekRound struct {
	context []byte
	clean   []uint64 // the voters that hold nothing
	need    uint64   // the highest index that any of them has applied
}

// Flag of an answer in a message's reject hint, which has no other use there.
const peekClean uint64 = 1

// openPeek begins to collect answers for a round.
func (g *group) openPeek(context []byte) {
	if len(g.peeks) >= peekRoundsMax {
		g.peeks = slices.Delete(g.peeks, 0, 1)
	}
	g.peeks = append(g.peeks, &peekRound{context: context})
}

// notePeek takes a voter's answer to the round with the context, and to those before it.
func (g *group) notePeek(context []byte, from, need uint64) {
	at := slices.IndexFunc(g.peeks, func(r *peekRound) bool { return string(r.context) == string(context) })
	for _, r := range g.peeks[:at+1] {
		if !slices.Contains(r.clean, from) {
			r.clean = append(r.clean, from)
		}
		r.need = max(r.need, need)
	}
}

// closePeek ends a round: whether a majority of the voters, of both halves when joint, holds nothing, and how far the log must
// be applied for its state to be all there is. This node's own answer is given now.
func (l *loop) closePeek(g *group, context []byte) (clean bool, need uint64) {
	at := slices.IndexFunc(g.peeks, func(r *peekRound) bool { return string(r.context) == string(context) })
	if at < 0 {
		return false, 0
	}
	r := g.peeks[at]
	g.peeks = slices.Delete(g.peeks, at, at+1)
	if own, none := l.answerPeek(g, contextPromise(context)); none {
		r.clean = append(r.clean, uint64(l.deps.Self))
		r.need = max(r.need, own)
	}
	in := func(voters []uint64) bool {
		n := 0
		for _, v := range voters {
			if slices.Contains(r.clean, v) {
				n++
			}
		}
		if mutant.Planted == mutant.PeekOfOne {
			return n > 0
		}
		return n >= kv.Majority(len(voters))
	}
	clean = in(g.conf.Voters) && (len(g.conf.VotersOutgoing) == 0 || in(g.conf.VotersOutgoing))
	return clean, r.need
}

// answerPeek is this replica's own answer.
func (l *loop) answerPeek(g *group, promise causal.HLC) (need uint64, none bool) {
	if g.quarantine != nil || g.id == kv.MetaGroup {
		return 0, false
	}
	if l.deps.Unsettled != nil {
		need, none = l.deps.Unsettled(g.id, promise)
	} else {
		none = true
	}
	return max(need, g.applied.Index), none
}

// tagPeek adds this replica's answer to a message that confirms a leadership for a round, and to one that passes a round's
// index on to the follower that asked.
func (l *loop) tagPeek(g *group, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgHeartbeatResp:
		if len(m.GetContext()) != readContextBytes {
			return
		}
		if need, none := l.answerPeek(g, contextPromise(m.GetContext())); none {
			m.Index, m.RejectHint = new(need), new(peekClean)
		}
	case pb.MsgReadIndexResp:
		if !isReadContext(m) {
			return
		}
		if clean, need := l.closePeek(g, m.GetEntries()[0].GetData()); clean {
			m.Index, m.RejectHint = new(max(m.GetIndex(), need)), new(peekClean)
		}
	default:
	}
}

// hearPeek notes what a message that arrived says of a round.
func (l *loop) hearPeek(g *group, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgReadIndex:
		if g.leads() {
			g.openPeek(m.GetEntries()[0].GetData())
		}
	case pb.MsgHeartbeatResp:
		if g.leads() && m.GetTerm() == g.term && m.GetRejectHint()&peekClean != 0 && len(m.GetContext()) == readContextBytes {
			g.notePeek(m.GetContext(), m.GetFrom(), m.GetIndex())
		}
	case pb.MsgReadIndexResp:
		if round, ok := l.roundOf(m.GetEntries()[0].GetData()); ok && m.GetRejectHint()&peekClean != 0 {
			g.barriers.clean(round)
		}
	default:
	}
}

// readContextBytes is the size of a read round's context: who asks, the round's number, the reading to promise.
const readContextBytes = 24

// readContext spells a read round's number so that no other process, and no earlier life of this one, ever uses it.
func (l *loop) readContext(round uint64, promise causal.HLC) []byte {
	ctx := binary.BigEndian.AppendUint64(append(make([]byte, 0, readContextBytes), l.contextPrefix[:]...), round)
	return binary.BigEndian.AppendUint64(ctx, uint64(promise))
}

// roundOf is the inverse of readContext; false for a context of another process.
func (l *loop) roundOf(ctx []byte) (uint64, bool) {
	if len(ctx) != readContextBytes || [8]byte(ctx[:8]) != l.contextPrefix {
		return 0, false
	}
	return binary.BigEndian.Uint64(ctx[8:]), true
}

// contextPromise returns the reading that a round's context asks replicas to promise, 0 for none.
func contextPromise(ctx []byte) causal.HLC { return causal.HLC(binary.BigEndian.Uint64(ctx[16:])) }
