package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// rebuildRetryTicks is the pause after a first failed attempt to rebuild a replica; it doubles up to rebuildDoublings
	// times.
	rebuildRetryTicks = 10
	rebuildDoublings  = 5
)

// errRebuilt is why the loop has no more to do with a group: it was opened anew.
var errRebuilt = errors.New("the replica was rebuilt")

// startRebuild fetches the state of a replica that is sound, to take the place of this one's. The leader is asked first; on
// every other attempt another replica is, in turn.
func (l *loop) startRebuild(g *group) {
	q := g.quarantine
	from := l.source(g, q.tries)
	if from == kv.NoNode {
		return
	}
	q.tries++
	q.least = g.applied.Index
	ctx, cancel := context.WithCancel(l.background)
	q.cancel = cancel
	l.fetching++
	f := &fetch{Store: l.Store, group: g.id, from: from, least: q.least}
	l.log.Info("fetching a state to rebuild a replica", "group", g.id, "from", from, "index", f.least)
	id := g.id
	l.running.Go(func() {
		defer cancel()
		stage, err := f.run(ctx)
		if !l.inbox.post(func(m *mail) bool {
			m.controls = append(m.controls, func(l *loop) { l.rebuildFetched(id, q, stage, err) })
			return true
		}) && stage != nil {
			stage.Discard()
		}
	})
}

// source returns whom to fetch from.
func (l *loop) source(g *group, tries int) kv.NodeID {
	if tries%2 == 0 && g.leader != kv.NoNode {
		return g.leader
	}
	var others []kv.NodeID
	for _, id := range members(g.conf) {
		if id != l.deps.Self {
			others = append(others, id)
		}
	}
	if len(others) == 0 {
		return kv.NoNode
	}
	return others[tries/2%len(others)]
}

// rebuildFetched takes over what a fetch ended with.
func (l *loop) rebuildFetched(id kv.GroupID, q *quarantine, stage *storage.Stage, err error) {
	l.fetching--
	defer l.startFetches()
	q.cancel = nil
	g := l.groups[id]
	switch {
	case g.quarantine != q || g.stopped != nil:
		if stage != nil {
			l.running.Go(stage.Discard)
		}
	case err != nil:
		l.retryRebuild(g, err)
	default:
		q.stage = stage
		l.replaceState(g)
	}
}

func (l *loop) retryRebuild(g *group, err error) {
	q := g.quarantine
	q.retryAt = l.ticks + rebuildRetryTicks<<min(q.tries/2, rebuildDoublings)
	l.metrics.rebuildFailures.Inc()
	l.log.Warn("a replica in quarantine could not be rebuilt yet", "group", g.id, "error", err)
}

// replaceState installs the fetched state, once this replica knows that all that it holds is committed, and has come
// to it. Meanwhile, as with a snapshot, messages are stepped and no Ready is taken.
//
// The log stays, since others count on it. So the state may be older than what was counted as applied here; the log has
// what is in between, and a group that is opened anew goes on behind its applied position, as after a restart.
func (l *loop) replaceState(g *group) {
	q := g.quarantine
	at := q.stage.Applied()
	if g.leads() || g.offer != nil || g.install != nil || g.applied.Index < at.Index {
		return
	}
	stage, hard := q.stage, g.log.hard
	q.stage = nil
	if at.Index < g.log.truncated.Index {
		l.running.Go(stage.Discard)
		l.retryRebuild(g, fmt.Errorf("the fetched state, at %d, lies before the log", at.Index))
		return
	}
	g.install = &installing{}
	id := g.id
	l.running.Go(func() {
		fresh, err := l.rebuild(l.background, id, stage, hard)
		stage.Discard()
		l.inbox.post(func(m *mail) bool {
			m.controls = append(m.controls, func(l *loop) { l.rebuilt(g, fresh, err) })
			return true
		})
	})
}

// rebuild replaces the rows of S and opens the group anew. The group is nil when the rows are as they were.
func (s *Store) rebuild(ctx context.Context, id kv.GroupID, stage *storage.Stage, hard storage.HardState) (*group, error) {
	// Commit indexes are not synced, and entries may be on their way to the disk: afterwards the applied position, which is
	// synced, must not be ahead of them.
	b := s.deps.Engine.NewBatch()
	b.SetHardState(id, hard)
	err := s.deps.Engine.ApplySync(b)
	b.Close()
	if err != nil {
		return nil, err
	}
	pause := pullPauseMin
	for attempt := 1; ; attempt++ {
		if err = s.deps.Engine.ReplaceState(stage); err == nil {
			break
		}
		if errors.Is(err, storage.ErrStopped) || attempt == installAttemptsMax || !sleep(ctx, pause) {
			return nil, err
		}
		pause *= 2
	}
	fresh, err := s.openGroup(id)
	if err != nil {
		return &group{id: id}, err
	}
	return fresh, nil
}

// rebuilt goes on with a group whose state was replaced: with what was just opened in its place.
func (l *loop) rebuilt(g, fresh *group, err error) {
	g.install = nil
	switch {
	case g.stopped != nil:
		return
	case err != nil && fresh == nil && !errors.Is(err, storage.ErrStopped):
		l.retryRebuild(g, err)
		l.touch(g)
		return
	case err != nil && fresh == nil || err != nil && g.id == kv.MetaGroup:
		l.fail(fmt.Errorf("consensus: group %d: replace its state: %w", g.id, err))
		return
	case err != nil:
		l.check(g, err)
		return
	}
	l.failAll(g, quarantined)
	l.setLeader(g, kv.NoNode, false)
	g.stopped = errRebuilt // whatever still points to it lets go of it
	fresh.view, fresh.quarantine, fresh.eager, fresh.lastSync = g.view, g.quarantine, false, l.batches
	fresh.sent, fresh.received = g.sent, g.received+1
	g.quarantine = nil
	l.metrics.snapshots.WithLabelValues(directionReceived, resultOK).Inc()
	i := slices.Index(l.order, g)
	invariant.Check(i >= 0, "group %d was rebuilt and is not there", g.id)
	l.order[i] = fresh
	l.take(fresh)
	if r, ok := fresh.machine.(Restorer); ok && !l.check(fresh, r.Restored()) {
		return
	}
	l.endQuarantine(fresh)
}
