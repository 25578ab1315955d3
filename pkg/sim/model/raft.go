package model

// contains says whether the log that ends in last holds the entry.
func (s *State) contains(last, id uint8) bool {
	for ; last != 0; last = s.log[last].prev {
		if last == id {
			return true
		}
	}
	return false
}

// proposal returns the entry of the log ending in last that belongs to the operation and took effect, 0 if there is none.
func (s *State) proposal(last, op uint8) uint8 {
	for ; last != 0; last = s.log[last].prev {
		if e := &s.log[last]; e.op == op+1 && e.kind != entrySettle && e.kind != entryCover && e.done == 1 {
			return last
		}
	}
	return 0
}

// settled is S as the replica has applied it.
func (s *State) settled(r uint8) *strongState { return &s.log[s.node[r].commit].result }

// unsynced says whether the replica's changes become durable only by a sync step of their own. Only the victim's do, and
// only while it may still crash: for the others a crash is the same as never being heard of again.
func (s *State) unsynced(c *Config, r uint8) bool { return s.crashes > 0 && r == c.Victim }

// fence is the highest stamp that an eventual write must be above at the replica.
func (s *State) fence(c *Config, r uint8) stamp {
	top := s.settled(r).stamp
	if !c.Rules.AppendedIsFenced {
		return top
	}
	for id := s.node[r].last; id != 0; id = s.log[id].prev {
		if m := s.log[id].marks; m.after(top, &c.Rules) {
			top = m
		}
	}
	return top
}

// add appends an entry at a leader; apply fills in what it does.
func (s *State) add(c *Config, r uint8, e entry, apply func(*entry)) uint8 {
	if s.entries+1 >= entriesMax {
		return 0
	}
	s.entries++
	id := s.entries
	n := &s.node[r]
	e.prev = n.last
	e.pos = position(n.term, indexOf(s.log[n.last].pos)+1)
	e.result = s.log[n.last].result
	apply(&e)
	s.log[id] = e
	n.last = id
	s.advance(c, r)
	return id
}

// replicate copies a leader's log to another replica, together with how much of it the leader knows to be committed.
func (s *State) replicate(c *Config, from, to uint8) bool {
	l, f := &s.node[from], &s.node[to]
	if l.leads == 0 || from == to || f.term > l.term {
		return false
	}
	was := *f
	if f.term < l.term {
		f.term, f.leads = l.term, 0
	}
	f.last = l.last
	if indexOf(s.log[l.commit].pos) > indexOf(s.log[f.commit].pos) {
		f.commit = l.commit
		s.prune(c, to)
	}
	old := l.commit
	s.advance(c, from)
	return *f != was || old != l.commit
}

// advance commits at a leader what a majority has synced in its term.
func (s *State) advance(c *Config, r uint8) {
	l := &s.node[r]
	for id := l.last; id != 0 && termOf(s.log[id].pos) == l.term && id != l.commit; id = s.log[id].prev {
		have := 0
		for i := range uint8(replicas) {
			last := s.node[i].last
			if s.unsynced(c, i) {
				last = s.disk.last
			}
			if s.node[i].term == l.term && s.contains(last, id) {
				have++
			}
		}
		if have >= majority {
			l.commit = id
			s.prune(c, r)
			return
		}
	}
}

// elect makes a replica the leader of a new term with the vote of another one.
func (s *State) elect(c *Config, candidate, voter uint8) bool {
	n, v := &s.node[candidate], &s.node[voter]
	if candidate == voter || s.log[n.last].pos < s.log[v.last].pos || (n.leads == 1 && n.term >= v.term) {
		return false
	}
	s.elections--
	term := max(n.term, v.term) + 1
	n.term, v.term, n.leads, v.leads = term, term, 1, 0
	s.sync(c, candidate)
	s.sync(c, voter)
	return s.add(c, candidate, entry{kind: entryEmpty}, func(*entry) {}) != 0
}

// confirmed says whether a replica can confirm that it leads: it has committed in its term, and no majority has left it.
func (s *State) confirmed(r uint8) bool {
	n := &s.node[r]
	if n.leads == 0 || termOf(s.log[n.commit].pos) != n.term {
		return false
	}
	follow := 0
	for i := range s.node {
		if s.node[i].term <= n.term {
			follow++
		}
	}
	return follow >= majority
}

// sync makes durable what the replica has, and releases the acknowledgements that waited for it.
func (s *State) sync(c *Config, r uint8) {
	if !s.unsynced(c, r) {
		return
	}
	s.disk = s.node[r]
	for w := range s.writes {
		for a := range s.writes[w].try {
			if to := &s.writes[w].try[a].to[r]; *to == flightUnsynced {
				*to = flightAcked
			}
		}
		s.count(uint8(w))
	}
	for i := range s.node {
		if s.node[i].leads == 1 {
			s.advance(c, uint8(i))
		}
	}
}

// crash takes the victim back to what it had synced. Its clock and promise start from the persisted ceiling.
func (s *State) crash(c *Config) {
	v := c.Victim
	was := s.node[v]
	s.node[v] = s.disk
	s.disk = replica{}
	s.crashes--
	n := &s.node[v]
	n.leads = 0
	n.clock = max(was.clock, was.promise) + 1
	n.promise = 0
	if c.Rules.PromiseSurvives {
		n.promise = n.clock
	}
	for w := range s.writes {
		if s.writes[w].phase == phaseOpen && s.writes[w].at == v {
			s.writes[w].phase = phaseGaveUp
		}
		for a := range s.writes[w].try {
			if to := &s.writes[w].try[a].to[v]; *to == flightUnsynced {
				*to = flightNone
			}
		}
	}
	for i := range s.strong {
		if op := &s.strong[i]; op.at == v && (op.phase == phasePeeking || op.phase == phaseSettling) {
			op.phase = phaseGaveUp
		}
	}
}
