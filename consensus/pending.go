package consensus

import (
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
)

// proposed is an entry of this node on its way through Raft, with the operations that wait for it.
type proposed struct {
	sequence uint64
	pos      causal.Position // zero until the entry was seen in the log
	ops      []*op
}

// pendings matches the entries that this node proposed to one group with what the group's log became.
//
// An entry's fate is known only from what is committed: at its own index, either itself or another leader's entry; or
// at an earlier index an entry of a later term, because terms never fall along a log. Until then it stays here, whoever
// leads.
type pendings struct {
	// unplaced were accepted by Raft and have not been seen in the log yet, in the order of their sequence numbers.
	unplaced []*proposed
	// placed are in the log, in the order in which they were appended: terms never fall, and within a term indexes rise.
	placed []*proposed
}

// add notes an entry that Raft has just accepted.
func (p *pendings) add(e *proposed) { p.unplaced = append(p.unplaced, e) }

// appended says that Raft put this node's entry with the sequence number at pos.
func (p *pendings) appended(sequence uint64, pos causal.Position) {
	if len(p.unplaced) == 0 || p.unplaced[0].sequence != sequence {
		// The entry came back from another leader, to which this node had sent it when it led; it was placed then.
		return
	}
	e := p.unplaced[0]
	p.unplaced = p.unplaced[1:]
	e.pos = pos
	p.placed = append(p.placed, e)
}

// committed says that the entry at pos is committed. It returns the entry if it is one of ours, and those of ours that
// can never be committed any more.
func (p *pendings) committed(pos causal.Position) (mine *proposed, overwritten []*proposed) {
	for len(p.placed) > 0 {
		e := p.placed[0]
		if e.pos.Term > pos.Term || (e.pos.Term == pos.Term && e.pos.Index > pos.Index) {
			return nil, overwritten
		}
		p.placed[0] = nil
		p.placed = p.placed[1:]
		if e.pos == pos {
			return e, overwritten
		}
		// An entry of ours before pos in the same term would have been committed before pos was.
		invariant.Check(e.pos.Term < pos.Term, "entry %v passed over by committed %v", e.pos, pos)
		overwritten = append(overwritten, e)
	}
	return nil, overwritten
}

// installed says that a snapshot of what is committed up to pos took the place of the log. It returns the entries of ours
// that may be part of it, and those that can never be committed any more.
func (p *pendings) installed(pos causal.Position) (unknown, overwritten []*proposed) {
	var kept []*proposed
	for _, e := range p.placed {
		switch within := e.pos.Index <= pos.Index; {
		case within && e.pos.Term <= pos.Term:
			unknown = append(unknown, e)
		case within || e.pos.Term < pos.Term:
			// Terms never fall along a log, and pos is in it.
			overwritten = append(overwritten, e)
		default:
			kept = append(kept, e)
		}
	}
	p.placed = kept
	return unknown, overwritten
}

// drain removes and returns everything. All of it was handed to Raft, so its fate is unknown.
func (p *pendings) drain() []*proposed {
	all := append(p.placed, p.unplaced...)
	p.placed, p.unplaced = nil, nil
	return all
}
