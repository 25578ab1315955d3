package model

// linearizable says whether the operations so far can have happened one after the other on one register, each between its
// invocation and its return. One that has not returned may be left out.
func (s *State) linearizable(c *Config) bool {
	l := linearizer{s: s, c: c}
	return l.from(0, absent)
}

// linearizer remembers the dead ends: what was ordered so far, and the value that it left.
type linearizer struct {
	s    *State
	c    *Config
	dead [1 << opsMax][(opsMax + 1 + 7) / 8]uint8
}

func (l *linearizer) from(done, value uint8) bool {
	if l.s.returned&^done == 0 {
		return true
	}
	seen := &l.dead[done][value/8]
	if *seen&(1<<(value%8)) != 0 {
		return false
	}
	for id := range uint8(opsMax) {
		if done&(1<<id) != 0 || l.s.before[id]&^done != 0 || !l.s.begun(id) {
			continue
		}
		if next, ok := l.effect(id, value); ok && l.from(done|1<<id, next) {
			return true
		}
	}
	*seen |= 1 << (value % 8)
	return false
}

// begun says whether the operation was invoked.
func (s *State) begun(id uint8) bool {
	if id < writesMax {
		return s.writes[id].phase != phaseIdle
	}
	return s.strong[id-writesMax].phase != phaseIdle
}

// effect returns what the operation makes of a value, and whether its answer allows that it came to this value.
func (l *linearizer) effect(id, value uint8) (uint8, bool) {
	op := l.c.opOf(id)
	returned := l.s.returned&(1<<id) != 0
	if op.Kind == Eventual || op.Kind == Put {
		return valueOf(id), true
	}
	if returned && l.s.strong[id-writesMax].value != value {
		return 0, false
	}
	switch {
	case op.Kind == Delete:
		return absent, true
	case op.Kind == CompareAndSet && (op.Expects == anything || op.Expects == value):
		return valueOf(id), true
	}
	return value, returned // a read that has not returned tells nothing
}

// rising says whether the stamps of the settled value rise with every entry that writes it.
func (s *State) rising(c *Config) bool {
	for id := uint8(2); id <= s.entries; id++ {
		e := &s.log[id]
		was := s.log[e.prev].result
		if e.result.revision != was.revision && !e.result.stamp.after(was.stamp, &c.Rules) {
			return false
		}
	}
	return true
}
