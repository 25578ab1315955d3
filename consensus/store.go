package consensus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Store holds this node's Raft groups. Its methods may be called from any goroutine; all work on the groups happens in
// Run's.
type Store struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	inbox   *inbox
	views   views
	// contextPrefix makes read contexts of this process differ from those of every other.
	contextPrefix [8]byte

	// pendingBytes is the size of all proposals that were not answered yet, fillsQueued the number of eventual writes
	// that are in no batch yet, and fillBytes the size of those that are being synced.
	pendingBytes atomic.Int64
	fillsQueued  atomic.Int64
	fillBytes    atomic.Int64

	// pressure is storage's, as bits of a float64; at most a tick old.
	pressure atomic.Uint64

	ops     sync.Pool // *op
	waits   sync.Pool // *barrier
	started atomic.Bool
	// ended is closed when Run returns.
	ended chan struct{}
	// bootstrapping has one slot: whoever holds the token may create groups. A channel, because it is held across I/O.
	bootstrapping chan struct{}
	// exports are the snapshots that peers pull, at the pace that is allowed.
	exports exports
	pace    pace
	// checkPace is the pace at which states are hashed.
	checkPace pace
	// violations counts what checks led from here have found.
	violations atomic.Uint64
	// opened are the groups found on disk, until Run takes them.
	opened []*group
}

// New opens every group that this node's disk holds. It fails when the metadata group is among them and Deps.Meta is nil,
// and when a group's rows do not fit together.
func New(cfg Config, deps Deps) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Engine == nil || deps.Sender == nil || deps.Puller == nil || deps.Clock == nil {
		return nil, errors.New("consensus: a store needs an engine, a sender, a puller and a clock")
	}
	if deps.Self == kv.NoNode || uint64(deps.Self) >= math.MaxUint64-1 {
		return nil, fmt.Errorf("consensus: %d is no node id", deps.Self)
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: cfg, deps: deps, log: deps.Logger.With("component", "consensus"), inbox: newInbox(),
		bootstrapping: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	s.ops.New = func() any { return &op{done: make(chan struct{}, 1)} }
	s.waits.New = func() any { return &barrier{done: make(chan error, 1)} }
	if _, err := rand.Read(s.contextPrefix[:]); err != nil {
		return nil, fmt.Errorf("consensus: random prefix of read contexts: %w", err)
	}
	// A session of an earlier life must not be taken for one of this.
	s.exports.sessions, s.exports.last = make(map[uint64]*export), binary.BigEndian.Uint64(s.contextPrefix[:])
	s.pace.perSecond, s.checkPace.perSecond = cfg.SnapshotBytesPerSecond, cfg.CheckBytesPerSecond
	var err error
	if s.metrics, err = newMetrics(deps.Registerer, s); err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	groups, err := deps.Engine.Log().Groups()
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	for _, id := range groups {
		g, err := s.openGroup(id)
		if err != nil {
			return nil, err
		}
		s.opened = append(s.opened, g)
		s.views.add(g.view)
	}
	return s, nil
}

// machineOf returns a state machine for a group.
func (s *Store) machineOf(g kv.GroupID) (Machine, error) {
	if g > kv.PartitionID(math.MaxUint16).Group() {
		return nil, fmt.Errorf("consensus: %d is no group id", g)
	}
	if g != kv.MetaGroup {
		return &kvMachine{state: s.deps.Engine.State(), notify: s.deps.Settled}, nil
	}
	if s.deps.Meta == nil {
		return nil, errors.New("consensus: this node's disk holds a replica of the metadata group, which needs its state machine")
	}
	return s.deps.Meta, nil
}

// Bootstrap creates this node's replica of a group that did not exist before, on every voter with the same list. The
// first voter is the preferred leader. It returns once the replica is durable, and does nothing when there already is
// one. The log begins after position (term 1, index 1), so that a replica added later needs a snapshot.
func (s *Store) Bootstrap(g kv.GroupID, voters []kv.NodeID) error {
	if !slices.Contains(voters, s.deps.Self) {
		return fmt.Errorf("consensus: node %d is not among the voters %v of group %d", s.deps.Self, voters, g)
	}
	seen := make(map[kv.NodeID]bool)
	for _, v := range voters {
		if v == kv.NoNode || seen[v] {
			return fmt.Errorf("consensus: the voters %v of group %d are not distinct nodes", voters, g)
		}
		seen[v] = true
	}
	s.bootstrapping <- struct{}{}
	defer func() { <-s.bootstrapping }()
	if s.views.get(g) != nil {
		return nil
	}
	if _, err := s.machineOf(g); err != nil {
		return err
	}
	if err := s.writeFirstState(g, voters); err != nil {
		return fmt.Errorf("consensus: bootstrap group %d: %w", g, err)
	}
	created, err := s.openGroup(g)
	if err != nil {
		return err
	}
	if !s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) { l.adopt(created) })
		return true
	}) {
		return stopped(kv.OutcomeNotApplied)
	}
	s.views.add(created.view)
	return nil
}

// firstPosition is where every group's log begins: the position before its first entry.
var firstPosition = causal.Position{Term: 1, Index: 1}

func (s *Store) writeFirstState(g kv.GroupID, voters []kv.NodeID) error {
	b := s.deps.Engine.NewBatch()
	defer b.Close()
	b.SetHardState(g, storage.HardState{Term: firstPosition.Term, Commit: firstPosition.Index})
	b.SetTruncated(g, firstPosition)
	b.SetApplied(g, storage.Applied{
		Index: firstPosition.Index, Term: firstPosition.Term, ConfState: encodeConf(confOf(voters)),
	})
	return s.deps.Engine.ApplySync(b)
}

// Receive takes a frame that a peer sent with Sender.Send. It never blocks and keeps nothing of the frame. Messages are
// dropped when too many wait already; only a frame that does not decode is an error.
func (s *Store) Receive(from kv.NodeID, frame []byte) error {
	in, err := decodeFrame(frame)
	if err != nil {
		s.metrics.dropped.WithLabelValues(dropBadFrame).Inc()
		return err
	}
	kept := in[:0]
	for _, m := range in {
		if acceptable(m.msg, from, s.deps.Self) {
			kept = append(kept, m)
		}
	}
	if refused := len(in) - len(kept); refused > 0 {
		s.metrics.dropped.WithLabelValues(dropRefused).Add(float64(refused))
	}
	if len(kept) > 0 && !s.inbox.postMessages(kept, s.cfg.InboxBytesMax) {
		s.metrics.dropped.WithLabelValues(dropInboxFull).Add(float64(len(kept)))
	}
	return nil
}

// Commit lets the eventual lane write durably: write is called by the loop and adds to the batch of its next iteration,
// done is called once that batch is durable, or is known not to become so. Neither may block, and write only encodes.
// An error from Commit itself means that neither will be called.
func (s *Store) Commit(write func(*storage.Batch), done func(error)) error {
	return s.commit(fill{write: write, done: done})
}

// CommitAsync is Commit for who does not wait for the disk: visible is called as soon as reads find what was written, unless done is
// called with an error first. The sync is asked for within Config.LateMax of that, with what else is written then.
func (s *Store) CommitAsync(write func(*storage.Batch), visible func(), done func(error)) error {
	return s.commit(fill{write: write, visible: visible, done: done})
}

func (s *Store) commit(f fill) error {
	if s.deps.Engine.Pressure() >= s.cfg.PressureMax {
		return s.overloaded("pressure", "storage is close to stalling")
	}
	if s.fillBytes.Load() > s.cfg.FillBytesMax || s.fillsQueued.Add(1) > int64(s.cfg.FillsMax) {
		s.fillsQueued.Add(-1)
		return s.overloaded("fills", "too many eventual writes wait for the disk")
	}
	if !s.inbox.post(func(m *mail) bool {
		m.fills = append(m.fills, f)
		return true
	}) {
		s.fillsQueued.Add(-1)
		return stopped(kv.OutcomeNotApplied)
	}
	return nil
}

func (s *Store) overloaded(limit, why string) *kv.Error {
	s.metrics.refused.WithLabelValues(limit).Inc()
	return kv.Errorf(kv.CodeOverloaded, "%s", why)
}

// Leader returns the node that leads the group as far as this node knows, kv.NoNode when it knows none or holds no
// replica of the group.
func (s *Store) Leader(g kv.GroupID) kv.NodeID {
	if v := s.views.get(g); v != nil {
		return v.leaderID()
	}
	return kv.NoNode
}

// Applied returns how far this node has applied the group's log.
func (s *Store) Applied(g kv.GroupID) uint64 {
	if v := s.views.get(g); v != nil {
		return v.read().Applied
	}
	return 0
}

// Status describes this node's replica of the group; false when there is none.
func (s *Store) Status(g kv.GroupID) (GroupStatus, bool) {
	v := s.views.get(g)
	if v == nil {
		return GroupStatus{}, false
	}
	st := v.read()
	return st, true
}

// TransferAll hands every group that this node leads, and that has another voter, over to a caught-up one, and returns
// when that is done, ctx is, or the store has stopped. While it runs, groups that come to this node are passed on too.
func (s *Store) TransferAll(ctx context.Context) {
	d := &drain{done: make(chan struct{})}
	if !s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) { l.startDrain(d) })
		return true
	}) {
		return
	}
	select {
	case <-d.done:
	case <-s.ended:
	case <-ctx.Done():
		s.inbox.post(func(m *mail) bool {
			m.controls = append(m.controls, func(l *loop) { l.stopDrain(d) })
			return true
		})
	}
}
