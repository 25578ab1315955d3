package consensus

import (
	"sync"

	"github.com/cespare/xxhash/v2"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// fenceSlots is the number of fences that the keys of a group share. A key that shares one with a key written a moment ago has an
// eventual write stamped anew now and then, which costs a round trip and nothing else: 4,096 slots let one write in a hundred
// thousand meet that at 10,000 strong writes a second over 16 groups.
const fenceSlots = 4096

// fences are what eventual writes of a group's keys have to be stamped above and based on (design.md §8, the append fence; ADR
// 0009, rule 1). The loop raises them when entries are appended, before anything about the append leaves the node; the
// eventual lane's replica asks while it holds its own lock of the key, so that a write which it accepts without seeing the
// fence was accepted before the append.
//
// A fence is the highest stamp that any entry of the log gives to a key of its slot. It is never lowered when the entry has been
// applied, as the strong lane's state then says the same; only when entries are replaced, because nothing may wait for one
// that is lost.
type fences struct {
	mu    sync.Mutex // guards the fields below; never held across anything but memory
	slots []causal.Stamp
	base  causal.Position
}

func (f *fences) slot(key []byte) uint64 { return xxhash.Sum64(key) % fenceSlots }

// raise makes s the least stamp of versions that follow, for the key's slot. mu must be held.
func (f *fences) raise(key []byte, s causal.Stamp) {
	if f.slots == nil {
		f.slots = make([]causal.Stamp, fenceSlots)
	}
	if at := &f.slots[f.slot(key)]; s.After(*at) {
		*at = s
	}
}

func (f *fences) of(key []byte) (s causal.Stamp) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slots != nil && mutant.Planted != mutant.NoFence {
		s = f.slots[f.slot(key)]
	}
	return s
}

// Fence returns the stamp that eventual versions of the key must be above: that of the last entry in this replica's log, applied
// or not, that writes the key or one which shares its fence. What was applied may have been left out.
func (s *Store) Fence(g kv.GroupID, key []byte) causal.Stamp {
	if v := s.views.get(g); v != nil {
		return v.fences.of(key)
	}
	return causal.Stamp{}
}

// Base returns the position that stamps of eventual versions may be based on: the last entry of this replica's log, durable or
// not, unless nothing of its term is known to be committed; then the last that is. A base from a term that may yet come to
// nothing could stand above what is committed later. The zero position says that there is no replica here. It is cheap.
func (s *Store) Base(g kv.GroupID) causal.Position {
	v := s.views.get(g)
	if v == nil {
		return causal.Position{}
	}
	v.fences.mu.Lock()
	defer v.fences.mu.Unlock()
	return v.fences.base
}

// fenceAppended raises the fences for entries that are appended in this iteration, and keeps what it has decoded for when they are
// applied. When they replace others it begins anew with those that are left.
func (l *loop) fenceAppended(g *group, entries []*pb.Entry) error {
	if g.id == kv.MetaGroup || len(entries) == 0 {
		return nil
	}
	if entries[0].GetIndex() <= g.log.last.Index {
		g.ahead.drop(&l.aheadBytes)
		return g.fenceLog(entries)
	}
	f := &g.view.fences
	for i, e := range entries {
		d, ok := decodeAhead(g, e)
		f.mu.Lock()
		if ok {
			f.raiseAll(&d.committed)
		} else {
			f.add(g.id, entries[i:i+1])
		}
		f.mu.Unlock()
		if ok {
			g.ahead.put(d, &l.aheadBytes)
		}
	}
	return nil
}

// fenceLog sets the fences to what the log has that is not applied, up to the entries, and to what those are.
func (g *group) fenceLog(entries []*pb.Entry) error {
	if g.id == kv.MetaGroup {
		return nil
	}
	end := g.log.last.Index + 1
	if len(entries) > 0 {
		end = entries[0].GetIndex()
	}
	var held []*pb.Entry
	for next := g.applied.Index + 1; next < end; next = g.applied.Index + 1 + uint64(len(held)) {
		more, err := g.log.Entries(next, end, fenceReadBytes)
		if err != nil {
			return err
		}
		held = append(held, more...)
	}
	f := &g.view.fences
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.slots)
	f.add(g.id, held)
	f.add(g.id, entries)
	return nil
}

// fenceReadBytes is how much of the log is read at once to fence it.
const fenceReadBytes = 4 << 20

// raiseAll raises the fences for an entry whose commands are decoded. mu must be held.
func (f *fences) raiseAll(c *Committed) {
	for i := range c.decoded {
		c.decoded[i].fence(f, c)
	}
}

// add raises the fences for the entries, and of an entry for those of its commands that can be read: what cannot is dealt with when
// it is applied, which is when all replicas meet it. mu must be held.
func (f *fences) add(g kv.GroupID, entries []*pb.Entry) {
	for _, e := range entries {
		if e.GetType() != pb.EntryNormal || len(e.GetData()) == 0 {
			continue
		}
		c, err := committed(g, e)
		if err != nil {
			continue
		}
		for _, raw := range c.Commands {
			if op, err := decodeCommand(raw); err == nil {
				op.fence(f, &c)
			}
		}
	}
}

// rebase sets what stamps may be based on, once the log has its entries of this iteration.
func (g *group) rebase() error {
	if g.id == kv.MetaGroup {
		return nil
	}
	base := g.log.last
	known := g.applied
	if commit := g.log.hard.Commit; commit > known.Index {
		term, err := g.log.Term(commit)
		if err != nil {
			return err
		}
		known = causal.Position{Term: term, Index: commit}
	}
	if known.Term != base.Term {
		base = known
	}
	if mutant.Planted == mutant.BaseGuessed {
		base.Index++
	}
	f := &g.view.fences
	f.mu.Lock()
	f.base = base
	f.mu.Unlock()
	return nil
}
