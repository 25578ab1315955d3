package quorum

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

const (
	// filterWords is the size of a partition's filter of unsettled keys: 64 Ki bits.
	filterWords = 1 << 10
	// promiseSlots is the number of promises that the keys of a partition share.
	promiseSlots = 1 << 8
	// pruningMax is how many keys are pruned at once.
	pruningMax = 1 << 8
	// prunesMax is how many keys may wait to be pruned. What comes beside them is pruned when the filter is built anew.
	prunesMax = 1 << 12
	// tendInterval is how often Tend looks for work, and tendShare the part of the time that it may spend on one partition.
	tendInterval = 250 * time.Millisecond
	tendShare    = 20
)

// lane is what a replica knows by heart of one partition's eventual lane: which keys may have versions that the strong lane's
// state does not cover, and what it has promised to strong operations. After a restart it does not know the first until Tend
// has looked, and says so; and it has promised everything up to the ceiling of its clock, which was never below a promise.
type lane struct {
	// promise is the reading up to which no attempt is taken on any key, promises that for the keys of each slot.
	promise  atomic.Uint64
	promises [promiseSlots]atomic.Uint64
	// filter has every key of which a version was accepted since it was built, or was there then; nil is not known. next is
	// the one being built, which gets what comes meanwhile.
	//
	// Invariant: a key is noted under its stripe's lock, before the promise is read and the version accepted.
	filter, next atomic.Pointer[keyFilter]
	// pruned is the highest log index of a state that a set held here was pruned by.
	pruned atomic.Uint64
	// gone counts the keys that lost their versions since the filter was built.
	gone atomic.Int64
	// again is when the filter may be built anew. Only Tend uses it.
	again time.Time
}

// keyFilter is a set of keys that may say that it has one which it has not, and never the contrary.
type keyFilter struct {
	any   atomic.Bool
	words [filterWords]atomic.Uint64
}

func (f *keyFilter) bit(key []byte) (*atomic.Uint64, uint64) {
	h := xxhash.Sum64(key)
	return &f.words[h>>6%filterWords], 1 << (h & 63)
}

func (f *keyFilter) add(key []byte) {
	// Whoever finds the key finds that there is one, too.
	if !f.any.Load() {
		f.any.Store(true)
	}
	word, bit := f.bit(key)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
}

func (f *keyFilter) has(key []byte) bool {
	word, bit := f.bit(key)
	return word.Load()&bit != 0
}

// maybe reports whether the key may have an unsettled version here.
func (l *lane) maybe(key []byte) bool {
	f := l.filter.Load()
	return f == nil || f.has(key)
}

// none reports whether no key has one.
func (l *lane) none() bool {
	f := l.filter.Load()
	return f != nil && !f.any.Load()
}

// note says that a version of the key is about to be accepted. The filter that is being built is looked for first: it takes the place of the
// present one before it is forgotten, so that a note which misses it there is made in it here.
func (l *lane) note(key []byte) {
	next := l.next.Load()
	for _, f := range [...]*keyFilter{next, l.filter.Load()} {
		if f != nil {
			f.add(key)
		}
	}
}

func (l *lane) slot(key []byte) *atomic.Uint64 {
	return &l.promises[xxhash.Sum64(key)>>32%promiseSlots]
}

// pledge returns the reading up to which no attempt on the key is taken.
func (l *lane) pledge(key []byte) causal.HLC {
	return causal.HLC(max(l.promise.Load(), l.slot(key).Load()))
}

// raise makes v at least to.
func raise(v *atomic.Uint64, to uint64) {
	for {
		old := v.Load()
		if old >= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}

// lanes are the lanes of all partitions that anybody has asked for. They are only ever added, so readers take a snapshot and never
// lock: the store loop asks for one with every entry that it applies and every read round that it answers.
type lanes struct {
	adding sync.Mutex // serializes writers
	all    atomic.Pointer[map[kv.PartitionID]*lane]
	// began is past all readings of this node's earlier lives, and so past all that it promised in them.
	began causal.HLC
}

func (l *lanes) of(p kv.PartitionID) *lane {
	if at := l.known()[p]; at != nil {
		return at
	}
	l.adding.Lock()
	defer l.adding.Unlock()
	if at := l.known()[p]; at != nil {
		return at
	}
	at := &lane{}
	if mutant.Planted != mutant.PromiseForgotten {
		at.promise.Store(uint64(l.began))
	}
	if mutant.Planted == mutant.UnsettledForgotten {
		at.filter.Store(&keyFilter{})
	}
	next := map[kv.PartitionID]*lane{p: at}
	maps.Copy(next, l.known())
	l.all.Store(&next)
	return at
}

// known returns the lanes by partition, which the caller only reads.
func (l *lanes) known() map[kv.PartitionID]*lane {
	if all := l.all.Load(); all != nil {
		return *all
	}
	return nil
}

// Unsettled reports whether this replica holds no version of any key of the partition that the strong lane's state may not
// cover, and the log index that this depends on beside what is applied here. It first takes no more attempts with readings up
// to promise; when that could not be kept after a crash, it knows nothing. It never blocks.
func (s *Store) Unsettled(p kv.PartitionID, promise causal.HLC) (need uint64, none bool) {
	at := s.lanes.of(p)
	if s.unfit(p) != nil {
		return 0, false
	}
	if promise != 0 {
		if promise >= s.deps.Clock.Ceiling() || s.deps.Clock.Observe(promise) != nil {
			return 0, false
		}
		if !at.none() {
			return 0, false // the operation will ask about its key alone
		}
		raise(&at.promise, uint64(promise))
	}
	none = at.none()
	need = at.pruned.Load()
	return need, none && s.unfit(p) == nil // whoever takes rows away says so before
}

// unfit returns why this replica cannot say what the partition's eventual lane holds.
func (s *Store) unfit(p kv.PartitionID) error {
	switch r := s.deps.State.Repair(p); {
	case r.Quarantined:
		return errQuarantined(p)
	case r.Healing:
		return errHealing(p)
	}
	return nil
}

// Peek returns the versions of the key that this replica holds and its strong state does not cover, and the log index that
// this depends on. It first takes no more attempts on the key with readings up to Promise, which outlasts a restart.
func (s *Store) Peek(r ReadRequest) (ReadReply, error) {
	if err := s.unfit(r.Partition); err != nil {
		return ReadReply{}, err
	}
	at := s.lanes.of(r.Partition)
	if r.Promise != 0 {
		err := s.deps.Clock.Observe(r.Promise)
		if err == nil {
			err = s.deps.Clock.Promise(r.Promise)
		}
		if err != nil {
			return ReadReply{}, kv.Errorf(kv.CodeNotReady, "this replica cannot promise to wait that long: %w", err)
		}
		raise(at.slot(r.Key), uint64(r.Promise))
	}
	if !at.maybe(r.Key) {
		return ReadReply{Need: max(at.pruned.Load(), s.deps.Applied(r.Partition.Group()))}, s.unfit(r.Partition)
	}
	e, v, err := s.open(r.Partition, r.Key)
	if err != nil {
		s.close(e) // what was not read must not become what others find here
		return ReadReply{}, err
	}
	e.stripe.mu.Lock()
	v.set = e.load(v.set)
	e.leave()
	e.stripe.mu.Unlock()
	reply := ReadReply{Set: v.surviving(v.set, s.deps.KeepsSiblings(r.Key))}
	reply.Need = max(v.strong.Revision, needs(reply.Set))
	return reply, s.unfit(r.Partition)
}

// Settled has the versions of the keys taken away that the strong lane's state has come to cover. It never blocks and keeps none of
// the keys.
func (s *Store) Settled(p kv.PartitionID, keys [][]byte) {
	at := s.lanes.of(p)
	f := at.filter.Load()
	if f == nil || !f.any.Load() {
		return // what is there is found when the filter is built
	}
	for _, key := range keys {
		if !f.has(key) {
			continue
		}
		select {
		case s.prunes <- pruning{p, slices.Clone(key)}:
		default:
			at.gone.Add(1)
		}
	}
}

// pruning is a key whose versions may be covered.
type pruning struct {
	partition kv.PartitionID
	key       []byte
}

// Tend takes away what the strong lane covers, and keeps the filters of unsettled keys small, until ctx is done.
func (s *Store) Tend(ctx context.Context) {
	tick := time.NewTicker(tendInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-s.prunes:
			s.prune(ctx, p)
		case <-tick.C:
			s.rebuildFilters(ctx)
		}
	}
}

// prune drops what the strong lane's state covers of a key. What fails stays, is ignored by readers and found again later.
func (s *Store) prune(ctx context.Context, p pruning) {
	select {
	case s.pruning <- struct{}{}:
	case <-ctx.Done():
		return
	}
	keeps := s.deps.KeepsSiblings(p.key)
	pruned := false
	s.change(p.partition, p.key, false, func(err error) {
		if err == nil && pruned {
			s.metrics.pruned.Inc()
		}
		s.lanes.of(p.partition).gone.Add(1)
		<-s.pruning
	}, func(v *versions) (causal.SiblingSet, bool) {
		kept := v.surviving(v.set, keeps)
		pruned = len(kept.Siblings) < len(v.set.Siblings)
		return kept, pruned
	})
}

// rebuildFilters builds the filters that are not known, and those that hold keys which have lost their versions.
func (s *Store) rebuildFilters(ctx context.Context) {
	for p, at := range s.lanes.known() {
		f := at.filter.Load()
		if ctx.Err() != nil || f != nil && at.gone.Load() == 0 || time.Now().Before(at.again) {
			continue
		}
		began := time.Now()
		if err := s.rebuildFilter(ctx, p, at); err != nil && ctx.Err() == nil {
			s.deps.Logger.Debug("the unsettled keys of a partition could not be counted", "partition", uint16(p), "error", err)
		}
		at.again = time.Now().Add(tendShare * time.Since(began))
	}
}

// rebuildFilter makes a filter of the keys that have versions now. The next one gets what is accepted from here on; what was
// accepted before is in storage once Flush returns, which passes every stripe.
func (s *Store) rebuildFilter(ctx context.Context, p kv.PartitionID, at *lane) error {
	next := &keyFilter{}
	at.next.Store(next)
	defer at.next.Store(nil)
	at.gone.Store(0)
	if err := s.Flush(ctx, p); err != nil {
		return err
	}
	covered := 0
	err := s.deps.State.ScanSiblings(p, nil, func(key []byte, set causal.SiblingSet) (bool, error) {
		raise(&at.pruned, set.Pruned)
		if len(set.Siblings) == 0 {
			return true, ctx.Err()
		}
		next.add(key)
		if covered < prunesMax && s.covered(p, key, set) {
			select {
			case s.prunes <- pruning{p, key}:
				covered++
			default:
			}
		}
		return true, ctx.Err()
	})
	if err != nil {
		return err
	}
	at.filter.Store(next)
	if covered > 0 {
		at.gone.Add(int64(covered))
	}
	return nil
}

// covered reports whether the strong lane's state covers a version in the set. What cannot be read is not covered.
func (s *Store) covered(p kv.PartitionID, key []byte, set causal.SiblingSet) bool {
	strong, found, err := s.strong(p, key)
	v := versions{hasStrong: found, strong: strong}
	return err == nil && len(v.surviving(set, s.deps.KeepsSiblings(key)).Siblings) < len(set.Siblings)
}

// Findings are the versions of one key that a majority of the replicas was found to hold beside the strong lane's state. What was
// found stays found, whoever is asked next.
type Findings struct {
	versions map[causal.Dot]causal.Sibling // by write id: its highest stamp
	// Need is the log index up to which the state must be applied where it is read.
	Need uint64
	// Latest is the latest clock reading of all that was found.
	Latest causal.HLC
	// set is all of it merged, which is what counts where versions are kept beside one another.
	set causal.SiblingSet
}

// Add takes one replica's answer to a Peek.
func (f *Findings) Add(r *ReadReply) {
	f.Need = max(f.Need, r.Need)
	f.set = causal.Merge(f.set, r.Set)
	for _, s := range r.Set.Siblings {
		f.Latest = max(f.Latest, s.Stamp.Time, s.Dot.Time)
		if held, ok := f.versions[s.ID]; ok && !s.Stamp.After(held.Stamp) {
			continue
		}
		if f.versions == nil {
			f.versions = make(map[causal.Dot]causal.Sibling)
		}
		f.versions[s.ID] = s
	}
}

// Winner returns the version with the highest stamp that the state does not cover; false when it covers all.
func (f *Findings) Winner(state ReadReply) (causal.Sibling, bool) {
	v := versions{hasStrong: state.HasStrong, strong: state.Strong}
	var winner causal.Sibling
	found := false
	for _, s := range f.versions {
		if !v.covers(&s, false) && (!found || s.Stamp.After(winner.Stamp)) {
			winner, found = s, true
		}
	}
	return winner, found
}

// IDs returns the write ids of all that was found and the state does not cover by write id.
func (f *Findings) IDs(state ReadReply) []causal.Dot {
	v := versions{hasStrong: state.HasStrong, strong: state.Strong}
	var out []causal.Dot
	for _, s := range f.versions {
		if !v.hasStrong || !v.coversID(s.ID) {
			out = append(out, s.ID)
		}
	}
	return out
}

// Beside reports whether a value is among what was found and the state does not cover, and whether something found took the state's
// place, under a resolver that keeps versions. now decides what has expired.
func (f *Findings) Beside(state ReadReply, now causal.HLC) (live, replaced bool) {
	v := versions{hasStrong: state.HasStrong, strong: state.Strong, set: f.set}
	live = slices.ContainsFunc(v.visible(true), func(s causal.Sibling) bool { return !s.Deleted && !s.ExpiredAt(now) })
	return live, v.replaced(true)
}

// Base returns storage.Strong.Base of a state that takes the place of the present one and of all that was found; f may be nil.
func (f *Findings) Base(state ReadReply, r Resolver) []byte {
	if _, counts := r.(Counter); !counts || mutant.Planted == mutant.CounterBaseForgotten {
		return nil
	}
	all, _ := decodeTallies(state.Strong.Base)
	v := versions{hasStrong: state.HasStrong, strong: state.Strong}
	if s, is := v.state(true); is {
		all = all.join(talliesOf(&s))
	}
	if f != nil {
		for _, s := range f.versions {
			all = all.join(talliesOf(&s))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all.latest(baseTalliesMax).encode()
}

// Resolve fills in what a reader is answered under a resolver that keeps versions: what it makes of those that were found and of the
// state. now decides what has expired.
func (f *Findings) Resolve(res *kv.Response, key []byte, state ReadReply, r Resolver, mode kv.SiblingMode, now causal.HLC) error {
	v := versions{hasStrong: state.HasStrong, strong: state.Strong, set: f.set, now: now}
	res.Context = causal.EncodeContext(key, v.context(r.KeepsSiblings()))
	return v.resolve(res, r, mode)
}

var errBehind = errors.New("the log of the key's partition holds a write of the key in a term of which nothing is known to be committed")
