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
// A heartbeat names the last round that was open when it was sent, in a field that Raft leaves empty, and the highest reading to
// promise; the answer names that round again. It counts for every round up to it, as every reader of those had begun.

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

// peekClean, in the reject hint of a message that passes on a round's index, says that the peek found nothing.
const peekClean uint64 = 1

// peekRound collects the answers to a round.
type peekRound struct {
	context []byte // of the round, as Raft returns it
	number  uint64
	promise causal.HLC
	clean   []uint64  // the voters that hold nothing
	few     [4]uint64 // memory for them
	need    uint64    // the highest index that any of their answers depends on
}

// peeks are a leader's rounds, and what a follower was last asked.
type peeks struct {
	open []*peekRound // in the order of their numbers
	last uint64       // the number of the last one
	// asked is the last round that the leader of the term asked this follower about, and promise what for.
	asked, term uint64
	promise     causal.HLC
}

// begin begins to collect answers for a round.
func (p *peeks) begin(context []byte, promise causal.HLC) {
	if len(p.open) >= peekRoundsMax {
		p.open = slices.Delete(p.open, 0, 1)
	}
	p.last++
	r := &peekRound{context: context, number: p.last, promise: promise}
	r.clean = r.few[:0]
	p.open = append(p.open, r)
}

// answer takes a voter's answer to the rounds up to the number.
func (p *peeks) answer(number, from, need uint64) {
	for _, r := range p.open {
		if r.number > number {
			return
		}
		if !slices.Contains(r.clean, from) {
			r.clean = append(r.clean, from)
		}
		r.need = max(r.need, need)
	}
}

// end ends the round with the context; nil when it is not known.
func (p *peeks) end(context []byte) *peekRound {
	at := slices.IndexFunc(p.open, func(r *peekRound) bool { return string(r.context) == string(context) })
	if at < 0 {
		return nil
	}
	r := p.open[at]
	p.open = slices.Delete(p.open, at, at+1)
	return r
}

// closePeek ends a round: whether a majority of the voters, of both halves when joint, holds nothing, and how far the log must
// be applied for its state to be all there is. This node's own answer is given now.
func (l *loop) closePeek(g *group, context []byte) (clean bool, need uint64) {
	r := g.peeks.end(context)
	if r == nil {
		return false, 0
	}
	if own, none := l.answerPeek(g, r.promise); none {
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

// tagPeek adds to a message that leaves: the question to a heartbeat that confirms the leadership for rounds, this replica's
// answer to one that answers it, the result to one that passes a round's index on to the follower that asked.
func (l *loop) tagPeek(g *group, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgHeartbeat:
		if n := len(g.peeks.open); n > 0 && len(m.GetContext()) > 0 {
			var promise causal.HLC
			for _, r := range g.peeks.open {
				promise = max(promise, r.promise)
			}
			m.RejectHint = new(g.peeks.last)
			if promise != 0 {
				m.Index = new(uint64(promise))
			}
		}
	case pb.MsgHeartbeatResp:
		if g.peeks.term != m.GetTerm() || g.peeks.asked == 0 || len(m.GetContext()) == 0 {
			return
		}
		if need, none := l.answerPeek(g, g.peeks.promise); none {
			m.Index, m.RejectHint = new(need), new(g.peeks.asked)
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

// hearPeek notes what a message that arrived says of rounds.
func (l *loop) hearPeek(g *group, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgReadIndex:
		if g.leads() {
			g.peeks.begin(m.GetEntries()[0].GetData(), 0)
		}
	case pb.MsgHeartbeat:
		if n := m.GetRejectHint(); n > 0 && m.GetTerm() >= g.term {
			if m.GetTerm() != g.peeks.term {
				g.peeks.term, g.peeks.asked, g.peeks.promise = m.GetTerm(), 0, 0
			}
			g.peeks.asked = max(g.peeks.asked, n)
			g.peeks.promise = max(g.peeks.promise, causal.HLC(m.GetIndex()))
		}
	case pb.MsgHeartbeatResp:
		if n := m.GetRejectHint(); n > 0 && g.leads() && m.GetTerm() == g.term {
			g.peeks.answer(n, m.GetFrom(), m.GetIndex())
		}
	case pb.MsgReadIndexResp:
		if round, ok := l.roundOf(m.GetEntries()[0].GetData()); ok && m.GetRejectHint() == peekClean {
			g.barriers.clean(round)
		}
	default:
	}
}

// readContextBytes is the size of a read round's number with its prefix.
const readContextBytes = 16

// readContext spells a read round's number so that no other process, and no earlier life of this one, ever uses it.
func (l *loop) readContext(round uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, readContextBytes), l.contextPrefix[:]...), round)
}

// roundOf is the inverse of readContext; false for a context of another process.
func (l *loop) roundOf(ctx []byte) (uint64, bool) {
	if len(ctx) != readContextBytes || [8]byte(ctx[:8]) != l.contextPrefix {
		return 0, false
	}
	return binary.BigEndian.Uint64(ctx[8:]), true
}
