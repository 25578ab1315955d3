package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// offer is a snapshot that a leader has offered to this replica, from the message to the moment at which Raft takes the
// fetched data or leaves them.
type offer struct {
	msg *pb.Message
	// cancel ends the fetch; nil while it waits for its turn.
	cancel context.CancelFunc
	// stage is what was fetched; nil until then.
	stage *storage.Stage
	// next is what another leader offered meanwhile; nil for nothing.
	next *pb.Message
}

// installing is a snapshot on its way from the stage into the group's rows. Meanwhile no Ready of the group is taken: it
// would be about rows that are just being replaced. Messages are stepped, so that nothing is lost.
type installing struct {
	pos  causal.Position
	conf *pb.ConfState
	hard storage.HardState
	// resume is what else the Ready had that carried the snapshot.
	resume groupReady
	// next is what was offered meanwhile; nil for nothing. Its leader need not be the one that the answer goes to.
	next *pb.Message
}

// offered handles a MsgSnap. Raft does not get to see it before the data are here: from then on it would believe that
// this replica has them.
func (l *loop) offered(g *group, m *pb.Message) {
	if g.install != nil {
		g.install.next = m
		return
	}
	meta := m.GetSnapshot().GetMetadata()
	st := g.rn.BasicStatus()
	if m.GetTerm() < st.GetTerm() || meta.GetIndex() <= st.GetCommit() || g.log.holds(meta.GetIndex(), meta.GetTerm()) {
		// Raft needs no data to answer this one.
		l.touch(g)
		l.check(g, g.step(m))
		return
	}
	switch o := g.offer; {
	case o == nil:
		g.offer = &offer{msg: m}
		l.offers = append(l.offers, g)
		l.startFetches()
	case m.GetTerm() < o.msg.GetTerm(): // its leader repeats an offer of a time that is over; the newer one counts
	case o.cancel == nil:
		o.msg = m
	case o.msg.GetTerm() != m.GetTerm() || o.msg.GetFrom() != m.GetFrom():
		o.next = m
		o.cancel()
	}
}

// startFetches starts as many of the waiting fetches as may run.
func (l *loop) startFetches() {
	for len(l.offers) > 0 && l.fetching < l.cfg.SnapshotFetchesMax {
		g := l.offers[0]
		l.offers[0] = nil
		l.offers = l.offers[1:]
		o := g.offer
		if g.stopped != nil {
			g.offer = nil
			continue
		}
		f := &fetch{
			Store: l.Store, group: g.id, from: kv.NodeID(o.msg.GetFrom()),
			least: o.msg.GetSnapshot().GetMetadata().GetIndex(),
		}
		ctx, cancel := context.WithCancel(l.background)
		o.cancel = cancel
		l.fetching++
		l.log.Info("fetching a snapshot", "group", g.id, "from", f.from, "index", f.least)
		l.running.Go(func() {
			defer cancel()
			stage, err := f.run(ctx)
			if !l.inbox.post(func(m *mail) bool {
				m.controls = append(m.controls, func(l *loop) { l.fetched(g, o, stage, err) })
				return true
			}) && stage != nil {
				stage.Discard()
			}
		})
	}
}

// checkOffer gives up a fetch whose leader is not the leader any more. It runs every tick.
func (l *loop) checkOffer(g *group) {
	if o := g.offer; o != nil && o.cancel != nil && g.rn.BasicStatus().GetTerm() > o.msg.GetTerm() {
		o.cancel()
	}
}

// fetched takes over what a fetch ended with, and lets Raft decide about it.
func (l *loop) fetched(g *group, o *offer, stage *storage.Stage, err error) {
	l.fetching--
	defer l.startFetches()
	invariant.Check(g.offer == o, "group %d: a fetch ended that was not under way", g.id)
	var conf *pb.ConfState
	if err == nil {
		o.stage = stage
		conf, err = decodeConfRow(stage.Applied().ConfState)
	}
	if err == nil && g.rn.BasicStatus().GetTerm() > o.msg.GetTerm() {
		err = errors.New("the leader changed")
	}
	if err != nil || g.stopped != nil {
		l.log.Warn("a snapshot could not be fetched; the leader will offer another", "group", g.id,
			"from", o.msg.GetFrom(), "error", err)
		l.dropOffer(g, resultFailed)
		return
	}
	a := stage.Applied()
	m := &pb.Message{
		Type: pb.MsgSnap.Enum(), From: o.msg.From, To: o.msg.To, Term: o.msg.Term,
		Snapshot: snapshotAt(causal.Position{Term: a.Term, Index: a.Index}, conf),
	}
	l.touch(g)
	l.check(g, g.step(m))
}

// dropOffer forgets an offer and what was fetched of it, and turns to what was offered meanwhile.
func (l *loop) dropOffer(g *group, result string) {
	o := g.offer
	g.offer = nil
	l.metrics.snapshots.WithLabelValues(directionReceived, result).Inc()
	if o.stage != nil {
		l.running.Go(o.stage.Discard)
	}
	if o.next != nil && g.stopped == nil {
		l.offered(g, o.next)
	}
}

// beginInstall starts to install the snapshot of a Ready.
func (l *loop) beginInstall(g *group, hard *pb.HardState, m *pb.Message) {
	o, meta := g.offer, m.GetSnapshot().GetMetadata()
	invariant.Check(o != nil && o.stage != nil && o.stage.Applied().Index == meta.GetIndex(),
		"group %d: Raft wants snapshot %d, which was not fetched", g.id, meta.GetIndex())
	g.offer = nil
	in := &installing{
		pos:  causal.Position{Term: meta.GetTerm(), Index: meta.GetIndex()},
		conf: meta.GetConfState(), hard: g.log.hard, next: o.next,
		resume: groupReady{hard: hard, entries: m.GetEntries(), responses: m.GetResponses()},
	}
	if !raft.IsEmptyHardState(hard) {
		in.hard.Term, in.hard.Vote = hard.GetTerm(), hard.GetVote()
	}
	// What is committed beyond the snapshot are entries that come only after it.
	in.hard.Commit = in.pos.Index
	g.install = in
	l.running.Go(func() {
		start := time.Now()
		err := l.installStage(l.background, o.stage, in)
		bytes := o.stage.Bytes()
		o.stage.Discard()
		if err == nil {
			l.log.Info("installed a snapshot", "group", g.id, "index", in.pos.Index, "bytes", bytes, "took", time.Since(start))
		}
		l.inbox.post(func(m *mail) bool {
			m.controls = append(m.controls, func(l *loop) { l.installed(g, err) })
			return true
		})
	})
}

// installStage installs a snapshot, again and again as long as a failure left everything as it was.
func (s *Store) installStage(ctx context.Context, stage *storage.Stage, in *installing) (err error) {
	pause := pullPauseMin
	for range installAttemptsMax {
		err = s.deps.Engine.InstallGroup(stage, in.hard, in.pos)
		if err == nil || errors.Is(err, storage.ErrStopped) || !sleep(ctx, pause) {
			return err
		}
		pause *= 2
	}
	return err
}

// installed goes on with a group whose rows were replaced: what the loop knows of them is now the snapshot's.
func (l *loop) installed(g *group, err error) {
	in := g.install
	if err != nil {
		// Raft is past the snapshot already and cannot be taken back.
		l.metrics.snapshots.WithLabelValues(directionReceived, resultFailed).Inc()
		l.fail(fmt.Errorf("consensus: group %d: install a snapshot: %w", g.id, err))
		return
	}
	g.install = nil
	if g.stopped != nil {
		return
	}
	l.metrics.snapshots.WithLabelValues(directionReceived, resultOK).Inc()
	g.received++
	g.log.reset(in.pos, in.hard, in.conf)
	g.setConf(in.conf)
	g.applied = in.pos
	l.endQuarantine(g)
	if !l.check(g, errors.Join(g.fenceLog(nil), g.rebase())) {
		return
	}
	unknown, overwritten := g.pending.installed(in.pos)
	for _, e := range unknown {
		l.finishAll(e.ops, kv.Errorf(kv.CodeNoLeader, "%w", ErrSuperseded).WithOutcome(kv.OutcomeUnknown))
	}
	for _, e := range overwritten {
		l.finishAll(e.ops, kv.Errorf(kv.CodeNoLeader, "%w", ErrOverwritten))
	}
	if r, ok := g.machine.(Restorer); ok && !l.check(g, r.Restored()) {
		return
	}
	l.releaseBarriers(g)
	g.resumed = &in.resume
	l.touch(g)
	if in.next != nil {
		l.offered(g, in.next)
	}
}

// resume goes on with the Ready that carried a snapshot, now that it is installed. Its responses say so to the leader.
func (l *loop) resume(g *group) {
	g.ready, g.resumed = *g.resumed, nil
	l.promise(g, g.ready.hard)
	l.noteAppended(g)
	l.readied = append(l.readied, g)
	l.touch(g) // what Raft has wanted meanwhile
}
