package consensus

import (
	"math"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// truncation is a plan to drop the front of a group's log. It is made when the log has grown, and carried out once the
// state that makes the entries superfluous is durable.
//
// Batches of applied entries are not synced, so that after a crash the applied index on the disk may lie behind the one
// in memory, and the entries between them are needed again. What was applied when the plan was made is durable as soon as
// a batch written later is, because Pebble's log keeps their order.
type truncation struct {
	// applied is how far the group had been applied when the plan was made.
	applied uint64
	// batch is the number of the first batch that is written after that.
	batch uint64
}

// follower is what a leader knows of another replica.
type follower struct {
	// heard is the tick at which it was last known to be there.
	heard uint64
	// match is the last index that it is known to share with this log; 0 until its first answer to this leadership.
	match uint64
}

// planTruncation notes that a log has grown so much that dropping its front pays. It runs every tick.
func (l *loop) planTruncation(g *group) {
	if g.leads() {
		l.notePeers(g)
	}
	if g.plan != nil || g.log.size.bytes() < 2*l.cfg.LogTailBytes || g.applied.Index == g.log.truncated.Index {
		return
	}
	g.plan = &truncation{applied: g.applied.Index, batch: l.batches + 1}
	l.planned = append(l.planned, g)
}

// notePeers keeps track of which replicas of a led group are there, and how far they are.
func (l *loop) notePeers(g *group) {
	if g.peers == nil {
		g.peers = make(map[kv.NodeID]follower)
	}
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if kv.NodeID(id) == l.deps.Self {
			return
		}
		f := g.peers[kv.NodeID(id)]
		if f.match = pr.Match; pr.RecentActive || f.heard == 0 {
			f.heard = l.ticks
		}
		g.peers[kv.NodeID(id)] = f
	})
}

// truncate adds to the batch the truncations whose time has come. They have no sync of their own: until some later batch
// is durable they do no harm when they are lost.
func (l *loop) truncate(b *storage.Batch) {
	if len(l.planned) == 0 {
		return
	}
	if mutant.Planted == mutant.TruncatedTooEarly {
		b = l.deps.Engine.NewBatch()
		defer func() {
			_ = l.deps.Engine.ApplySync(b)
			b.Close()
		}()
	}
	waiting := l.planned[:0]
	for _, g := range l.planned {
		if g.plan.batch > l.durable && mutant.Planted != mutant.TruncatedTooEarly && g.stopped == nil {
			waiting = append(waiting, g)
			continue
		}
		plan := *g.plan
		g.plan = nil
		if g.stopped == nil && g.install == nil {
			l.check(g, l.carryOut(b, g, plan))
		}
	}
	clear(l.planned[len(waiting):])
	l.planned = waiting
}

// carryOut truncates a group's log in the batch as far as it may be.
func (l *loop) carryOut(b *storage.Batch, g *group, plan truncation) error {
	to := l.limitsOf(g, plan.applied).index()
	if n := len(g.ready.committed); mutant.Planted == mutant.TruncatedTooEarly && n > 0 {
		to = g.ready.committed[n-1].GetIndex() // applied in a moment, and not durable for long
	}
	// A snapshot that was installed meanwhile may have moved the log beyond the plan.
	if to <= g.log.truncated.Index {
		return nil
	}
	term, err := g.log.Term(to)
	if err != nil {
		return err
	}
	g.log.truncate(b, causal.Position{Term: term, Index: to})
	l.metrics.truncations.Inc()
	return nil
}

// truncationLimits are what keeps entries in a log.
type truncationLimits struct {
	// applied is durably applied here.
	applied uint64
	// tail is where the part of the log begins that is always kept.
	tail uint64
	// snapshots is the lowest index of a snapshot that is under way to a follower, which will need what follows it.
	snapshots uint64
	// match is the lowest index that a follower which is there has not shown to go beyond; it does not count once the log
	// is oversize.
	match    uint64
	oversize bool
}

// index returns up to where the log may be truncated.
func (t truncationLimits) index() uint64 {
	to := min(t.applied, t.tail, t.snapshots)
	if !t.oversize {
		to = min(to, t.match)
	}
	return to
}

func (l *loop) limitsOf(g *group, applied uint64) truncationLimits {
	t := truncationLimits{
		applied: applied, tail: g.log.size.before(l.cfg.LogTailBytes), snapshots: math.MaxUint64, match: math.MaxUint64,
		oversize: g.log.size.bytes() > l.cfg.LogBytesMax,
	}
	if q := g.quarantine; q != nil && (q.cancel != nil || q.stage != nil) {
		t.snapshots = q.least // the state that is being fetched goes on from there
	}
	if !g.leads() {
		return t
	}
	for _, s := range g.sends {
		t.snapshots = min(t.snapshots, s.index)
	}
	for _, f := range g.peers {
		switch {
		case l.ticks-f.heard > uint64(l.cfg.LogHoldTicks):
		case f.match == 0:
			// A new leader does not know yet what one that is away has. It may be all that is still here.
			t.match = min(t.match, g.log.truncated.Index)
		case f.match >= g.log.truncated.Index:
			t.match = min(t.match, f.match)
		default: // it needs a snapshot already, and keeps nothing
		}
	}
	return t
}
