package sim

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/transport"
	"github.com/caprockdb/caprock/quorum"
)

// violationsMax bounds the violations that are kept: the first ones tell what is wrong.
const violationsMax = 20

// watcher checks, in every run, what must hold in any run: it sees each message that a node sends, and the disks that
// crashes leave behind. What it concludes from messages is what their senders promised by them, in Raft as in "Consensus:
// Bridging Theory and Practice" (Ongaro, 2014), figure 3.2 and section 3.8:
//
//   - at most one leader a term, no second vote in a term, whatever crashes lie between;
//   - two entries of one position are the same entry, and follow the same one;
//   - what a node acknowledged, a vote, an append or an eventual write, is on its disk when the power goes;
//   - a dot stands for one write;
//   - replicas that have applied the same entries hold the same state, and the nodes' own checks do not say otherwise.
type watcher struct {
	began time.Time
	// onPromise, if set, is called after a node sent an acknowledgement of something that had to be durable.
	onPromise func(from kv.NodeID)

	mu         sync.Mutex // guards what follows; nothing blocks under it
	violations []string
	leaders    map[groupTerm]kv.NodeID
	entries    map[entryID]entrySeen
	raft       map[replica]*raftPromises
	dots       map[causal.Dot]uint64 // to a fingerprint of the write
	calls      map[callID]eventualWrite
	eventual   map[kv.NodeID]map[causal.Dot]eventualWrite
	states     map[stateID]uint64
	applied    map[kv.GroupID]uint64 // the highest entry that a client was told is applied
	altered    kv.NodeID             // the node whose state a test has altered, whose difference is no violation
	unsynced   [][]byte              // the prefixes whose eventual writes nodes acknowledge before they are durable
	rotten     kv.NodeID             // the node whose disk loses rows, which are no promises that it broke
	tolerated  int                   // how often that has begun or ended
	counts     watchCounts
}

// watchCounts say how much was checked. A run in which nothing was proves nothing.
type watchCounts struct {
	Messages, Entries, Writes, Disks, Promises, States int
}

type groupTerm struct {
	group kv.GroupID
	term  uint64
}

type entryID struct {
	group kv.GroupID
	pos   causal.Position
}

type entrySeen struct {
	before uint64 // the term of the entry in front of it
	hash   uint64
}

// replica is one node's part in a group.
type replica struct {
	node  kv.NodeID
	group kv.GroupID
}

// raftPromises are what a replica has told others that it holds durably.
type raftPromises struct {
	term  uint64
	votes map[uint64]kv.NodeID // by term
	acks  map[uint64]uint64    // by the leader's term: the highest index acknowledged
}

type callID struct {
	from, to kv.NodeID
	id       uint64
}

// eventualWrite is an attempt of an eventual write, as it was sent to a replica.
type eventualWrite struct {
	partition kv.PartitionID
	key       string
	id        causal.Dot
	stamp     causal.Stamp
}

type stateID struct {
	group   kv.GroupID
	applied uint64
}

func newWatcher() *watcher {
	return &watcher{
		began: time.Now(), leaders: map[groupTerm]kv.NodeID{}, entries: map[entryID]entrySeen{},
		raft: map[replica]*raftPromises{}, dots: map[causal.Dot]uint64{}, calls: map[callID]eventualWrite{},
		eventual: map[kv.NodeID]map[causal.Dot]eventualWrite{}, states: map[stateID]uint64{},
		applied: map[kv.GroupID]uint64{},
	}
}

// violate notes a violation. mu must be held.
func (w *watcher) violate(format string, args ...any) {
	if len(w.violations) < violationsMax {
		w.violations = append(w.violations, fmt.Sprintf("at %s: ", time.Since(w.began))+fmt.Sprintf(format, args...))
	}
}

// sent is called with each batch that a node has sent, whether or not the network loses it.
func (w *watcher) sent(from, to kv.NodeID, batch []byte) {
	if w.inspect(from, to, batch) && w.onPromise != nil {
		w.onPromise(from)
	}
}

// inspect looks into a batch and reports whether it promises anything.
func (w *watcher) inspect(from, to kv.NodeID, batch []byte) (promised bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := transport.Inspect(batch, transport.Inspector{
		Raft: func(frame []byte) {
			if err := consensus.InspectFrame(frame, func(m consensus.Message) {
				promised = w.message(from, m) || promised
			}); err != nil {
				w.violate("n%d sent n%d a frame that cannot be read: %v", from, to, err)
			}
		},
		Write: func(id uint64, r quorum.WriteRequest) { w.write(callID{from, to, id}, &r) },
		Reply: func(id uint64, body []byte) {
			promised = w.reply(callID{from: to, to: from, id: id}, body) || promised
		},
	})
	if err != nil {
		w.violate("n%d sent n%d a batch that cannot be read: %v", from, to, err)
	}
	return promised
}

// message checks a Raft message. mu must be held.
func (w *watcher) message(from kv.NodeID, m consensus.Message) (promised bool) {
	w.counts.Messages++
	switch m.Kind {
	case consensus.MessageAppend, consensus.MessageHeartbeat, consensus.MessageSnapshot:
		w.leads(groupTerm{m.Group, m.Term}, from)
		w.appended(&m)
		return false
	case consensus.MessageAppendResponse:
		p := w.promises(replica{from, m.Group})
		p.term = max(p.term, m.Term)
		if m.Reject || m.Index <= p.acks[m.Term] {
			return false
		}
		p.acks[m.Term] = m.Index
		return true
	case consensus.MessageVoteResponse:
		p := w.promises(replica{from, m.Group})
		p.term = max(p.term, m.Term)
		if m.Reject {
			return false
		}
		w.votes(from, m.Group, m.Term, m.To)
		return true
	default:
		return false
	}
}

func (w *watcher) promises(r replica) *raftPromises {
	p := w.raft[r]
	if p == nil {
		p = &raftPromises{votes: map[uint64]kv.NodeID{}, acks: map[uint64]uint64{}}
		w.raft[r] = p
	}
	return p
}

// leads notes who speaks as the leader of a term. It says nothing of the leader's own vote: with the votes of all others
// it leads before that is durable, and needs it no more.
func (w *watcher) leads(at groupTerm, node kv.NodeID) {
	other, known := w.leaders[at]
	if known && other != node {
		w.violate("group %d has two leaders in term %d: n%d and n%d", at.group, at.term, other, node)
	}
	w.leaders[at] = node
}

// votes notes a vote.
func (w *watcher) votes(voter kv.NodeID, g kv.GroupID, term uint64, candidate kv.NodeID) {
	p := w.promises(replica{voter, g})
	if other, voted := p.votes[term]; voted && other != candidate {
		w.violate("n%d voted twice in term %d of group %d: for n%d and for n%d", voter, term, g, other, candidate)
		return
	}
	p.votes[term] = candidate
}

// appended checks the entries of an append against all that were ever sent.
func (w *watcher) appended(m *consensus.Message) {
	before := m.Before.Term
	for _, e := range m.Entries {
		w.counts.Entries++
		seen := entrySeen{before: before, hash: xxhash.Sum64(e.Data) + uint64(e.Type)}
		id := entryID{m.Group, e.Pos}
		if other, known := w.entries[id]; known && other != seen {
			w.violate("group %d has two entries at index %d of term %d (or two entries in front of it), one from n%d",
				m.Group, e.Pos.Index, e.Pos.Term, m.From)
		}
		w.entries[id] = seen
		before = e.Pos.Term
	}
}

// write notes what an eventual write carries, so that its reply can be understood. mu must be held.
func (w *watcher) write(call callID, r *quorum.WriteRequest) {
	w.counts.Writes++
	w.set(r.Partition, r.Key, r.Set)
	if attempt, ok := r.Set.Holds(r.New); ok && !r.IsRepair() {
		w.calls[call] = eventualWrite{partition: r.Partition, key: string(r.Key), id: attempt.ID, stamp: attempt.Stamp}
	}
}

// set checks that each dot stands for one write, on one key. mu must be held.
func (w *watcher) set(p kv.PartitionID, key []byte, set causal.SiblingSet) {
	for i := range set.Siblings {
		s := &set.Siblings[i]
		h := xxhash.New()
		_, _ = h.Write(key) // a hash takes everything
		_, _ = h.Write(causal.AppendSet(nil, causal.SiblingSet{Siblings: []causal.Sibling{*s}, Context: causal.Vector{s.Dot}}))
		sum := h.Sum64()
		if other, known := w.dots[s.Dot]; known && other != sum {
			w.violate("dot %v stands for two writes, one of them of key %q in partition %d", s.Dot, key, p)
		}
		w.dots[s.Dot] = sum
	}
}

// reply notes what a replica promised by accepting a write. mu must be held.
func (w *watcher) reply(call callID, body []byte) (promised bool) {
	written, known := w.calls[call]
	if !known {
		return false
	}
	delete(w.calls, call)
	r, err := transport.DecodeWriteReply(body)
	if err != nil {
		w.violate("n%d answered a write with what cannot be read: %v", call.to, err)
		return false
	}
	if !r.Accepted {
		return false
	}
	w.promise(call.to, causal.Dot{Node: written.stamp.Node, Time: written.stamp.Time}, written)
	return true
}

// answered notes that a client was told that its write is applied.
func (w *watcher) answered(p kv.PartitionID, key []byte, res *kv.Response) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if res.Level == kv.LevelStrong {
		w.applied[p.Group()] = max(w.applied[p.Group()], res.Version)
		return
	}
	// The answer names the millisecond of the write's dot, and a vector that covers the dot covers all of its node's
	// before it. The zero stamp says that it is not known.
	w.promise(res.Coordinator, causal.Dot{Node: res.Coordinator, Time: causal.MakeHLC(res.Timestamp.UnixMilli(), 0)},
		eventualWrite{partition: p, key: string(key)})
}

// promise notes that the node must have the write. mu must be held.
func (w *watcher) promise(node kv.NodeID, dot causal.Dot, e eventualWrite) {
	for _, prefix := range w.unsynced {
		if strings.HasPrefix(e.key, string(prefix)) {
			return
		}
	}
	if w.eventual[node] == nil {
		w.eventual[node] = map[causal.Dot]eventualWrite{}
	}
	w.eventual[node][dot] = e
}

// excuse has eventual writes of keys with the prefix be no promises to the disk.
func (w *watcher) excuse(prefix []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsynced = append(w.unsynced, prefix)
}

// rot excuses the node from holding the eventual writes that it has acknowledged.
func (w *watcher) rot(node kv.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rotten = node
}

// forget drops what the node promised: its disk is gone.
func (w *watcher) forget(node kv.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.eventual, node)
	for r := range w.raft {
		if r.node == node {
			delete(w.raft, r)
		}
	}
}

// result returns the violations and how much was checked.
func (w *watcher) result() ([]string, watchCounts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.violations...), w.counts
}
