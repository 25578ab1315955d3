package consensus

import (
	"fmt"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// appliedEntry is one entry whose rows are in the present round's batch.
type appliedEntry struct {
	group     *group
	committed Committed
	replies   []any
	// check says that the entry asks for a check of the state at its position.
	check bool
}

// apply applies what the readied groups have committed. It goes in rounds: a round's batch holds at most one entry of
// each group, so that a machine, which reads storage, sees what the entry before did. The usual iteration has one entry
// a group and therefore one batch; a map of unwritten rows beside the batch would save batches while a replica catches
// up, at the price of a second place to look in every read of every machine.
func (l *loop) apply() {
	if l.failure != nil {
		return
	}
	rounds := 0
	for _, g := range l.readied {
		rounds = max(rounds, len(g.ready.committed))
	}
	if rounds == 0 {
		return
	}
	started := time.Now()
	for n := 0; n < rounds && l.failure == nil; n++ {
		b := l.deps.Engine.NewBatch()
		l.runRound(b, n)
		b.Close()
	}
	l.metrics.applySeconds.Observe(time.Since(started).Seconds())
	for _, g := range l.readied {
		if g.stopped == nil && l.failure == nil && len(g.ready.applied) > 0 {
			l.finishApply(g)
		}
	}
}

// runRound applies the nth committed entry of every readied group and answers who waits for them.
func (l *loop) runRound(b *storage.Batch, n int) {
	round := l.applyRound(b, n)
	if l.failure != nil || b.Empty() {
		return
	}
	if err := l.deps.Engine.ApplyNoSync(b); err != nil {
		l.fail(fmt.Errorf("consensus: apply: %w", err))
		return
	}
	for _, a := range round {
		if m, ok := a.group.machine.(*kvMachine); ok {
			m.visible(a.group.id)
		}
		l.answer(a)
		if a.check {
			l.beginCheck(a.group, a.committed.Pos)
		}
	}
}

// applyRound adds the nth committed entry of every readied group to the batch.
func (l *loop) applyRound(b *storage.Batch, n int) []appliedEntry {
	var out []appliedEntry
	for _, g := range l.readied {
		if g.stopped != nil || n >= len(g.ready.committed) {
			continue
		}
		e := g.ready.committed[n]
		a, err := l.applyEntry(b, g, e)
		if err != nil && l.quarantineAt(b, g, err) {
			err = nil
		}
		if !l.check(g, err) {
			if l.failure != nil {
				return nil
			}
			continue
		}
		b.SetApplied(g.id, storage.Applied{Index: e.GetIndex(), Term: e.GetTerm(), ConfState: g.confRow})
		out = append(out, a)
	}
	return out
}

func (l *loop) applyEntry(b *storage.Batch, g *group, e *pb.Entry) (appliedEntry, error) {
	pos := causal.Position{Term: e.GetTerm(), Index: e.GetIndex()}
	invariant.Check(pos.Index == g.applied.Index+1, "group %d: entry %d applied after %d", g.id, pos.Index, g.applied.Index)
	a := appliedEntry{group: g, committed: Committed{Group: g.id, Pos: pos}}
	if e.GetType() != pb.EntryNormal {
		return a, g.applyConf(e)
	}
	c, known := g.ahead.take(pos, &l.aheadBytes)
	var err error
	if !known {
		c, err = committed(g.id, e)
	}
	if err != nil || len(c.Commands) == 0 {
		a.check = c.Proposer != kv.NoNode
		return a, err
	}
	if g.quarantine != nil {
		return a, nil // S will be replaced
	}
	a.committed = c
	a.replies, err = g.machine.Apply(b, c)
	if err == nil {
		invariant.Check(len(a.replies) == len(c.Commands), "group %d: %d replies to %d commands", g.id, len(a.replies), len(c.Commands))
	}
	return a, err
}

// applyConf changes the group's configuration.
func (g *group) applyConf(e *pb.Entry) (err error) {
	var change pb.ConfChangeI
	if e.GetType() == pb.EntryConfChange {
		cc := &pb.ConfChange{}
		err, change = proto.Unmarshal(e.GetData(), cc), cc
	} else {
		cc := &pb.ConfChangeV2{}
		err, change = proto.Unmarshal(e.GetData(), cc), cc
	}
	if err != nil {
		return fmt.Errorf("%w: configuration change %d of group %d: %w", ErrUnreadable, e.GetIndex(), g.id, err)
	}
	defer g.catch(&err)
	g.setConf(g.rn.ApplyConfChange(change))
	return nil
}

// answer tells whoever waits for an entry, or for one that it displaced, what became of it.
func (l *loop) answer(a appliedEntry) {
	g, pos := a.group, a.committed.Pos
	g.applied = pos
	l.metrics.applied.Inc()
	mine, overwritten := g.pending.committed(pos)
	for _, e := range overwritten {
		err := kv.Errorf(kv.CodeNoLeader, "%w", ErrOverwritten)
		l.finishAll(e.ops, err)
	}
	if mine == nil {
		return
	}
	invariant.Check(len(mine.ops) == len(a.replies), "group %d: entry %d has %d replies for %d proposals",
		g.id, pos.Index, len(a.replies), len(mine.ops))
	l.metrics.proposals.WithLabelValues(endApplied).Add(float64(len(mine.ops)))
	acks := g.majority()
	for i, o := range mine.ops {
		l.finish(o, Result{Reply: a.replies[i], Acks: acks}, nil)
	}
}

// finishApply tells Raft, and the barriers, how far the group has applied.
func (l *loop) finishApply(g *group) {
	for _, m := range g.ready.applied {
		if !l.check(g, g.step(m)) {
			return
		}
	}
	if g.rn.HasReady() {
		l.touch(g)
	}
	l.releaseBarriers(g)
	if len(g.barriers.waiting) > 0 && g.mayRead() {
		l.work(g)
		l.again = true
	}
}

// releaseBarriers answers the barriers whose index has been applied, and lets those that waited for their round go next.
func (l *loop) releaseBarriers(g *group) {
	if open := g.barriers.release(g.applied.Index); len(open) > 0 {
		l.openBarriers(open)
	}
	if len(g.barriers.waiting) > 0 {
		l.work(g)
		l.again = true
	}
}
