package quorum

import (
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// stripesMax is the number of locks that the keys being written share. A power of two.
const stripesMax = 256

// pendingKeys holds the keys that are being written: for each its newest content, durable or not. It makes the merge of
// a key atomic without a lock across storage: who enters a key before reading it sees, when it comes back under the
// lock, whether anybody changed it meanwhile.
type pendingKeys struct {
	committer Committer
	stripes   [stripesMax]stripe
}

// stripe guards a share of the keys.
type stripe struct {
	// mu guards the map, every entry in it and every commit of those entries. Nothing is called under it but pure code.
	mu      sync.Mutex
	entries map[entryKey]*entry
	// forgotten is the latest time of anything that was taken back because its commit failed: dots up to it may be on
	// other replicas and not be known here.
	forgotten causal.HLC
	_         [32]byte // keeps neighbours off one another's cache line
}

type entryKey struct {
	partition kv.PartitionID
	key       string
}

// entry is a key that is being written. It lives while anybody refers to it, and goes once storage alone can answer for
// the key.
//
// The three commit fields say which of its content is durable: set is durable if queued and filled are nil and suspect
// is false.
type entry struct {
	id     entryKey
	key    []byte // id.key again, as storage wants it
	stripe *stripe
	// refs counts the operations inside the key and its commits that are not done.
	refs int
	// loaded says that set is valid: read from storage after the entry was made, or newer than that.
	loaded bool
	// set is the newest content, the base of the next write.
	set causal.SiblingSet
	// settled is what set falls back to if the queued commit fails: the content that storage has, or was handed.
	settled causal.SiblingSet
	// queued is the commit that will write set and has not been filled. There is at most one: writes that come before it
	// is filled ride along.
	queued *commit
	// filled is the last commit that was filled and is not done.
	filled *commit
	// suspect says that a filled commit failed: what is in storage is unknown, and set must be written again before
	// anything in it may be called durable.
	suspect bool
}

// commit is one write of a key's content to storage.
type commit struct {
	entry   *entry
	filling bool // fill ran: the content may reach the disk
	waiters []func(error)
	// async says that the first who waited for it does not wait for the disk, early who else does not, shown that reads find the content.
	async, shown bool
	early        []func(error)
}

func newPendingKeys(c Committer) *pendingKeys {
	p := &pendingKeys{committer: c}
	for i := range p.stripes {
		p.stripes[i].entries = make(map[entryKey]*entry)
	}
	return p
}

// enter refers to the key and reports whether its content is known, so that storage need not be read for it. Storage
// read after enter is current unless the entry has learnt something newer by the time it is locked again: whoever
// changes the key meanwhile does it through this entry. Each enter needs one leave. The key is kept.
func (p *pendingKeys) enter(partition kv.PartitionID, key []byte) (e *entry, known bool) {
	st := &p.stripes[xxhash.Sum64(key)%stripesMax]
	st.mu.Lock()
	defer st.mu.Unlock()
	e = st.entries[entryKey{partition, string(key)}]
	if e == nil {
		e = &entry{id: entryKey{partition, string(key)}, key: key, stripe: st}
		st.entries[e.id] = e
	}
	e.refs++
	return e, e.loaded
}

// await has done called once all that the key holds is durable, or failed. It returns false when it already is. With done nil it only
// looks.
func (p *pendingKeys) await(partition kv.PartitionID, key []byte, done func(error)) bool {
	st := &p.stripes[xxhash.Sum64(key)%stripesMax]
	st.mu.Lock()
	defer st.mu.Unlock()
	e := st.entries[entryKey{partition, string(key)}]
	switch {
	case e == nil:
		return false
	case done == nil:
		return e.queued != nil || e.filled != nil
	}
	return e.await(durable, done)
}

// leave gives a reference up. The stripe must be locked.
func (e *entry) leave() {
	e.refs--
	invariant.Check(e.refs >= 0, "key %q left more often than entered", e.id.key)
	// A suspect entry stays: it alone knows that storage cannot be trusted with this key. There are at most as many as
	// the committer had filled when it failed, and a node whose commits fail stops.
	if e.refs == 0 && !e.suspect {
		delete(e.stripe.entries, e.id)
	}
}

// load notes what storage was read to hold, unless the entry already knows something newer, and returns the newest. The
// stripe must be locked.
func (e *entry) load(set causal.SiblingSet) causal.SiblingSet {
	if !e.loaded {
		e.set, e.settled, e.loaded = set, set, true
	}
	return e.set
}

// put makes set the key's content and has done called once it is as safe as wanted, or failed. It returns the commit to offer to
// the committer after the lock is released, nil when one is already under way. The stripe must be locked.
func (e *entry) put(set causal.SiblingSet, want safety, done func(error)) *commit {
	e.set = set
	if e.queued != nil {
		e.queued.await(want, done)
		return nil
	}
	c := &commit{entry: e, async: want == visible}
	c.await(want, done)
	e.queued = c
	e.refs++
	return c
}

// await has done called once everything that the key holds is as safe as wanted, or failed. It returns false when it already is;
// done is then not kept. The stripe must be locked.
func (e *entry) await(want safety, done func(error)) bool {
	if e.queued != nil {
		return e.queued.await(want, done)
	}
	return e.awaitFilled(want, done)
}

// awaitDot is await for the dot alone, which the key's content covers. What storage was handed does not fail with a
// commit queued after it. The stripe must be locked.
func (e *entry) awaitDot(dot causal.Dot, want safety, done func(error)) bool {
	if e.settled.Covers(dot) {
		return e.awaitFilled(want, done)
	}
	return e.await(want, done)
}

func (e *entry) awaitFilled(want safety, done func(error)) bool {
	return e.filled != nil && e.filled.await(want, done)
}

// fill encodes the key's newest content into the committer's batch, which may be more than was there when the commit
// was queued. Commits of one key may therefore be filled in any order and the last one is still complete.
func (c *commit) fill(b *storage.Batch) {
	e := c.entry
	e.stripe.mu.Lock()
	invariant.Check(e.queued == c, "a commit of key %q was filled twice", e.id.key)
	set := e.set
	c.filling = true
	e.queued, e.filled, e.settled = nil, c, set
	e.stripe.mu.Unlock()
	if mutant.Planted == mutant.TombstoneDropped && !slices.ContainsFunc(set.Siblings, func(s causal.Sibling) bool { return !s.Deleted }) {
		b.DeleteSiblings(e.id.partition, e.key)
		return
	}
	if set.IsZero() {
		b.DeleteSiblings(e.id.partition, e.key)
		return
	}
	b.SetSiblings(e.id.partition, e.key, set)
}

// done tells everybody who waits for the commit how it went.
func (c *commit) done(err error) {
	e := c.entry
	e.stripe.mu.Lock()
	waiters := append(c.early, c.waiters...)
	c.early, c.waiters = nil, nil
	switch {
	case !c.filling:
		// Nothing of it reached the committer's batch, and everything since the last fill waits for this commit.
		invariant.Check(err != nil, "a commit of key %q succeeded without having been filled", e.id.key)
		e.stripe.forgotten = max(e.stripe.forgotten, e.set.Context.Latest())
		e.queued, e.set = nil, e.settled
	case err != nil:
		e.suspect = true
	default:
		e.suspect = false
	}
	if e.filled == c {
		e.filled = nil
	}
	e.leave()
	e.stripe.mu.Unlock()
	if err != nil {
		err = notCommitted(err, c.filling)
	}
	for _, w := range waiters {
		w(err)
	}
}

// notCommitted returns the error of a commit with the outcome that is known: what was never filled is nowhere.
func notCommitted(err error, filled bool) error {
	e := *kv.AsError(err)
	e.Outcome = kv.OutcomeNotApplied
	if filled {
		e.Outcome = kv.OutcomeUnknown
	}
	return &e
}
