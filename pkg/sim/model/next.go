package model

// Step is one thing that happens.
type Step struct {
	kind stepKind
	a    uint8 // an operation, or a replica
	b    uint8 // a replica
	n    uint8 // an attempt
}

type stepKind uint8

const (
	stepBegin stepKind = iota
	stepDeliver
	stepHint
	stepRestamp
	stepReplicate
	stepElect
	stepSync
	stepCrash
	stepRepair
	stepPeek
	stepDecide
	stepFinish
	stepRetry
)

// Next calls yield with every state that can follow, and the step that leads there.
func (c *Config) Next(s *State, yield func(Step, *State)) {
	try := func(step Step) {
		next := *s
		if c.take(&next, step) {
			yield(step, &next)
		}
	}
	for i := range uint8(len(c.Writes)) {
		c.nextWrite(s, i, try)
	}
	for i := range uint8(len(c.Strong)) {
		c.nextStrong(s, i, try)
	}
	for from := range uint8(replicas) {
		for to := range uint8(replicas) {
			if from == to {
				continue
			}
			if s.node[from].leads == 1 {
				try(Step{kind: stepReplicate, a: from, b: to})
			}
			if s.elections > 0 {
				try(Step{kind: stepElect, a: from, b: to})
			}
			if s.repairs > 0 {
				try(Step{kind: stepRepair, a: from, b: to})
			}
		}
	}
	if s.crashes > 0 {
		try(Step{kind: stepSync, a: c.Victim})
		try(Step{kind: stepCrash, a: c.Victim})
	}
}

// places calls f with the replicas that an operation may begin at.
func places(op Op, f func(r uint8)) {
	for r := range uint8(replicas) {
		if op.At == anywhere || op.At == r {
			f(r)
		}
	}
}

// mayBegin says whether an operation may be invoked now. Of equal operations the first begins first.
func (c *Config) mayBegin(s *State, id uint8) bool {
	op := c.opOf(id)
	if s.begun(id) || op.After != 0 && s.returned&(1<<(op.After-1)) == 0 {
		return false
	}
	same := id != 0 && id != writesMax && c.opOf(id-1) == op
	return !same || s.begun(id-1)
}

func (c *Config) nextWrite(s *State, i uint8, try func(Step)) {
	if c.mayBegin(s, i) {
		places(c.Writes[i], func(r uint8) { try(Step{kind: stepBegin, a: i, b: r}) })
	}
	o := &s.writes[i]
	for a := range o.tries {
		for r := range uint8(replicas) {
			if o.try[a].to[r] == flightSent {
				try(Step{kind: stepDeliver, a: i, b: r, n: a + 1})
			}
			if c.Hints && r != o.at {
				try(Step{kind: stepHint, a: i, b: r, n: a + 1})
			}
		}
	}
	if o.phase == phaseOpen {
		try(Step{kind: stepRestamp, a: i})
	}
}

func (c *Config) nextStrong(s *State, i uint8, try func(Step)) {
	if c.mayBegin(s, writesMax+i) {
		places(c.Strong[i], func(r uint8) { try(Step{kind: stepBegin, a: writesMax + i, b: r}) })
	}
	switch s.strong[i].phase {
	case phasePeeking:
		for r := range uint8(replicas) {
			try(Step{kind: stepPeek, a: i, b: r})
		}
		try(Step{kind: stepDecide, a: i})
	case phaseSettling, phaseProposed:
		try(Step{kind: stepFinish, a: i})
		if c.Strong[i].Kind == Put {
			for r := range uint8(replicas) {
				try(Step{kind: stepRetry, a: i, b: r})
			}
		}
	}
}

// take carries a step out and says whether it could happen and changed anything.
func (c *Config) take(s *State, step Step) bool {
	switch step.kind {
	case stepBegin:
		s.before[step.a] = s.returned
		if step.a >= writesMax {
			return s.begin(c, step.a-writesMax, step.b)
		}
		s.writes[step.a].phase, s.writes[step.a].at = phaseOpen, step.b
		return s.stampAnew(c, step.a)
	case stepDeliver:
		s.deliver(c, step.a, step.n, step.b)
	case stepHint:
		was := s.node[step.b]
		s.arrive(c, step.b, s.writes[step.a].try[step.n-1].sent)
		return s.node[step.b] != was
	case stepRestamp:
		return s.restamp(c, step.a)
	case stepReplicate:
		return s.replicate(c, step.a, step.b)
	case stepElect:
		return s.elect(c, step.a, step.b)
	case stepRepair:
		was := s.node[step.b]
		s.arrive(c, step.b, s.node[step.a].held)
		s.repairs--
		return s.node[step.b] != was
	case stepSync:
		was := *s
		s.sync(c, step.a)
		return *s != was
	case stepCrash:
		s.crash(c)
	case stepPeek:
		return s.peek(c, step.a, step.b)
	case stepDecide:
		return s.decide(c, step.a)
	case stepFinish:
		return s.finish(c, step.a)
	case stepRetry:
		return s.retry(c, step.a, step.b)
	}
	return true
}

// wrong says what of the promise a state breaks, given the one before it; "" if nothing.
func (c *Config) wrong(was, is *State) string {
	if is.returned != was.returned && !is.linearizable(c) {
		return "no order of the operations explains their answers"
	}
	if c.Rising && is.entries != was.entries && !is.rising(c) {
		return "the stamp of the settled value fell"
	}
	return ""
}
