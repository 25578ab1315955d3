package quorum

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// stampTriesMax bounds how often one attempt reads the clock anew because others stamped the same key meanwhile. Each
// round that fails is one in which another write of this key, on this node, got through.
const stampTriesMax = 64

// StoreDeps is what a replica needs from its node.
type StoreDeps struct {
	State     storage.State
	Committer Committer
	Clock     *causal.Clock
	// Base returns the log position that stamps may be based on here, the zero position for a group that is not here; Fence
	// the stamp that versions of the key must be above because of what the log holds, applied or not. Nil: there is none.
	// Applied returns how far the log is applied; nil: nothing is. All three are cheap, and are called under a lock.
	Base    func(kv.GroupID) causal.Position
	Fence   func(g kv.GroupID, key []byte) causal.Stamp
	Applied func(kv.GroupID) uint64
	// KeepsSiblings reports whether the policy of the key's prefix keeps concurrent versions. Nil means that none does.
	// It decides how a message of a peer is merged, so that it has to agree with the resolver of the coordinators.
	KeepsSiblings func(key []byte) bool
	// Async reports whether the policy of the key's prefix has writes acknowledged before the disk has synced them. Nil means that none
	// has. It never holds for a key whose versions are kept beside one another.
	Async func(key []byte) bool
	// Shut reports whether no eventual write of the key may be accepted at present, and sealed that no version of it is left
	// anywhere, so that what still arrives is out of date. Floor is a reading up to which no attempt is taken on any key. Both are
	// cheap, and called under a lock; nil: everything may be accepted.
	Shut  func(key []byte) (shut, sealed bool)
	Floor func() causal.HLC
	// Damaged is told of a partition of which a row could not be read. It must not block. Nil: nobody is told.
	Damaged func(kv.PartitionID)
	// Sound reports whether the strong lane's rows of the group may be relied on here, and a generation that changes when
	// that does; Distrust is told that they could not be read. Nil means that they always may, and that nobody cares.
	Sound      func(kv.GroupID) (generation uint64, ok bool)
	Distrust   func(kv.GroupID, error)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Store is this node's replica of the eventual lane: it merges what arrives into what it holds and reads both lanes.
// Its methods may be called from many goroutines. It holds no lock while storage works.
type Store struct {
	cfg     Config
	deps    StoreDeps
	pending *pendingKeys
	metrics *storeMetrics
	// began is past all readings of this node's earlier lives.
	began causal.HLC
	lanes lanes
	// prunes are the keys whose versions may be covered by the strong lane's state.
	prunes chan pruning
	// pruning has a slot for each key that is being pruned.
	pruning chan struct{}
}

// NewStore returns the local replica.
func NewStore(cfg Config, deps StoreDeps) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Committer == nil || deps.Clock == nil || deps.Base == nil || deps.Logger == nil || deps.Registerer == nil {
		return nil, errors.New("quorum: a store needs Committer, Clock, Base, Logger and Registerer")
	}
	if deps.KeepsSiblings == nil {
		deps.KeepsSiblings = func([]byte) bool { return false }
	}
	if deps.Async == nil {
		deps.Async = func([]byte) bool { return false }
	}
	if deps.Fence == nil {
		deps.Fence = func(kv.GroupID, []byte) causal.Stamp { return causal.Stamp{} }
	}
	if deps.Applied == nil {
		deps.Applied = func(kv.GroupID) uint64 { return 0 }
	}
	if deps.Shut == nil {
		deps.Shut = func([]byte) (bool, bool) { return false, false }
	}
	if deps.Floor == nil {
		deps.Floor = func() causal.HLC { return 0 }
	}
	if deps.Damaged == nil {
		deps.Damaged = func(kv.PartitionID) {}
	}
	if deps.Sound == nil {
		deps.Sound = func(kv.GroupID) (uint64, bool) { return 0, true }
	}
	if deps.Distrust == nil {
		deps.Distrust = func(kv.GroupID, error) {}
	}
	return &Store{
		cfg: cfg, deps: deps,
		pending: newPendingKeys(deps.Committer),
		metrics: newStoreMetrics(deps.Registerer),
		began:   deps.Clock.Last(),
		lanes:   lanes{began: deps.Clock.Last()},
		prunes:  make(chan pruning, prunesMax),
		pruning: make(chan struct{}, pruningMax),
	}, nil
}

// AtHand reports whether Read and Write of the key need nothing of the disk before they return, most likely: what the key
// holds may be forgotten by then.
func (s *Store) AtHand(p kv.PartitionID, key []byte) bool {
	return s.deps.State.AtHand(p, key) && !(s.pending.await(p, key, nil) && s.deps.KeepsSiblings(key))
}

// Read returns what this replica holds of the key.
func (s *Store) Read(r ReadRequest) (ReadReply, error) {
	before := s.deps.State.Repair(r.Partition)
	if before.Quarantined {
		return ReadReply{}, errQuarantined(r.Partition)
	}
	set, _, err := s.deps.State.Siblings(r.Partition, r.Key)
	if err != nil {
		if errors.Is(err, storage.ErrCorruption) {
			s.deps.Damaged(r.Partition)
		}
		return ReadReply{}, unread(err)
	}
	// Versions move from the eventual lane's rows to the strong lane's, never back, so that reading in this order
	// misses none; one iterator over both would cost several times as much.
	strong, found, err := s.strong(r.Partition, r.Key)
	if err != nil {
		return ReadReply{}, err
	}
	if strong.Expiry != 0 && !strong.Deleted {
		now, err := s.deps.Clock.Now()
		if err != nil {
			return ReadReply{}, unread(err)
		}
		strong = expired(strong, now)
	}
	// Whoever takes rows away says so before.
	after := s.deps.State.Repair(r.Partition)
	if after.Quarantined {
		return ReadReply{}, errQuarantined(r.Partition)
	}
	if err := s.awaitKept(r.Partition, r.Key); err != nil {
		return ReadReply{}, err
	}
	return ReadReply{HasStrong: found, Strong: strong, Set: set, Healing: before.Healing || after.Healing}, nil
}

// keptPatience bounds how long a read waits for a disk. The others may answer meanwhile.
const keptPatience = time.Second

// awaitKept returns once what was read of the key is durable, where versions are kept: what is read is handed on, and others drop what
// it replaced (see writeOp.keptFirst).
func (s *Store) awaitKept(p kv.PartitionID, key []byte) error {
	if !s.deps.KeepsSiblings(key) {
		return nil
	}
	kept := make(chan error, 1)
	if !s.pending.await(p, key, func(err error) { kept <- err }) {
		return nil
	}
	timer := time.NewTimer(keptPatience)
	defer timer.Stop()
	select {
	case err := <-kept:
		if err != nil {
			return unread(err)
		}
		return nil
	case <-timer.C:
		return kv.Errorf(kv.CodeNotReady, "what this replica holds of the key has not been synced for %v", keptPatience)
	}
}

// Write merges the request's set into this replica's and calls done once: with Accepted after the result is durable,
// with a refusal at once. It blocks while it reads storage, not while it writes. done may run before Write returns.
func (s *Store) Write(w WriteRequest, done func(WriteReply, error)) { s.write(w, false, done) }

// write is Write. With heals set, what the repair watermark is above is taken too.
func (s *Store) write(w WriteRequest, heals bool, done func(WriteReply, error)) {
	// A commit that is refused reports to everyone who waits for it, which includes done.
	_ = s.pending.offer(s.take(w, heals, done))
}

// take merges what the request brings and returns the commit that has to be offered for it, nil where there is none.
func (s *Store) take(w WriteRequest, heals bool, done func(WriteReply, error)) *commit {
	if err := s.check(&w); err != nil {
		done(WriteReply{}, err)
		return nil
	}
	keeps := s.deps.KeepsSiblings(w.Key)
	// What a repair brings is struck off somewhere once it is acknowledged: a hint, a difference between replicas.
	want := durable
	if !keeps && !w.IsRepair() && !heals {
		want = s.wanted(w.Key)
	}
	e, v, err := s.open(w.Partition, w.Key)
	if err != nil {
		s.close(e)
		done(WriteReply{}, err)
		return nil
	}
	e.stripe.mu.Lock()
	s.survey(e, v)
	stored := WriteReply{Accepted: true, Healing: v.repair.Healing}
	safe := func(err error) { reportStored(stored, err, done) }
	if v.repair.Quarantined {
		e.leave()
		e.stripe.mu.Unlock()
		done(WriteReply{}, errQuarantined(w.Partition))
		return nil
	}
	if !heals || !v.repair.Healing {
		w.Set = v.current(w.Set)
	}
	if v.sealed && w.IsRepair() {
		w.Set = v.unsealed(w.Set)
	}
	var c *commit
	waiting := true
	verdict := v.decide(&w, keeps)
	switch verdict {
	case verdictRefused, verdictCovered, verdictShut:
		waiting = false
	case verdictHeld:
		if e.suspect {
			c = e.put(v.set, want, safe)
		} else {
			waiting = e.awaitDot(w.New, want, safe)
		}
	case verdictMerge:
		merged := v.merged(w.Set, keeps)
		raise(&s.lanes.of(w.Partition).pruned, merged.Pruned)
		if mutant.Planted == mutant.MergeOverwrites {
			merged = w.Set
		}
		if mutant.Planted == mutant.HintBypassesDropRule && w.IsRepair() {
			merged = causal.Merge(v.set, w.Set)
		}
		if e.suspect || !merged.Equal(v.set) {
			c = e.put(merged, want, safe)
		} else {
			waiting = e.await(want, safe)
		}
	}
	e.leave()
	e.stripe.mu.Unlock()
	s.metrics.verdicts[verdict].Inc()
	switch {
	case c != nil:
	case verdict == verdictRefused:
		base := s.deps.Base(w.Partition.Group())
		if held := v.highest().Base; held.Compare(base) > 0 {
			base = held
		}
		done(WriteReply{Highest: v.refusal(), Base: base}, nil)
	case verdict == verdictShut:
		done(WriteReply{}, errShut())
	case verdict == verdictCovered:
		done(WriteReply{Accepted: true}, nil) // the strong lane has lost nothing
	case !waiting:
		done(stored, nil)
	}
	return c
}

// wanted returns how safe an attempt has to be before it is acknowledged.
func (s *Store) wanted(key []byte) safety {
	if s.deps.Async(key) {
		return visible
	}
	return durable
}

// reportStored reports what became of an attempt that was to be stored.
func reportStored(stored WriteReply, err error, done func(WriteReply, error)) {
	if err != nil {
		stored = WriteReply{}
	}
	done(stored, err)
}

// survey completes what is known of a key of which a version may be about to be accepted. The key is noted before the promise is
// read: a strong operation promises first and looks at the notes then, so that one of the two sees the other. The stripe must be
// locked.
func (s *Store) survey(e *entry, v *versions) {
	p := e.id.partition
	at := s.lanes.of(p)
	at.note(e.key)
	v.set = e.load(v.set)
	v.repair = s.deps.State.Repair(p)
	// Under the stripe, so that Flush, which passes it, knows of all that was let in before. Before the floor, which rises with the opening
	// that lets the key's writes in again.
	v.shut, v.sealed = s.deps.Shut(e.key)
	v.pledge = max(at.pledge(e.key), s.deps.Floor())
	// An entry may have been applied since the state was read, and the fences have begun anew without it.
	if fence := s.deps.Fence(p.Group(), e.key); fence.After(v.fence) {
		v.fence = fence
	}
	raise(&at.pruned, v.set.Pruned)
}

// check refuses what no coordinator sends and what a clock that is wrong has stamped.
func (s *Store) check(w *WriteRequest) error {
	if _, ok := w.Set.Holds(w.New); !ok && !w.IsRepair() {
		return kv.Errorf(kv.CodeBadRequest, "the set does not hold the attempt that it was sent for")
	}
	latest := w.Set.Context.Latest()
	for i := range w.Set.Siblings {
		latest = max(latest, w.Set.Siblings[i].Stamp.Time)
	}
	if err := s.deps.Clock.Observe(latest); err != nil {
		s.metrics.skewed.Inc()
		return kv.Errorf(kv.CodeNotReady, "a version is stamped in the future: %w", err)
	}
	return nil
}

// open enters the key and reads what this replica holds of it. The set is current only once the entry, locked again,
// has had its say (entry.load). The entry has to be left in any case.
func (s *Store) open(p kv.PartitionID, key []byte) (*entry, *versions, error) {
	e, known := s.pending.enter(p, key)
	v := &versions{}
	var err error
	if !known {
		if v.set, _, err = s.deps.State.Siblings(p, key); err != nil {
			if errors.Is(err, storage.ErrCorruption) {
				s.deps.Damaged(p)
			}
			return e, v, unread(err)
		}
	}
	// Before the state, which then has what the fence no longer tells of.
	v.fence = s.deps.Fence(p.Group(), key)
	v.strong, v.hasStrong, err = s.strong(p, key)
	return e, v, err
}

// strong returns what the strong lane has of the key here, unless that is not to be relied on: then this replica neither
// answers reads nor accepts writes, which it could not order against what the strong lane holds. It asks before and after,
// since the replica may be found to be wrong, and even be replaced, while it is read.
func (s *Store) strong(p kv.PartitionID, key []byte) (storage.Strong, bool, error) {
	g := p.Group()
	before, sound := s.deps.Sound(g)
	row, found, err := s.deps.State.Strong(g, key)
	if err != nil {
		s.deps.Distrust(g, err)
		return row, false, unread(err)
	}
	if after, _ := s.deps.Sound(g); !sound || after != before {
		return storage.Strong{}, false, kv.Errorf(kv.CodeNotReady, "this replica of partition %d is quarantined and being rebuilt", p)
	}
	return row, found, nil
}

// scanStrong calls fn for the keys of the strong lane from from on, like strong.
func (s *Store) scanStrong(p kv.PartitionID, from []byte, fn func(key []byte, strong storage.Strong) bool) error {
	g := p.Group()
	before, sound := s.deps.Sound(g)
	err := s.deps.State.ScanStrong(g, from, func(key []byte, strong storage.Strong) (bool, error) { return fn(key, strong), nil })
	if err != nil {
		s.deps.Distrust(g, err)
		return unread(err)
	}
	if after, _ := s.deps.Sound(g); !sound || after != before {
		return kv.Errorf(kv.CodeNotReady, "this replica of partition %d is quarantined and being rebuilt", p)
	}
	return nil
}

// unread is the error of a replica that could not read its own storage. Nothing was written.
func unread(err error) error {
	return kv.Errorf(kv.CodeInternal, "the replica could not read what it holds: %w", err)
}

func (s *Store) close(e *entry) {
	e.stripe.mu.Lock()
	e.leave()
	e.stripe.mu.Unlock()
}

// placed is an attempt that the local replica has taken: what the others are sent.
type placed struct {
	set causal.SiblingSet
	dot causal.Dot
	// found says that a reader would have found a value here before.
	found bool
	// covered says that no attempt was needed: the strong lane has taken in an earlier one of the same write.
	covered bool
}

// place stamps the draft above everything held or seen, puts it on top of what this replica holds and hands it to the
// committer. done is called once that is durable or has failed, unless place itself returns an error or covered: then
// nothing of this attempt is held here, and done is never called or has been called with the same error.
func (s *Store) place(
	ctx context.Context, self kv.NodeID, p kv.PartitionID, key []byte, d *draft, r Resolver, done func(WriteReply, error),
) (placed, error) {
	out, c, err := s.draw(ctx, self, p, key, d, r, done)
	if err != nil {
		return placed{}, err
	}
	return out, s.pending.offer(c)
}

// draw is place without its last step: the commit, where there is one, is still to be offered.
func (s *Store) draw(
	ctx context.Context, self kv.NodeID, p kv.PartitionID, key []byte, d *draft, r Resolver, done func(WriteReply, error),
) (placed, *commit, error) {
	e, v, err := s.open(p, key)
	defer s.close(e)
	if err != nil {
		return placed{}, nil, err
	}
	if err := s.observe(d.above.Time); err != nil {
		return placed{}, nil, err
	}
	for tries := 0; tries < stampTriesMax; tries++ {
		now, err := s.deps.Clock.Now()
		if err != nil {
			return placed{}, nil, kv.Errorf(kv.CodeInternal, "the write could not be stamped: %w", err)
		}
		out, c, how, err := s.tryPlace(e, v, d, causal.Dot{Node: self, Time: now}, p, r, done)
		switch how {
		case placementMade:
			return out, c, nil
		case placementHealing:
			return placed{}, nil, errHealing(p)
		case placementCovered:
			return placed{covered: true}, nil, nil
		case placementOver:
			return placed{}, nil, kv.Errorf(kv.CodeDeadlineExceeded, "the write has been under way for longer than any may be")
		case placementShut:
			s.metrics.verdicts[verdictShut].Inc()
			return placed{}, nil, errShut()
		case placementImpossible:
			return placed{}, nil, err
		case placementFull:
			return placed{}, nil, kv.Errorf(kv.CodeSiblings,
				"the key has %d concurrent versions, the most that are kept; read it and write with the context of that answer", len(v.set.Siblings))
		case placementBehind:
			if err := s.waitBehind(ctx, p, key, d, v); err != nil {
				return placed{}, nil, err
			}
			tries-- // the deadline bounds these
		case placementEarly:
			s.metrics.stampRetries.Inc()
			if err := s.observe(v.refusal().Time); err != nil {
				return placed{}, nil, err
			}
		}
	}
	return placed{}, nil, kv.Errorf(kv.CodeOverloaded, "the key is written too often at once")
}

const (
	// behindPause is how long a write waits, before it looks again, for the commit index of a new term.
	behindPause = 2 * time.Millisecond
	// behindPatience is for how long it lets a refusal of another replica count that it cannot follow.
	behindPatience = 200 * time.Millisecond
)

// waitBehind waits a little for a log position to be known as one that will not be lost. When it is another replica that has the
// entry, the write goes on below it in the end: whoever refuses it then says what it may be based on.
func (s *Store) waitBehind(ctx context.Context, p kv.PartitionID, key []byte, d *draft, v *versions) error {
	select {
	case <-ctx.Done():
		return kv.Errorf(kv.CodeNotReady, "%w", errBehind)
	case <-time.After(behindPause):
	}
	// What was in the log may have been replaced.
	v.fence = s.deps.Fence(p.Group(), key)
	var err error
	if v.strong, v.hasStrong, err = s.strong(p, key); err != nil {
		return err
	}
	if d.waited += behindPause; d.waited >= behindPatience && !v.fence.After(d.above) {
		d.above, d.waited = causal.Stamp{}, 0
	}
	return nil
}

// tryPlace makes one try with one reading of the clock.
func (s *Store) tryPlace(
	e *entry, v *versions, d *draft, dot causal.Dot, p kv.PartitionID, r Resolver, done func(WriteReply, error),
) (placed, *commit, placement, error) {
	base, want := s.deps.Base(p.Group()), durable
	if !r.KeepsSiblings() {
		want = s.wanted(e.key)
	}
	e.stripe.mu.Lock()
	defer e.stripe.mu.Unlock()
	s.survey(e, v)
	if v.repair.Quarantined || v.repair.Healing && r.KeepsSiblings() {
		return placed{}, nil, placementHealing, nil
	}
	v.now, v.forgotten = dot.Time, max(s.began, e.stripe.forgotten)
	set, how, err := v.place(d, dot, base, r, s.cfg.SiblingsMax)
	if how != placementMade {
		return placed{}, nil, how, err
	}
	stored := WriteReply{Accepted: true, Healing: v.repair.Healing}
	return placed{set: set, dot: dot, found: v.live(r)}, e.put(set, want, func(err error) { reportStored(stored, err, done) }), how, nil
}

// observe makes the clock's next readings higher than t, which was seen in a version.
func (s *Store) observe(t causal.HLC) error {
	if err := s.deps.Clock.Observe(t); err != nil {
		s.metrics.skewed.Inc()
		return kv.Errorf(kv.CodeNotReady, "this write would follow one that is stamped in the future: %w", err)
	}
	return nil
}
