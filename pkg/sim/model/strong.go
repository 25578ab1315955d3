package model

import "math/bits"

// begin starts a strong operation at a replica. The read index is taken at once, which is the lowest that it can be.
func (s *State) begin(c *Config, i, r uint8) bool {
	op := &s.strong[i]
	kind := c.Strong[i].Kind
	if kind == Put {
		return s.node[r].leads == 1 && s.put(c, i, r)
	}
	leader := r
	if kind == Get && c.FollowerReads {
		for l := range uint8(replicas) {
			if s.confirmed(l) {
				leader = l
			}
		}
	}
	if !s.confirmed(leader) {
		return false
	}
	op.at, op.need, op.phase = r, s.node[leader].commit, phasePeeking
	if kind != Get {
		s.node[r].clock++
		op.h = s.node[r].clock
	}
	return true
}

// put proposes a put's entry: its stamp is its own position, so that it covers all that is stamped before it.
func (s *State) put(c *Config, i, r uint8) bool {
	op := &s.strong[i]
	id := s.add(c, r, entry{kind: entryPut, op: i + 1}, func(e *entry) {
		e.marks = stamp{base: e.pos}
		if s.proposal(e.prev, i) != 0 {
			return // applied before: the dedup row answers
		}
		e.done = 1
		e.result.value, e.result.revision = valueOf(i+writesMax), e.pos
		if c.Rules.PutIsOneEntry {
			e.result.stamp = e.marks
		}
	})
	op.at, op.phase = r, phaseProposed
	return id != 0
}

// retry sends a put to another leader, whose dedup row may know it.
func (s *State) retry(c *Config, i, r uint8) bool {
	op := &s.strong[i]
	if op.at == r || s.node[r].leads == 0 {
		return false
	}
	op.at = r
	switch {
	case s.proposal(s.node[r].commit, i) != 0:
		s.end(i, 0)
		return true
	case s.proposal(s.node[r].last, i) != 0:
		return true
	}
	return s.put(c, i, r)
}

// peek lets a replica answer a Peek with the unsettled versions that it holds and S's revision, and, for an operation that
// answers from the old value, with the promise to refuse what is stamped up to h.
func (s *State) peek(c *Config, i, r uint8) bool {
	op := &s.strong[i]
	if op.answered&(1<<r) != 0 || s.enough(c, op) {
		return false
	}
	n := &s.node[r]
	op.answered |= 1 << r
	for _, seen := range [...]uint8{n.commit, n.held.need} {
		if indexOf(s.log[seen].pos) > indexOf(s.log[op.need].pos) {
			op.need = seen
		}
	}
	for w, a := range n.held.held {
		op.found[w] = max(op.found[w], a)
	}
	if kind := c.Strong[i].Kind; (kind == CompareAndSet || kind == Delete) && c.Rules.PeekPromises {
		n.promise = max(n.promise, op.h)
		s.sync(c, r)
	}
	return true
}

func (s *State) enough(c *Config, op *strong) bool {
	need := majority
	if !c.Rules.PeekMajority {
		need = 1
	}
	return bits.OnesCount8(op.answered) >= need
}

// ready says whether a round of Peek is complete and the replica has applied all that its answers know of.
func (s *State) ready(c *Config, op *strong) bool {
	return s.enough(c, op) && indexOf(s.log[s.node[op.at].commit].pos) >= indexOf(s.log[op.need].pos)
}

// winner returns the highest of what was found and is not settled, as write + 1 with the attempt in the upper four bits, and
// the latest clock reading of all of it.
func (s *State) winner(c *Config, op *strong) (winner, latest uint8) {
	t := s.settled(op.at)
	top := stamp{}
	latest = t.stamp.time
	for w, a := range op.found {
		if a == 0 {
			continue
		}
		st := s.writes[w].try[a-1].stamp
		latest = max(latest, st.time)
		if c.Rules.DropRule && s.drops(c, t, uint8(w), a) || t.covers(c, uint8(w), a) {
			continue
		}
		if winner == 0 || st.after(top, &c.Rules) {
			top, winner = st, uint8(w)+1|a<<4
		}
	}
	return winner, latest
}

// decide is what a strong operation does once a round is complete: another round, a Settle, its own entry, or its answer.
func (s *State) decide(c *Config, i uint8) bool {
	op := &s.strong[i]
	kind := c.Strong[i].Kind
	if !s.ready(c, op) {
		return false
	}
	winner, latest := s.winner(c, op)
	swaps := kind == CompareAndSet || kind == Delete
	switch {
	case kind == Put:
		return s.coverFound(c, i)
	case swaps && s.node[op.at].leads == 0:
		op.phase = phaseGaveUp
		return true
	case swaps && op.h <= latest:
		return s.round(i, winner, latest+1)
	case winner == 0:
		return s.answer(c, i)
	case !c.Rules.SettleBeforeAnswer && !swaps:
		s.end(i, valueOf(winner&0xf-1))
		return true
	case c.Rules.PeekAgain && op.known != winner:
		return s.round(i, winner, op.h)
	default:
		return s.settle(c, i, winner)
	}
}

// round starts another round of Peek. What was found stays found.
func (s *State) round(i, winner, h uint8) bool {
	op := &s.strong[i]
	if op.rounds++; op.rounds >= roundsMax {
		op.phase = phaseGaveUp
		return true
	}
	if op.h != 0 {
		n := &s.node[op.at]
		n.clock = max(n.clock, h)
		op.h = h
	}
	op.known, op.answered, op.phase = winner, 0, phasePeeking
	return true
}

// settle proposes to write the winner into S, at the operation's replica or at whoever leads.
func (s *State) settle(c *Config, i, winner uint8) bool {
	op := &s.strong[i]
	w, a := winner&0xf-1, winner>>4
	expected := s.settled(op.at).revision
	leader := op.at
	for r := range uint8(replicas) {
		if s.node[leader].leads == 0 && s.node[r].leads == 1 {
			leader = r
		}
	}
	if s.node[leader].leads == 0 {
		return false
	}
	found := op.found
	id := s.add(c, leader, entry{kind: entrySettle, op: i + 1, write: w}, func(e *entry) {
		st := s.writes[w].try[a-1].stamp
		if !c.Rules.SettleKeepsStamp {
			st = stamp{base: e.pos}
		}
		e.marks = st
		if c.Rules.SettleExpectsRevision && e.result.revision != expected {
			return
		}
		e.done = 1
		e.result.value, e.result.revision, e.result.stamp = valueOf(w), e.pos, st
		e.result.cover(c, w, a)
		for v, b := range found {
			if b != 0 && !c.Rules.SettleCoversWinner {
				e.result.cover(c, uint8(v), b)
			}
		}
	})
	op.entry, op.phase = id, phaseSettling
	return id != 0
}

// answer ends a get, and proposes what a compare-and-set or a delete makes of the settled value.
func (s *State) answer(c *Config, i uint8) bool {
	op := &s.strong[i]
	t := *s.settled(op.at)
	expects := c.Strong[i].Expects
	if c.Strong[i].Kind == Get || c.Strong[i].Kind == CompareAndSet && expects != anything && expects != t.value {
		s.end(i, t.value)
		return true
	}
	op.value = t.value
	mark := stamp{base: t.stamp.base, time: op.h, node: op.at}
	id := s.add(c, op.at, entry{kind: entrySwap, op: i + 1}, func(e *entry) {
		e.marks = mark
		if e.result.revision != t.revision {
			return
		}
		e.done = 1
		e.result.value, e.result.revision, e.result.stamp = absent, e.pos, mark
		if c.Strong[i].Kind == CompareAndSet {
			e.result.value = valueOf(i + writesMax)
		}
	})
	op.entry, op.phase = id, phaseProposed
	return id != 0
}

// coverFound proposes the second entry of a put that has one.
func (s *State) coverFound(c *Config, i uint8) bool {
	op := &s.strong[i]
	first := s.proposal(s.node[op.at].commit, i)
	if s.node[op.at].leads == 0 || first == 0 {
		return false
	}
	found := op.found
	id := s.add(c, op.at, entry{kind: entryCover, op: i + 1}, func(e *entry) {
		e.done = 1
		for w, a := range found {
			if a != 0 {
				e.result.cover(c, uint8(w), a)
			}
		}
		if e.result.revision == s.log[first].pos {
			e.result.stamp = s.log[first].marks
		}
	})
	op.entry, op.phase = id, phaseSettling
	return id != 0
}

// finish lets an operation see that its entry was applied.
func (s *State) finish(c *Config, i uint8) bool {
	op := &s.strong[i]
	commit := s.node[op.at].commit
	if c.Strong[i].Kind == Put {
		return s.finishPut(c, i)
	}
	if !s.contains(commit, op.entry) {
		return false
	}
	e := &s.log[op.entry]
	again := e.done == 0
	switch {
	case again:
		// Something else was first: begin again, from an empty round.
		op.found, op.entry = [writesMax]uint8{}, 0
		op.need = commit
		return s.round(i, 0, s.node[op.at].clock+1)
	case op.phase == phaseProposed:
		s.end(i, op.value)
	case c.Strong[i].Kind == Get:
		s.end(i, e.result.value)
	default:
		op.phase, op.entry = phasePeeking, 0 // the round still stands, and decides again
	}
	return true
}

// finishPut lets a put see that it was applied. The two rules that it hangs on add steps when they are off.
func (s *State) finishPut(c *Config, i uint8) bool {
	op := &s.strong[i]
	commit := s.node[op.at].commit
	switch {
	case op.phase == phaseSettling:
		if !s.contains(commit, op.entry) {
			return false
		}
		s.end(i, 0)
		return true
	case s.proposal(commit, i) == 0:
		return false
	case !c.Rules.PutIsOneEntry:
		op.answered, op.phase = 0, phasePeeking
		return true
	case !c.Rules.AppendedIsFenced:
		applied := 0
		for r := range s.node {
			if s.proposal(s.node[r].commit, i) != 0 {
				applied++
			}
		}
		if applied < majority {
			return false
		}
	}
	s.end(i, 0)
	return true
}

// end returns the operation's result to its client. What it needed meanwhile is forgotten, so that equal futures are equal
// states.
func (s *State) end(i, value uint8) {
	s.strong[i] = strong{phase: phaseReturned, value: value, at: s.strong[i].at}
	s.returned |= 1 << (writesMax + i)
}
