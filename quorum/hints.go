package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Standing is what the partition map says of a hint's target.
type Standing uint8

const (
	// StandingUnknown says that there is no map yet.
	StandingUnknown Standing = iota
	// StandingOwner says that the target replicates the partition.
	StandingOwner
	// StandingMoved says that the target is a member and does not replicate the partition.
	StandingMoved
	// StandingLeft says that the target is no member.
	StandingLeft
)

// HintDeps is what a store of hints needs from its node.
type HintDeps struct {
	Self      kv.NodeID
	State     storage.State
	Committer Committer
	Clock     *causal.Clock
	Replicas  Replica
	// Alive says what gossip believes of a node.
	Alive func(kv.NodeID) bool
	// Target returns the epoch of the map in force, and what that map says of the target.
	Target func(kv.PartitionID, kv.NodeID) (kv.Epoch, Standing)
	// Shut reports whether hints of the key are refused at present, because a policy lets no eventual write in: what is worth
	// keeping of them is held by their coordinator. It is cheap, and called under a lock; nil: none are.
	Shut func(key []byte) bool
	// Name spells a node in metrics.
	Name       func(kv.NodeID) string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Hints keeps on the disk what other nodes could not take, and hands it to them once they are back. What it does with a hint
// is nobody's acknowledgement but its own: see DESIGN.md.
type Hints struct {
	cfg     HintConfig
	deps    HintDeps
	metrics *hintMetrics
	// boot is a reading of the clock from before this life took its first hint.
	boot causal.HLC

	// mu guards the fields below and all that they refer to. Nothing is called under it but pure code.
	mu sync.Mutex
	// seq is the last one given to a hint.
	seq     causal.HLC
	targets map[kv.NodeID]*hintTarget
	// recent has the newest hint of some keys. Invariant: at most CoalesceMax.
	recent map[hintKey]*recentHint
	// floors holds for each partition what Settled was asked for last: no attempt from up to then is kept.
	floors map[kv.PartitionID]causal.HLC
	// holders are the nodes that were asked to keep hints, by partition.
	holders map[kv.PartitionID]map[kv.NodeID]*hintHolder
	// queuedBytes is the size of the hints that are not on the disk yet.
	queuedBytes int64
}

// hintTarget is what is kept for one node.
type hintTarget struct {
	queues map[kv.PartitionID]*hintQueue
	hints  int
	bytes  int64
	// reading says that hints are being read from the disk. superseded holds those whose place another one takes: until
	// that is durable and nobody is reading any more they may still be met. flying are those being handed over or dropped;
	// nobody else removes them.
	reading    bool
	superseded map[storage.HintID]bool // true: only a reader can still meet it
	flying     map[storage.HintID]struct{}
	// tending says that a goroutine looks after the target.
	tending bool
	// failures counts the attempts in a row that the target did not take; none is made before retryAt.
	failures int
	retryAt  time.Time
}

// hintQueue is what is kept of one partition for one node.
type hintQueue struct {
	hints int
	// queued counts the hints among them that are not on the disk yet.
	queued int
	// oldest is at or below the first hint's seq; it is to be looked up again if stale.
	oldest causal.HLC
	stale  bool
}

type hintKey struct {
	target    kv.NodeID
	partition kv.PartitionID
	key       string
}

type hintState uint8

const (
	hintQueued hintState = iota
	hintFilled
	hintDurable
)

// recentHint is the newest hint of a key.
type recentHint struct {
	key   hintKey
	id    storage.HintID
	bytes int
	// context is the set's. A set that another one's context dominates has nothing to add to it: sets travel whole.
	context causal.Vector
	// set is what will be written; it is given up once it was.
	set   causal.SiblingSet
	state hintState
	// replaces is the hint whose place it takes; no target: none.
	replaces      storage.HintID
	replacedBytes int
	waiters       []func(error)
}

// NewHints returns the store with what the disk holds. Run hands that over.
func NewHints(cfg HintConfig, deps HintDeps) (*Hints, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Self == kv.NoNode || deps.Committer == nil || deps.Clock == nil || deps.Replicas == nil || deps.Alive == nil ||
		deps.Target == nil || deps.Name == nil || deps.Logger == nil || deps.Registerer == nil {
		return nil, errors.New("quorum: a store of hints lacks a collaborator")
	}
	s := &Hints{
		cfg: cfg, deps: deps,
		targets: map[kv.NodeID]*hintTarget{}, recent: map[hintKey]*recentHint{}, floors: map[kv.PartitionID]causal.HLC{},
		holders: map[kv.PartitionID]map[kv.NodeID]*hintHolder{},
	}
	var err error
	if s.boot, err = deps.Clock.Now(); err != nil {
		return nil, fmt.Errorf("quorum: hints: %w", err)
	}
	s.seq = s.boot
	err = deps.State.ScanHintIDs(func(id storage.HintID, bytes int) bool {
		s.target(id.Target).account(id, bytes)
		s.seq = max(s.seq, id.Seq)
		return true
	})
	if err == nil {
		err = deps.State.ScanHintHolders(func(p kv.PartitionID, id kv.NodeID) { *s.holder(p, id) = hintHolder{asked: s.boot, durable: true} })
	}
	if err != nil {
		return nil, err
	}
	s.metrics = newHintMetrics(deps.Registerer, s)
	return s, nil
}

// target returns what is kept for the node. mu must be held.
func (s *Hints) target(id kv.NodeID) *hintTarget {
	t := s.targets[id]
	if t == nil {
		t = &hintTarget{
			queues: map[kv.PartitionID]*hintQueue{}, superseded: map[storage.HintID]bool{}, flying: map[storage.HintID]struct{}{},
		}
		s.targets[id] = t
	}
	return t
}

func (t *hintTarget) account(id storage.HintID, bytes int) *hintQueue {
	q := t.queues[id.Partition]
	if q == nil {
		q = &hintQueue{}
		t.queues[id.Partition] = q
	}
	if q.hints == 0 || id.Seq < q.oldest {
		q.oldest = id.Seq
	}
	q.hints++
	t.hints++
	t.bytes += int64(bytes)
	return q
}

func (t *hintTarget) unaccount(id storage.HintID, bytes int) {
	q := t.queues[id.Partition]
	if q == nil {
		return
	}
	q.hints--
	q.stale = true
	t.hints--
	t.bytes -= int64(bytes)
	if q.hints == 0 {
		delete(t.queues, id.Partition)
	}
}

// Keep keeps a set for a replica that did not take the attempt in it. Nobody is told: what becomes of it is counted.
func (s *Hints) Keep(target kv.NodeID, p kv.PartitionID, key []byte, set causal.SiblingSet, attempt causal.Dot) {
	s.add(hintKey{target, p, string(key)}, set, attempt, func(error) {})
}

// Take keeps a set for another node, w.HintFor, on behalf of a peer, and calls done like Store.Write: with Accepted once the
// hint is durable.
func (s *Hints) Take(w WriteRequest, done func(WriteReply, error)) {
	attempt, ok := w.Set.Holds(w.New)
	if !ok || w.HintFor == s.deps.Self || w.HintFor == kv.NoNode {
		done(WriteReply{}, kv.Errorf(kv.CodeBadRequest, "the set is no hint for another node"))
		return
	}
	if attempt.Dot.Time <= s.boot {
		// What this node said of the repair watermark in an earlier life is not on its disk, but is older than this life.
		done(WriteReply{}, kv.Errorf(kv.CodeNotReady, "the node has just started").WithOutcome(kv.OutcomeNotApplied))
		return
	}
	if err := s.deps.Clock.Observe(max(w.Set.Context.Latest(), attempt.Stamp.Time)); err != nil {
		done(WriteReply{}, kv.Errorf(kv.CodeNotReady, "a version is stamped in the future: %w", err))
		return
	}
	s.add(hintKey{w.HintFor, w.Partition, string(w.Key)}, w.Set, w.New, func(err error) {
		done(WriteReply{Accepted: err == nil}, err)
	})
}

// add keeps a set, and calls done once it is durable or was dropped.
func (s *Hints) add(k hintKey, set causal.SiblingSet, attempt causal.Dot, done func(error)) {
	bytes := storage.HintBytes([]byte(k.key), set)
	s.mu.Lock()
	r, durable, reason := s.place(k, set, attempt, bytes, done)
	s.mu.Unlock()
	switch {
	case reason != "":
		if mutant.Planted != mutant.HintDroppedSilently {
			s.metrics.drop(reason, 1)
		}
		done(kv.Errorf(kv.CodeOverloaded, "the hint for node %d was dropped: %s", k.target, reason).WithOutcome(kv.OutcomeNotApplied))
	case durable:
		done(nil)
	case r != nil:
		err := s.deps.Committer.Commit(func(b *storage.Batch) { s.fill(r, b) }, func(err error) { s.done(r, err) })
		if err != nil {
			s.done(r, err)
		}
	}
}

// place finds the hint's place. It returns the hint to commit, nil when one that is under way or durable holds the set too,
// or why it was dropped. mu must be held.
func (s *Hints) place(k hintKey, set causal.SiblingSet, attempt causal.Dot, bytes int, done func(error)) (
	commit *recentHint, durable bool, dropped string,
) {
	t, r := s.target(k.target), s.recent[k]
	switch {
	case s.deps.Shut != nil && s.deps.Shut([]byte(k.key)):
		return nil, false, dropShut
	case attempt.Time <= s.floors[k.partition]:
		return nil, false, dropWatermark
	case r != nil && r.context.Dominates(set.Context):
		if r.state == hintDurable {
			return nil, true, ""
		}
		r.waiters = append(r.waiters, done)
		return nil, false, ""
	case r != nil && r.state == hintQueued:
		set = causal.Merge(r.set, set)
		grown := storage.HintBytes([]byte(k.key), set) - r.bytes
		if reason := s.room(t, grown); reason != "" {
			return nil, false, reason
		}
		r.set, r.context, r.bytes = set, set.Context, r.bytes+grown
		t.bytes += int64(grown)
		s.queuedBytes += int64(grown)
		r.waiters = append(r.waiters, done)
		s.metrics.coalesced.Inc()
		return nil, false, ""
	}
	next := &recentHint{key: k, bytes: bytes, context: set.Context, set: set, waiters: []func(error){done}}
	if r != nil && set.Context.Dominates(r.context) {
		if _, flying := t.flying[r.id]; !flying {
			next.replaces, next.replacedBytes = r.id, r.bytes
		}
	}
	if reason := s.room(t, bytes-next.replacedBytes); reason != "" {
		return nil, false, reason
	}
	s.seq = max(s.seq+1, s.deps.Clock.Last())
	next.id = storage.HintID{Target: k.target, Partition: k.partition, Seq: s.seq}
	if next.replacedBytes > 0 {
		t.superseded[next.replaces] = false
	}
	if r == nil && len(s.recent) >= s.cfg.CoalesceMax {
		for forgotten := range s.recent {
			delete(s.recent, forgotten)
			break
		}
	}
	s.recent[k] = next
	t.account(next.id, bytes).queued++
	s.queuedBytes += int64(bytes)
	return next, false, ""
}

// room returns why there is no room for so many bytes, "" if there is. mu must be held.
func (s *Hints) room(t *hintTarget, bytes int) (dropped string) {
	switch {
	case t.bytes+int64(bytes) > s.cfg.BytesMax:
		return dropBytes
	case s.queuedBytes+int64(bytes) > s.cfg.QueueBytesMax:
		return dropQueue
	}
	return ""
}

// fill encodes a hint, and the removal of the one whose place it takes.
func (s *Hints) fill(r *recentHint, b *storage.Batch) {
	s.mu.Lock()
	set := r.set
	r.state, r.set = hintFilled, causal.SiblingSet{}
	s.mu.Unlock()
	b.SetHint(r.id, []byte(r.key.key), set)
	if r.replaces.Target != kv.NoNode {
		b.DeleteHint(r.replaces)
	}
}

// done notes how the commit of a hint went, and tells those who wait for it.
func (s *Hints) done(r *recentHint, err error) {
	s.mu.Lock()
	t := s.target(r.key.target)
	if q := t.queues[r.id.Partition]; q != nil {
		q.queued--
	}
	s.queuedBytes -= int64(r.bytes)
	waiters := r.waiters
	r.waiters = nil
	if err != nil {
		// After a commit that failed half way nobody knows what the disk holds; a node whose commits fail stops.
		t.unaccount(r.id, r.bytes)
		if s.recent[r.key] == r {
			delete(s.recent, r.key)
		}
		delete(t.superseded, r.replaces)
	} else {
		r.state = hintDurable
		if r.replaces.Target != kv.NoNode {
			t.unaccount(r.replaces, r.replacedBytes)
			if t.superseded[r.replaces] = true; !t.reading {
				delete(t.superseded, r.replaces)
			}
		}
	}
	s.mu.Unlock()
	if err != nil {
		s.metrics.drop(dropStorage, 1)
	} else {
		s.metrics.queued.Inc()
	}
	for _, w := range waiters {
		w(err)
	}
}

// Settled reports whether no hint of the partition holds anything stamped at or below the time, and refuses attempts from
// up to then from now on, in this life. In later ones Take refuses all from before it began, which is more.
func (s *Hints) Settled(_ context.Context, p kv.PartitionID, upTo causal.HLC) (bool, error) {
	s.mu.Lock()
	s.floors[p] = max(s.floors[p], upTo)
	var ask []kv.NodeID
	queued := 0
	for id, t := range s.targets {
		if q := t.queues[p]; q != nil {
			ask = append(ask, id)
			queued += q.queued
		}
	}
	s.mu.Unlock()
	if queued > 0 {
		return false, nil
	}
	settled := true
	for _, id := range ask {
		err := s.deps.State.ScanHints(storage.HintID{Target: id, Partition: p}, func(h storage.Hint, damaged error) bool {
			for i := range h.Set.Siblings {
				settled = settled && h.Set.Siblings[i].Dot.Time > upTo
			}
			settled = settled && damaged == nil
			return settled
		})
		if err != nil || !settled {
			return false, err
		}
	}
	return true, nil
}
