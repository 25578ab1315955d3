package consensus

import (
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// send is a snapshot on its way to a follower, from the leader's message to the follower's answer. As long as there is
// one, the log keeps what follows its index.
type send struct {
	index uint64
	since time.Time
	// offer is what Raft said, offered when it was last sent and repeats how often it was sent again: nobody acknowledges an
	// offer, and the answer to the snapshot may get lost like any other message.
	offer   *pb.Message
	offered time.Time
	repeats int
}

// offerRepeatsMax bounds how often one offer is repeated. It also bounds how often a follower can begin anew that fails
// every time, and by that for how long the log is kept for it.
const offerRepeatsMax = 8

// offerable returns what a snapshot of the group would hold now, and no configuration while none may be sent: when as
// many as may be are under way, or the last one has just failed.
func (l *loop) offerable(g *group) (causal.Position, *pb.ConfState) {
	if g.quarantine != nil || l.sending >= l.cfg.SnapshotSendsMax || l.ticks < g.sendAfter {
		return causal.Position{}, nil
	}
	return g.applied, g.conf
}

// noteSend notes that Raft offers a snapshot to a follower.
func (l *loop) noteSend(g *group, m *pb.Message) {
	if g.sends == nil {
		g.sends = make(map[kv.NodeID]send)
	}
	to := kv.NodeID(m.GetTo())
	if _, again := g.sends[to]; !again {
		l.sending++
	}
	now := time.Now()
	g.sends[to] = send{index: m.GetSnapshot().GetMetadata().GetIndex(), since: now, offer: m, offered: now}
	l.log.Info("offering a snapshot", "group", g.id, "to", to, "index", g.sends[to].index)
}

// checkSends ends the sends that have come to an end. It runs every tick.
func (l *loop) checkSends(g *group) {
	if len(g.sends) == 0 {
		return
	}
	progress := make(map[kv.NodeID]tracker.Progress, len(g.sends))
	if g.leads() {
		g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) { progress[kv.NodeID(id)] = pr })
	}
	for to, s := range g.sends {
		pr, there := progress[to]
		switch {
		case !there: // not the leader any more, or the follower is gone
			l.endSend(g, to, resultFailed)
		case pr.State != tracker.StateSnapshot && pr.Match >= s.index:
			g.sent++
			l.endSend(g, to, resultOK)
		case pr.State != tracker.StateSnapshot:
			l.endSend(g, to, resultFailed)
		case time.Since(l.lastSign(g, to, s)) > l.cfg.SnapshotIdle:
			l.failSend(g, to)
		default:
			l.repeatOffer(g, to)
		}
	}
}

// repeatOffer offers a snapshot again to a follower that has not asked for it, or has stopped asking, for as long as an
// election takes: the offer, or what the follower said about the snapshot, may be lost. A follower that is busy with this
// very offer, or waits for its turn, takes no notice; one that has installed the snapshot says so once more.
func (l *loop) repeatOffer(g *group, to kv.NodeID) {
	s := g.sends[to]
	last := s.offered
	if s.since.After(last) {
		last = s.since
	}
	if s.repeats >= offerRepeatsMax || time.Since(last) < time.Duration(l.cfg.ElectionTicks)*l.cfg.TickInterval {
		return
	}
	s.repeats++
	s.offered = time.Now()
	g.sends[to] = s
	l.metrics.offersRepeated.Inc()
	l.outbox.add(g.id, s.offer)
}

// lastSign returns when the follower was last known to be after the snapshot.
func (l *loop) lastSign(g *group, to kv.NodeID, s send) time.Time {
	if pulled, found := l.exports.active(g.id, to); found && pulled.After(s.since) {
		s.since = pulled
		g.sends[to] = s // the install follows the last pull
	}
	return s.since
}

// failSend tells Raft that a snapshot did not arrive. It will offer another one after a pause.
func (l *loop) failSend(g *group, to kv.NodeID) {
	l.endSend(g, to, resultFailed)
	g.sendAfter = l.ticks + uint64(l.cfg.ElectionTicks)
	l.touch(g)
	g.rn.ReportSnapshot(uint64(to), raft.SnapshotFailure)
}

// lostOffer handles the loss of a frame to a follower: it may have held an offer that the follower has not taken up.
func (l *loop) lostOffer(g *group, to kv.NodeID) {
	if _, sent := g.sends[to]; !sent {
		return
	}
	if _, pulling := l.exports.active(g.id, to); !pulling {
		l.failSend(g, to)
	}
}

func (l *loop) endSend(g *group, to kv.NodeID, result string) {
	delete(g.sends, to)
	l.sending--
	l.metrics.snapshots.WithLabelValues(directionSent, result).Inc()
}
