package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// loop is the store loop: it owns every group of the node. DESIGN.md describes an iteration.
type loop struct {
	*Store
	groups map[kv.GroupID]*group
	order  []*group // all of them, in the order in which they came
	mail   mail

	// dirty groups were stepped since their last Ready; busy ones have proposals or barriers that wait. The spares are
	// memory for the lists of the next iteration.
	dirty, spareDirty, busy, spareBusy []*group
	// readied groups have something to persist or apply in this iteration.
	readied []*group

	outbox outbox
	frame  []byte
	inside []kv.GroupID // groups with messages in frame
	local  []localStep

	packer   packer
	entry    []byte // scratch for the data of an entry
	sequence uint64 // of the last entry proposed
	rounds   uint64 // of the last read round, over all groups

	// appends are messages that wait until storage is not busy; the spare is memory for the next of them.
	appends, spareAppends []inbound
	appendBytes           int
	// aheadBytes is what the groups' decoded entries count for.
	aheadBytes int
	// held are the groups of those messages.
	held map[kv.GroupID]bool
	// fills are eventual writes that no batch has taken yet. late are those that were answered and wait for a sync.
	fills []fill
	late  late
	// syncing are the batches on their way to the disk, oldest first. Their numbers rise by one.
	syncing []syncing
	// batches is the number of the newest batch, durable that of the newest durable one.
	batches, durable uint64
	jobs             chan<- syncJob

	// planned groups have a truncation that waits for its time.
	planned []*group
	// offers are the groups whose snapshots wait to be fetched; fetching are being fetched, sending are under way from here.
	offers            []*group
	fetching, sending int
	// hashings are the states that wait to be hashed.
	hashings chan<- hashing
	// background ends with the loop, and with it the fetches and installs that are running.
	background context.Context
	running    sync.WaitGroup

	ticks uint64
	// began is when the loop did; its monotonic reading tells how long ago that is.
	began  time.Time
	drains []*drain
	// extending says that the clock's ceiling is being moved.
	extending bool
	// again asks for another iteration without waiting for mail.
	again bool
	// failure ends the loop: storage cannot be trusted with another write.
	failure error
}

// Run runs the store until ctx is done or storage fails. It may be called once. Before it returns, every operation has
// been answered with what is known of it: what was never handed to Raft was not applied, the rest is unknown.
func (s *Store) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("consensus: Run was called before")
	}
	jobs := make(chan syncJob, s.cfg.SyncsMax)
	l := &loop{
		Store: s, groups: make(map[kv.GroupID]*group), outbox: newOutbox(), packer: newPacker(s.cfg), jobs: jobs,
		began: time.Now(), held: make(map[kv.GroupID]bool),
	}
	var waiter sync.WaitGroup
	waiter.Go(func() { s.awaitSyncs(jobs) })
	for _, g := range s.opened {
		l.adopt(g)
	}
	s.opened = nil
	background, cancel := context.WithCancel(context.Background())
	l.background = background
	hashings := make(chan hashing, checksWaitingMax)
	l.hashings = hashings
	l.running.Go(func() { s.hashStates(background, hashings) })
	l.running.Go(func() { s.gauge(background) })
	l.run(ctx)
	if l.failure == nil && !l.late.empty() {
		l.syncLate()
	}
	cancel()
	left := s.inbox.close()
	s.exports.close()
	l.running.Wait()
	close(jobs)
	waiter.Wait()
	l.end(left)
	close(s.ended)
	return l.failure
}

func (l *loop) run(ctx context.Context) {
	// A ticker drops ticks that nobody takes. After a pause of the process or a hung disk there is one tick to catch
	// up with, not as many as would make every follower suspect its leader.
	ticker := time.NewTicker(l.cfg.TickInterval)
	defer ticker.Stop()
	for l.failure == nil {
		tick := false
		if l.again {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				tick = true
			default:
			}
		} else {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				tick = true
			case <-l.inbox.wake:
			case <-l.late.due:
			}
		}
		l.iterate(tick)
	}
}

// iterate does everything once. Its order is the heart of the design.
func (l *loop) iterate(tick bool) {
	l.again = false
	l.inbox.take(&l.mail)
	l.completeSyncs(l.mail.synced, l.mail.syncErr)
	for _, control := range l.mail.controls {
		control(l)
	}
	l.stepMessages()
	if tick {
		l.tick()
	}
	l.enqueue()
	l.proposeBusy()
	l.takeReadies()
	l.stepLocal()
	l.flush(tick)
	l.persist()
	l.apply()
	l.settleDirty()
}

// adopt takes over a group that was just opened.
func (l *loop) adopt(g *group) {
	l.order = append(l.order, g)
	l.take(g)
}

// take makes a group that was just opened the one of its id.
func (l *loop) take(g *group) {
	l.groups[g.id] = g
	g.touched, g.eagerSince = l.ticks, l.ticks
	g.log.state = func() (causal.Position, *pb.ConfState) { return l.offerable(g) }
	l.touch(g)
	if g.eager {
		l.check(g, g.campaign())
	}
}

// touch notes that the group was stepped.
func (l *loop) touch(g *group) {
	if !g.dirty {
		g.dirty = true
		l.dirty = append(l.dirty, g)
	}
}

// work notes that proposals or barriers of the group wait.
func (l *loop) work(g *group) {
	if !g.busy {
		g.busy = true
		l.busy = append(l.busy, g)
	}
}

// check handles an error of one group. It reports whether there was none.
func (l *loop) check(g *group, err error) bool {
	if err == nil {
		return true
	}
	if g.id == kv.MetaGroup || !stopsGroup(err) {
		l.fail(fmt.Errorf("consensus: group %d: %w", g.id, err))
		return false
	}
	l.stopGroup(g, err)
	return false
}

// fail ends the loop after this iteration. The first failure is the one that is told.
func (l *loop) fail(err error) {
	if l.failure == nil {
		l.failure = err
		l.log.Error("the store stops", "error", err)
	}
}

// stopGroup takes one replica out: it met something it cannot read, and must neither guess nor skip. Its peers go on.
func (l *loop) stopGroup(g *group, err error) {
	if g.stopped != nil {
		return
	}
	g.stopped = err
	l.log.Error("a replica stopped; its group goes on without it, and it must be rebuilt from its peers",
		"group", g.id, "applied", g.applied.Index, "error", err)
	l.metrics.stopped.Inc()
	g.state = raft.StateFollower
	l.setLeader(g, kv.NoNode, false)
	l.failAll(g, stopped)
	for to := range g.sends {
		l.endSend(g, to, resultFailed)
	}
	g.ready, g.peers = groupReady{}, nil
	g.ahead.drop(&l.aheadBytes)
	g.publish()
}

// failAll answers everything that waits in a group with an error of the outcome it can be sure of.
func (l *loop) failAll(g *group, failure func(kv.Outcome) *kv.Error) {
	l.finishAll(g.queue, failure(kv.OutcomeNotApplied))
	g.queue = nil
	for _, e := range g.pending.drain() {
		l.finishAll(e.ops, failure(kv.OutcomeUnknown))
	}
	l.refuseBarriers(g.barriers.drain(), failure(kv.OutcomeNotApplied))
}

// end answers what is left once the loop and the waiter have ended.
func (l *loop) end(left mail) {
	l.finishAll(left.ops, stopped(kv.OutcomeNotApplied))
	l.refuseBarriers(left.barriers, stopped(kv.OutcomeNotApplied))
	for _, f := range slices.Concat(l.late.fills, l.fills, left.fills) {
		f.done(stopped(kv.OutcomeNotApplied))
	}
	for _, done := range l.late.dones {
		done(stopped(kv.OutcomeUnknown))
	}
	for _, g := range l.order {
		l.failAll(g, stopped)
		g.state = raft.StateFollower
		l.setLeader(g, kv.NoNode, false)
		g.publish()
	}
}

// stepMessages hands what peers sent to their groups. Appends of something wait while storage is busy, so that one batch and
// one sync serve those of all leaders that came meanwhile, and a disk that hangs has nothing to hold this loop up with. To Raft
// they are late; nothing else of their groups waits with them but appends that come behind them: one that overtakes what it
// builds on is refused, and has the leader send everything once more.
func (l *loop) stepMessages() {
	if len(l.appends) > 0 && !l.crowded() {
		held := l.appends
		l.appends, l.appendBytes = l.spareAppends[:0], 0
		clear(l.held)
		l.step(held)
		clear(held)
		l.spareAppends = held
	}
	l.step(l.mail.messages)
}

func (l *loop) step(messages []inbound) {
	for _, in := range messages {
		g := l.groups[in.group]
		if g != nil {
			g.hear(in.msg, l.ticks)
		}
		if in.msg.GetType() == pb.MsgApp && (l.held[in.group] || len(in.msg.GetEntries()) > 0 && l.crowded()) {
			l.hold(in)
			continue
		}
		switch {
		case g == nil:
			l.metrics.dropped.WithLabelValues(dropUnknownGroup).Inc()
		case g.stopped != nil:
			l.metrics.dropped.WithLabelValues(dropStopped).Inc()
		case in.msg.GetType() == pb.MsgSnap:
			l.offered(g, in.msg)
		case g.quarantine != nil && in.msg.GetType() == pb.MsgTimeoutNow: // it is not to lead
		default:
			l.hearPeek(g, in.msg)
			l.touch(g)
			l.check(g, g.step(in.msg))
		}
	}
}

// hold keeps an append until storage takes it. A leader whose appends stay unanswered sends no more entries than Raft lets be in
// flight; what comes again and again, because leaders change or ask how far this replica is, is dropped beyond the inbox's limit.
func (l *loop) hold(in inbound) {
	if l.appendBytes+in.bytes > l.cfg.InboxBytesMax {
		l.metrics.dropped.WithLabelValues(dropHeld).Inc()
		return
	}
	l.appendBytes += in.bytes
	l.held[in.group] = true
	l.appends = append(l.appends, in)
}

// tick advances every group's logical clock by one.
func (l *loop) tick() {
	l.ticks++
	l.exports.expire(time.Now().Add(-l.cfg.SnapshotIdle))
	l.balance()
	for _, g := range l.order {
		if g.stopped != nil {
			continue
		}
		l.touch(g)
		if !l.check(g, g.tick()) {
			continue
		}
		l.breakSilence(g)
		if g.eager {
			l.campaignEagerly(g)
		}
		l.checkOffer(g)
		l.checkSends(g)
		l.planTruncation(g)
		l.tickChecks(g)
		if g.transferring && g.rn.BasicStatus().LeadTransferee == 0 {
			g.transferring = false // Raft gave up on it
		}
		if timeout := uint64(l.cfg.ElectionTicks); l.ticks > timeout {
			g.barriers.expire(l.ticks - timeout)
		}
		if len(g.queue) > 0 || len(g.barriers.waiting) > 0 {
			l.work(g)
		}
	}
}

// campaignEagerly lets the preferred voter of a group that has no leader yet campaign again and again: after a
// bootstrap the other voters may not have created their replicas when it asks first.
func (l *loop) campaignEagerly(g *group) {
	age := int(l.ticks - g.eagerSince)
	if g.leader != kv.NoNode || age > l.cfg.CampaignTicksMax {
		g.eager = false
		return
	}
	if age > 0 && age%l.cfg.CampaignTicks == 0 {
		l.check(g, g.campaign())
	}
}

// enqueue hands proposals and barriers to their groups, and eventual writes to the next batches.
func (l *loop) enqueue() {
	for _, o := range l.mail.ops {
		g := l.groups[o.view.id]
		if err := g.refusal(kv.OutcomeNotApplied); err != nil {
			l.finishAll([]*op{o}, err)
			continue
		}
		g.queue = append(g.queue, o)
		l.work(g)
	}
	for _, b := range l.mail.barriers {
		g := l.groups[b.view.id]
		if err := g.refusal(kv.OutcomeNotApplied); err != nil {
			l.refuseBarriers([]*barrier{b}, err)
			continue
		}
		g.barriers.add(b)
		if b.index > 0 {
			l.releaseBarriers(g)
			continue
		}
		l.work(g)
	}
	for _, f := range l.mail.fills {
		if f.visible != nil {
			l.late.fills = append(l.late.fills, f)
		} else {
			l.fills = append(l.fills, f)
		}
	}
}

// proposeBusy turns what waits in busy groups into entries and read rounds.
func (l *loop) proposeBusy() {
	busy := l.busy
	l.busy = l.spareBusy[:0]
	defer func() { l.spareBusy = busy }()
	for _, g := range busy {
		g.busy = false
		if g.stopped != nil {
			continue
		}
		if !g.leads() {
			l.refuseProposals(g)
			l.askLeader(g)
			continue
		}
		switch {
		case g.transferring || len(g.queue) == 0:
		case l.crowded():
			l.work(g) // until a sync completes, which begins another iteration
		default:
			l.proposeQueue(g)
		}
		promise := l.promiseOf(g)
		if g.stopped == nil && g.mayRead() && g.barriers.issue(l.rounds+1, l.ticks, promise, l.cfg.BarrierRoundsMax) {
			l.rounds++
			l.touch(g)
			context := l.readContext(l.rounds)
			g.peeks.begin(context, promise)
			l.check(g, g.readIndex(context))
			if mutant.Planted == mutant.ReadWithoutQuorum {
				g.barriers.clean(l.rounds)
				g.barriers.confirm(l.rounds, g.applied.Index)
				l.releaseBarriers(g)
			}
		}
	}
}

// promiseOf returns the reading that the group's next read round asks replicas to promise, 0 when nobody needs one, or none can be
// had without waiting for the disk.
func (l *loop) promiseOf(g *group) causal.HLC {
	if !g.barriers.promises() {
		return 0
	}
	now, ok := l.deps.Clock.TryNow()
	if !ok {
		l.extendClock()
		return 0
	}
	return now
}

// refuse answers what waits in a group that this node does not lead any more. Entries that Raft has taken are not among
// it: their fate is decided by what is committed in their place.
func (l *loop) refuse(g *group) {
	l.refuseProposals(g)
	if !g.barriers.empty() {
		l.refuseBarriers(g.barriers.drain(), notLeader(g.id, g.leader))
	}
}

func (l *loop) refuseProposals(g *group) {
	l.finishAll(g.queue, notLeader(g.id, g.leader))
	g.queue = nil
}

// askLeader asks the group's leader on behalf of the barriers that wait on a follower. It confirms its leadership as for a
// round of its own; its answer names the index to apply.
func (l *loop) askLeader(g *group) {
	switch {
	case g.leader == kv.NoNode:
		l.refuse(g)
	case g.barriers.issue(l.rounds+1, l.ticks, 0, l.cfg.BarrierRoundsMax):
		l.rounds++
		l.touch(g)
		l.check(g, g.readIndex(l.readContext(l.rounds)))
	}
}
