package consensus

import (
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A replica that has lost its majority learns of it late: a leader steps down after one to two election timeouts, and a
// follower believes in its leader for as long. Until then it would take reads and writes that nobody can answer. So each
// group counts its silence, the ticks since a leader last heard of a majority, or a follower of its leader. From
// Config.silentTicks on it takes no new proposals and no reads, and refuses the reads that wait for a majority. That decides
// nothing about leadership, and nothing about what was proposed.

// silentTicks is the silence from which on operations are refused: more than two heartbeats are missing.
func (c Config) silentTicks() uint64 {
	return uint64(max(c.ElectionTicks/2, 2*c.HeartbeatTicks+1))
}

// heardOf is when a group last heard of a peer.
type heardOf struct {
	id   uint64
	tick uint64
}

// hear notes a message that proves that its sender follows this leader, or is the leader that this node follows.
func (g *group) hear(m *pb.Message, tick uint64) {
	if m.GetTerm() != g.term {
		return
	}
	switch m.GetType() {
	case pb.MsgAppResp, pb.MsgHeartbeatResp:
		if !g.leads() {
			return
		}
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		if m.GetFrom() != uint64(g.leader) {
			return
		}
	default:
		return
	}
	for i := range g.heard {
		if g.heard[i].id == m.GetFrom() {
			g.heard[i].tick = tick
			return
		}
	}
	g.heard = append(g.heard, heardOf{m.GetFrom(), tick})
}

// measureSilence publishes how long the group has been silent, and returns it. Without a leader nobody is heard, so that the
// silence goes on from when the last one was.
func (g *group) measureSilence(self kv.NodeID, tick uint64) uint64 {
	switch {
	case g.leads():
		since := g.heardMajority(g.conf.GetVoters(), self, tick)
		if outgoing := g.conf.GetVotersOutgoing(); len(outgoing) > 0 {
			since = min(since, g.heardMajority(outgoing, self, tick))
		}
		g.touched = max(g.touched, since)
	case g.leader != kv.NoNode:
		g.touched = max(g.touched, g.heardTick(uint64(g.leader)))
	}
	silence := tick - g.touched
	g.view.silence.Store(silence)
	return silence
}

// heardMajority returns the latest tick since which a majority of the voters was heard of.
func (g *group) heardMajority(voters []uint64, self kv.NodeID, tick uint64) uint64 {
	ticks := make([]uint64, 0, 8)
	for _, id := range voters {
		if id == uint64(self) {
			ticks = append(ticks, tick)
			continue
		}
		ticks = append(ticks, g.heardTick(id))
	}
	slices.Sort(ticks)
	return ticks[len(ticks)-kv.Majority(len(ticks))]
}

// heardTick returns when the peer was last heard of, 0 for never.
func (g *group) heardTick(id uint64) uint64 {
	for i := range g.heard {
		if g.heard[i].id == id {
			return g.heard[i].tick
		}
	}
	return 0
}

// touch says that at this tick the group has, or is, a leader that was just elected.
func (g *group) touch(tick uint64) {
	g.touched = tick
	g.heard = g.heard[:0]
	g.view.silence.Store(0)
}

// breakSilence refuses the reads that wait in a group that has been silent for too long.
func (l *loop) breakSilence(g *group) {
	if g.measureSilence(l.deps.Self, l.ticks) < l.cfg.silentTicks() {
		return
	}
	if waiting := g.barriers.unanswered(); len(waiting) > 0 {
		l.refuseBarriers(waiting, outOfTouch(g.id))
	}
}

// silent reports whether the group has been silent for too long to begin anything.
func (s *Store) silent(v *view) bool { return v.silence.Load() >= s.cfg.silentTicks() }

// Silence returns for how long, to a tick, this replica of the group has neither heard of its leader nor, leading itself, of
// a majority; false when there is no replica here.
func (s *Store) Silence(g kv.GroupID) (time.Duration, bool) {
	v := s.views.get(g)
	if v == nil {
		return 0, false
	}
	return time.Duration(v.silence.Load()) * s.cfg.TickInterval, true
}

// SilenceMax is the silence from which on proposals and reads are refused.
func (s *Store) SilenceMax() time.Duration {
	return time.Duration(s.cfg.silentTicks()) * s.cfg.TickInterval
}
