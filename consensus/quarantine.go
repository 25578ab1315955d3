package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// quarantineLeaderless is for how many election timeouts a replica in quarantine leaves it to others to become leader.
const quarantineLeaderless = 5

// errDiffers is why a replica is quarantined whose state is not what a majority has.
var errDiffers = errors.New("its state differs from the majority's")

// quarantine is the state of a replica whose S is not to be trusted, from the moment that this is known to the moment at
// which it has been replaced. Log and votes are not concerned: the replica votes, appends and acknowledges as before, and
// counts what is committed as applied without applying it. It answers nothing from S, gives S to nobody, and does not lead.
type quarantine struct {
	why string
	// led is the tick at which a leader was last known.
	led uint64

	// cancel ends the fetch of a state to take the place of S; nil while none is under way. The fetched state reaches least
	// at least, so that the log behind that is kept.
	cancel context.CancelFunc
	least  uint64
	// stage is what was fetched, until it is installed.
	stage *storage.Stage
	// tries counts the fetches, and the next begins at the tick retryAt at the earliest.
	tries   int
	retryAt uint64
}

// quarantined is what operations get that a replica in quarantine cannot serve.
func quarantined(o kv.Outcome) *kv.Error {
	return kv.Errorf(kv.CodeNotReady, "%w", ErrQuarantined).WithOutcome(o)
}

// refusal is why the replica serves nothing; nil when it does.
func (g *group) refusal(o kv.Outcome) *kv.Error {
	switch {
	case g.stopped != nil:
		return stopped(o)
	case g.quarantine != nil:
		return quarantined(o)
	default:
		return nil
	}
}

// Sound reports whether this node's replica of the group, if it has one, may be read. Whoever reads S asks before and
// after: only with the same generation both times was the replica sound all the while. Before is before the read's barrier,
// where it has one: a rebuilt replica may be back at an earlier entry.
func (s *Store) Sound(g kv.GroupID) (generation uint64, ok bool) {
	v := s.views.get(g)
	if v == nil {
		return 0, true
	}
	generation = v.trust.Load()
	return generation, generation%2 == 0
}

// Distrust tells the store that rows of S of the group could not be read. Other errors than storage.ErrCorruption are
// ignored. The replica is quarantined and rebuilt from its peers.
func (s *Store) Distrust(g kv.GroupID, err error) {
	if !errors.Is(err, storage.ErrCorruption) {
		return
	}
	if _, sound := s.Sound(g); !sound {
		return
	}
	s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) {
			if g := l.groups[g]; g != nil {
				l.distrust(g, err)
			}
		})
		return true
	})
}

// distrust begins the quarantine of a replica. A group's only voter has nobody to be rebuilt from: it goes on, and what
// cannot be read there is answered with that error.
func (l *loop) distrust(g *group, why error) {
	if g.quarantine != nil || g.stopped != nil || g.install != nil {
		return
	}
	if len(g.conf.GetVoters()) < 2 {
		l.log.Error("a replica is damaged and has no peer to be rebuilt from", "group", g.id, "error", why)
		return
	}
	l.beginQuarantine(g, why)
	b := l.deps.Engine.NewBatch()
	defer b.Close()
	g.note(b)
	if err := l.deps.Engine.ApplyNoSync(b); err != nil {
		l.fail(fmt.Errorf("consensus: quarantine group %d: %w", g.id, err))
		return
	}
	// Whatever is applied from now on lies behind the note in Pebble's log, and cannot survive without it. That the note
	// itself survives, the next synced batch sees to.
	l.fillsQueued.Add(1)
	l.fills = slices.Insert(l.fills, 0, fill{write: g.note, done: func(error) {}}) // a failure ends the loop
	l.stepAside(g)
}

// note adds to the batch that S is not to be trusted, unless it has just been, or is just being, replaced.
func (g *group) note(b *storage.Batch) {
	if g.quarantine == nil || g.install != nil || g.stopped != nil || mutant.Planted == mutant.QuarantineForgotten {
		return
	}
	b.SetQuarantine(g.id, []byte(g.quarantine.why))
}

// beginQuarantine ends the service of a replica.
func (l *loop) beginQuarantine(g *group, why error) {
	g.quarantine = &quarantine{why: why.Error(), led: l.ticks}
	g.view.trust.Add(1)
	l.metrics.quarantines.Inc()
	l.log.Error("a replica is quarantined and will be rebuilt from its peers", "group", g.id, "applied", g.applied.Index, "why", why)
	l.failAll(g, quarantined)
	id := g.id
	l.exports.drop(func(_ uint64, e *export) bool { return e.group == id })
	g.publish()
}

// quarantineAt quarantines a replica whose machine could not read S, in the batch that counts the entry as applied. It
// returns false for an error that has another cause, or that stops the replica for want of peers.
func (l *loop) quarantineAt(b *storage.Batch, g *group, err error) bool {
	if !errors.Is(err, storage.ErrCorruption) || g.log.err != nil || g.id == kv.MetaGroup || g.quarantine != nil ||
		len(g.conf.GetVoters()) < 2 {
		return false
	}
	l.beginQuarantine(g, err)
	g.note(b)
	l.again = true
	return true
}

// endQuarantine is called once the group's state has been replaced, and the note of it with it.
func (l *loop) endQuarantine(g *group) {
	q := g.quarantine
	if q == nil {
		return
	}
	g.quarantine = nil
	if q.cancel != nil {
		q.cancel()
	}
	if q.stage != nil {
		l.running.Go(q.stage.Discard)
	}
	g.check = nil
	g.view.trust.Add(1)
	g.publish()
	l.log.Info("a replica was rebuilt; its quarantine ends", "group", g.id, "applied", g.applied.Index)
	id := g.id
	l.running.Go(func() { l.confirm(l.background, id) })
}

// stepAside hands the group over that a replica in quarantine leads.
func (l *loop) stepAside(g *group) {
	if !g.leads() || g.transferring {
		return
	}
	if to, ok := l.successor(g); ok {
		l.transfer(g.id, to)
	}
}

// mayAsk reports whether a replica may send the message: one in quarantine asks nobody for a vote as long as somebody else
// could become leader. When nobody does, its log may be the longest and the others' votes out of reach for them; then it
// leads until it has handed over its log, and serves nothing.
func (l *loop) mayAsk(g *group, m *pb.Message) bool {
	if t := m.GetType(); g.quarantine == nil || t != pb.MsgPreVote && t != pb.MsgVote {
		return true
	}
	return l.ticks-g.quarantine.led > quarantineLeaderless*uint64(l.cfg.ElectionTicks)
}

// tickQuarantine brings the rebuilding of a replica forward.
func (l *loop) tickQuarantine(g *group) {
	q := g.quarantine
	if g.leads() {
		l.stepAside(g)
		return
	}
	if g.leader != kv.NoNode {
		q.led = l.ticks
	}
	switch {
	case g.install != nil || g.offer != nil: // it is being replaced, or Raft is about to replace it whole
	case q.stage != nil:
		l.replaceState(g)
	case q.cancel == nil && l.ticks >= q.retryAt && l.fetching < l.cfg.SnapshotFetchesMax:
		l.startRebuild(g)
	}
}
