package consensus

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// localStep is a response of a local write that its own group has to hear.
type localStep struct {
	group *group
	msg   *pb.Message
}

// proposeQueue packs a leader's queue into entries and proposes them.
func (l *loop) proposeQueue(g *group) {
	entries, rest := l.packer.pack(g.queue)
	g.queue = rest
	for i, packed := range entries {
		now, ok := l.deps.Clock.TryNow()
		if !ok {
			g.queue = append(slices.Concat(entries[i:]...), rest...)
			l.extendClock()
			l.work(g) // until the clock's ceiling has moved, which begins another iteration
			return
		}
		ops := claim(packed, l.Store)
		if len(ops) == 0 {
			continue
		}
		if !l.propose(g, ops, now) {
			break
		}
	}
	if len(g.queue) > 0 && g.stopped == nil {
		l.work(g)
		l.again = true
	}
}

// claim keeps the proposals whose callers still wait. From here on a deadline cannot undo them.
func claim(ops []*op, s *Store) []*op {
	kept := ops[:0]
	for _, o := range ops {
		if o.state.CompareAndSwap(opQueued, opProposed) {
			kept = append(kept, o)
			continue
		}
		s.metrics.proposals.WithLabelValues(endNotApplied).Inc()
		s.release(o.view, o.bytes)
	}
	return kept
}

// extendClock moves the clock's ceiling beside the loop, which must not wait for the disk: a leader that does sends no
// heartbeats meanwhile. What has to be proposed waits; so it does for the same disk anyway.
func (l *loop) extendClock() {
	if l.extending {
		return
	}
	l.extending = true
	l.running.Go(func() {
		err := l.deps.Clock.ExtendAhead()
		l.inbox.post(func(m *mail) bool {
			m.controls = append(m.controls, func(l *loop) {
				l.extending = false
				if err != nil {
					l.fail(err)
				}
			})
			return true
		})
	})
}

// propose makes one entry of the operations. It reports whether the group can take another.
func (l *loop) propose(g *group, ops []*op, now causal.HLC) bool {
	l.sequence++
	l.entry = appendEntryHeader(l.entry[:0], entryHeader{
		proposer: l.deps.Self, sequence: l.sequence, time: now, uptime: time.Since(l.began), commands: len(ops),
	})
	for _, o := range ops {
		l.entry = appendBytes(l.entry, o.command)
	}
	l.touch(g)
	taken, err := g.propose(l.entry)
	if err != nil {
		// Raft may or may not have taken the entry before it met the failure.
		l.finishAll(ops, stopped(kv.OutcomeUnknown))
		return l.check(g, err)
	}
	if taken {
		g.pending.add(&proposed{sequence: l.sequence, ops: ops})
		return true
	}
	// Raft drops a proposal whole: when it has just stepped down, when a transfer began, or when too much is
	// uncommitted.
	if st := g.rn.BasicStatus(); st.RaftState == raft.StateLeader && st.LeadTransferee == 0 {
		l.finishAll(ops, l.overloaded("uncommitted", "too many writes of this partition are not committed"))
		return true
	}
	l.finishAll(ops, notLeader(g.id, kv.NodeID(g.rn.BasicStatus().Lead)))
	return true
}

// takeReadies collects what the dirty groups' Raft wants done.
func (l *loop) takeReadies() {
	dirty := l.dirty
	l.dirty = l.spareDirty[:0]
	l.readied = l.readied[:0]
	for _, g := range dirty {
		g.dirty = false
		if g.stopped != nil || g.install != nil {
			continue
		}
		if g.resumed != nil {
			l.resume(g)
			continue
		}
		rd, ok, err := g.takeReady()
		if l.check(g, err) && ok {
			l.accept(g, rd)
		}
		if g.offer != nil && g.offer.stage != nil {
			l.dropOffer(g, resultIgnored) // Raft did not want it
		}
	}
	clear(dirty)
	l.spareDirty = dirty
}

// accept hands out one Ready: messages into the outbox, the rest into g.ready for the phases that follow.
func (l *loop) accept(g *group, rd raft.Ready) {
	g.ready = groupReady{}
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) && hs.GetTerm() != g.term {
		g.term = hs.GetTerm()
	}
	if rd.SoftState != nil {
		l.accepted(g, *rd.SoftState)
	}
	for _, rs := range rd.ReadStates {
		if round, ok := l.roundOf(rs.RequestCtx); ok {
			clean, need := l.closePeek(g, rs.RequestCtx)
			if clean {
				g.barriers.clean(round)
			}
			g.barriers.confirm(round, max(rs.Index, need))
		}
	}
	if len(rd.ReadStates) > 0 {
		l.releaseBarriers(g)
	}
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			if m.GetSnapshot() != nil {
				l.beginInstall(g, rd.HardState, m)
				continue
			}
			g.ready.entries, g.ready.responses = m.GetEntries(), m.GetResponses()
			l.promise(g, rd.HardState)
		case raft.LocalApplyThread:
			g.ready.committed, g.ready.applied = m.GetEntries(), m.GetResponses()
		default:
			if !l.mayAsk(g, m) {
				continue
			}
			if m.GetType() == pb.MsgSnap {
				l.noteSend(g, m)
			}
			l.tagPeek(g, m)
			l.outbox.add(g.id, m)
		}
	}
	l.noteAppended(g)
	if mutant.Planted == mutant.SendBeforePersist {
		l.deliver(g, g.ready.responses)
		g.ready.responses = nil
	}
	l.readied = append(l.readied, g)
}

// promise decides whether what Raft wants appended has to be persisted. A commit index that has moved does not: losing it
// loses nothing. The answers then wait for what is still being synced, if anything is.
func (l *loop) promise(g *group, hard *pb.HardState) {
	g.log.note(hard)
	g.ready.append = len(g.ready.entries) > 0 || g.log.promised()
	if !g.ready.append {
		l.answerAfter(g, g.lastSync, g.ready.responses)
		g.ready.responses = nil
	}
}

// noteAppended looks at the entries that Raft appended: they raise fences, ours get their place, others' carry their proposer's
// clock.
func (l *loop) noteAppended(g *group) {
	l.check(g, l.fenceAppended(g, g.ready.entries))
	for _, e := range g.ready.entries {
		if e.GetType() != pb.EntryNormal || len(e.GetData()) == 0 {
			continue
		}
		// An entry that does not decode is dealt with when it is applied, which is when all replicas meet it.
		h, err := readEntryHeader(&reader{b: e.GetData()})
		if err != nil {
			continue
		}
		if h.proposer == l.deps.Self {
			g.pending.appended(h.sequence, causal.Position{Term: e.GetTerm(), Index: e.GetIndex()})
		} else if l.deps.Clock.Observe(h.time) != nil {
			l.metrics.skewedEntries.Inc()
		}
	}
	invariant.Check(len(g.pending.unplaced) == 0, "group %d: a proposal that Raft took is not among its new entries", g.id)
}

// accepted handles a change of what Raft believes about the group's leadership.
func (l *loop) accepted(g *group, st raft.SoftState) {
	if st.RaftState != g.state && st.RaftState == raft.StateCandidate {
		l.metrics.elections.Inc()
	}
	led := g.leads()
	g.state = st.RaftState
	if led != g.leads() {
		g.peeks = peeks{}
	}
	if !led && g.leads() {
		g.peers, g.suspects, g.checkAt = nil, nil, 0 // what an earlier leadership knew of them is out of date
		g.homeAt, g.homeTries = l.ticks+uint64(l.cfg.BalanceCooldownTicks), 0
	}
	l.setLeader(g, kv.NodeID(st.Lead), led && !g.leads())
}

// setLeader notes who leads the group. Whatever waits in it is refused when this node has just stopped leading.
func (l *loop) setLeader(g *group, leader kv.NodeID, deposed bool) {
	changed := leader != g.leader
	if changed {
		if leader == l.deps.Self {
			l.metrics.leaders.Inc()
		} else if g.leader == l.deps.Self {
			l.metrics.leaders.Dec()
		}
		g.leader = leader
		g.view.leader.Store(uint64(leader))
		if leader != kv.NoNode {
			g.touch(l.ticks)
			l.metrics.leaderChanges.Inc()
			l.log.Info("a group has a leader", "group", g.id, "leader", leader, "term", g.term)
		}
		if l.deps.OnLeader != nil {
			l.deps.OnLeader(g.id, leader)
		}
	}
	if deposed {
		g.transferring = false
		l.refuse(g)
	} else if changed && !g.barriers.empty() {
		// Whoever was asked will not answer any more, or does not count.
		g.barriers.reissue()
		l.work(g)
		l.again = true
	}
}

// stepLocal delivers local responses that did not have to wait for a sync.
func (l *loop) stepLocal() {
	for i := 0; i < len(l.local); i++ {
		st := l.local[i]
		if st.group.stopped == nil {
			l.touch(st.group)
			l.check(st.group, st.group.step(st.msg))
		}
	}
	clear(l.local)
	l.local = l.local[:0]
}

// deliver hands out responses of a local write that is done: to their own group, or to the peers they are for.
func (l *loop) deliver(g *group, responses []*pb.Message) {
	for _, m := range responses {
		if m.GetTo() == uint64(l.deps.Self) {
			l.local = append(l.local, localStep{group: g, msg: m})
		} else {
			l.outbox.add(g.id, m)
		}
	}
}

// flush sends one frame to each peer that has messages. News wait for a tick at the longest: to a follower that has missed
// something an append of nothing is the question what it lacks.
func (l *loop) flush(tick bool) {
	if tick || !l.crowded() {
		l.outbox.tell()
	}
	for _, p := range l.outbox.order {
		l.frame, l.inside = p.frames(l.frame, l.inside, l.cfg.FrameBytesMax, func(frame []byte, inside []kv.GroupID) {
			if l.deps.Sender.Send(p.to, frame) {
				return
			}
			l.metrics.framesDropped.Inc()
			for _, id := range inside {
				if g := l.groups[id]; g != nil && g.stopped == nil {
					g.rn.ReportUnreachable(uint64(p.to))
					l.lostOffer(g, p.to)
				}
			}
		})
	}
	l.metrics.acksMerged.Add(float64(l.outbox.merged))
	l.outbox.merged = 0
	l.outbox.reset()
}

// settleDirty ends an iteration: groups that have something more to be done ask for another one.
func (l *loop) settleDirty() {
	if len(l.drains) > 0 {
		l.continueDrain()
	}
	if len(l.dirty) > 0 {
		l.again = true
	}
	for _, g := range l.readied {
		if g.stopped == nil && l.failure == nil {
			l.check(g, g.rebase())
		}
		g.publish()
	}
}
