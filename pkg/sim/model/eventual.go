package model

const allAttempts uint8 = 0xff

// covers says whether S covers an attempt of a write.
func (t *strongState) covers(c *Config, w, a uint8) bool {
	if c.Rules.RestampKeepsID {
		return t.covered[w] != 0
	}
	return t.covered[w]&(1<<a) != 0
}

func (t *strongState) cover(c *Config, w, a uint8) {
	if c.Rules.RestampKeepsID {
		t.covered[w] = allAttempts
		return
	}
	t.covered[w] |= 1 << a
}

// drops is the drop rule: what S covers by write id, and what is not stamped above it.
func (s *State) drops(c *Config, t *strongState, w, a uint8) bool {
	return t.covers(c, w, a) || !s.writes[w].try[a-1].stamp.after(t.stamp, &c.Rules)
}

// surviving returns the set without what the replica's S covers. The context stays.
func (s *State) surviving(c *Config, r uint8, in set) set {
	for w, a := range in.held {
		if a != 0 && s.drops(c, s.settled(r), uint8(w), a) {
			in.held[w] = 0
			in.need = s.later(c, in.need, s.node[r].commit)
		}
	}
	return in
}

// later returns the later of two committed entries.
func (s *State) later(c *Config, x, y uint8) uint8 {
	if !c.Rules.DropsCarryRevision || indexOf(s.log[x].pos) > indexOf(s.log[y].pos) {
		return x
	}
	return y
}

// prune drops from the replica's E what its S has come to cover.
func (s *State) prune(c *Config, r uint8) { s.node[r].held = s.surviving(c, r, s.node[r].held) }

// covered says whether the context of a set covers an attempt.
func (s *State) covered(c *Config, in *set, w, a uint8) bool {
	if !c.Rules.ContextCoversDots {
		return in.ids&(1<<w) != 0
	}
	dot := s.writes[w].try[a-1].stamp
	return in.seen[dot.node] >= dot.time
}

// merge joins two sets: a version survives unless the other side's context covers it without holding it.
func (s *State) merge(c *Config, x, y *set) set {
	var out set
	for w := range uint8(writesMax) {
		a, b := x.held[w], y.held[w]
		if a != b && a != 0 && s.covered(c, y, w, a) && (b == 0 || c.Rules.ContextCoversDots) {
			a = 0
		}
		if b != x.held[w] && b != 0 && s.covered(c, x, w, b) && (x.held[w] == 0 || c.Rules.ContextCoversDots) {
			b = 0
		}
		out.held[w] = max(a, b)
	}
	for i := range out.seen {
		out.seen[i] = max(x.seen[i], y.seen[i])
	}
	out.need = s.later(c, x.need, y.need)
	out.ids = x.ids | y.ids
	return out
}

// highest returns the highest stamp in a set.
func (s *State) highest(c *Config, in *set) stamp {
	var top stamp
	for w, a := range in.held {
		if a != 0 && s.writes[w].try[a-1].stamp.after(top, &c.Rules) {
			top = s.writes[w].try[a-1].stamp
		}
	}
	return top
}

// base is the position that a replica takes for the base of a stamp, or gives to a coordinator that it refuses.
func (s *State) base(c *Config, r uint8) uint8 {
	switch {
	case !c.Rules.BaseIsAppended:
		return s.log[s.node[r].last].pos + 1
	case !c.Rules.BaseTermIsCommitted:
		return s.log[s.node[r].last].pos
	}
	id := s.node[r].last
	for termOf(s.log[id].pos) > termOf(s.log[s.node[r].commit].pos) {
		id = s.log[id].prev
	}
	return s.log[id].pos
}

// stampAnew gives the write its next stamp, above all that its coordinator holds, has seen or has promised, and puts it on top
// of what the coordinator holds. It says false when the
// write cannot be stamped now, or has used up its attempts.
func (s *State) stampAnew(c *Config, w uint8) bool {
	o := &s.writes[w]
	if o.tries == attemptsMax {
		return false
	}
	n := &s.node[o.at]
	held := s.surviving(c, o.at, n.held)
	top := s.highest(c, &held)
	for _, seen := range [...]stamp{o.above, s.fence(c, o.at)} {
		if seen.after(top, &c.Rules) {
			top = seen
		}
	}
	base := max(s.base(c, o.at), o.base)
	if base < top.base {
		return false // it waits until the term of the entry that it must follow is known to have committed
	}
	now := max(n.clock, n.promise, o.late) + 1
	if base == top.base {
		now = max(now, top.time+1)
		if c.Rules.NodeBreaksTies && top.node < o.at && n.clock < top.time && max(n.promise, o.late) < top.time {
			now = top.time // the same reading with a higher node is above it
		}
	}
	n.clock = now
	o.tries++
	try := &o.try[o.tries-1]
	try.stamp = stamp{base: base, time: now, node: o.at}
	ids := held.ids
	held.held = [writesMax]uint8{}
	held.held[w] = o.tries
	held.seen[o.at] = max(held.seen[o.at], now)
	if !c.Rules.ContextCoversDots {
		held.ids = ids | 1<<w
	}
	n.held, try.sent = held, held
	for r := range uint8(replicas) {
		if c.Writes[w].Lost&(1<<r) == 0 {
			try.to[r] = flightSent
		}
	}
	s.acknowledge(c, w, o.tries, o.at)
	return true
}

// acknowledge notes that the replica has accepted an attempt.
func (s *State) acknowledge(c *Config, w, a, r uint8) {
	to := &s.writes[w].try[a-1].to[r]
	*to = flightAcked
	if s.unsynced(c, r) {
		*to = flightUnsynced
	}
	s.count(w)
}

// count ends a write that a majority has acknowledged.
func (s *State) count(w uint8) {
	o := &s.writes[w]
	if o.phase != phaseOpen {
		return
	}
	acks := 0
	for _, to := range o.try[o.tries-1].to {
		if to == flightAcked {
			acks++
		}
	}
	if acks >= majority {
		o.phase = phaseReturned
		s.returned |= 1 << w
	}
}

// deliver is the order in which a replica accepts.
func (s *State) deliver(c *Config, w, a, r uint8) {
	o, n := &s.writes[w], &s.node[r]
	try := &o.try[a-1]
	fence := s.fence(c, r)
	covered := s.covered(c, &n.held, w, a)
	top := s.highest(c, &n.held)
	switch {
	case s.settled(r).covers(c, w, a), !c.Rules.FenceBeforeCovered && covered:
		s.acknowledge(c, w, a, r)
	case !try.stamp.after(fence, &c.Rules), try.stamp.time <= n.promise:
		s.refuse(c, w, a, r, fence)
	case c.Rules.HigherBeforeCovered && top.after(try.stamp, &c.Rules):
		s.refuse(c, w, a, r, top)
	case covered:
		s.acknowledge(c, w, a, r)
	case top.after(try.stamp, &c.Rules):
		s.refuse(c, w, a, r, top)
	default:
		s.arrive(c, r, try.sent)
		s.acknowledge(c, w, a, r)
	}
}

// refuse tells the coordinator what its attempt must be above.
func (s *State) refuse(c *Config, w, a, r uint8, top stamp) {
	o := &s.writes[w]
	o.try[a-1].to[r] = flightRefused
	if a != o.tries || o.phase != phaseOpen {
		return
	}
	seen := top
	if held := s.highest(c, &s.node[r].held); held.after(seen, &c.Rules) {
		seen = held
	}
	o.base = max(o.base, s.base(c, r))
	if seen.after(o.above, &c.Rules) {
		o.above = seen
	}
	o.late = max(o.late, s.node[r].promise)
}

// arrive merges a set into a replica, as far as the drop rule lets it.
func (s *State) arrive(c *Config, r uint8, in set) {
	if c.Rules.DropRule {
		in = s.surviving(c, r, in)
	}
	s.node[r].held = s.merge(c, &s.node[r].held, &in)
}

// restamp stamps a refused write anew. One that the strong lane has taken in by now has succeeded.
func (s *State) restamp(c *Config, w uint8) bool {
	o := &s.writes[w]
	refused := false
	for _, to := range o.try[o.tries-1].to {
		refused = refused || to == flightRefused
	}
	if !refused {
		return false
	}
	if s.settled(o.at).covers(c, w, o.tries) {
		o.phase = phaseReturned
		s.returned |= 1 << w
		return true
	}
	return s.stampAnew(c, w)
}
