package model

import (
	"fmt"
	"strings"
)

// Describe tells a trace as prose, one numbered line a step, and ends with what it broke. Replicas are n0 to n2; eventual
// writes are w0, w1, …, with their attempts as w0.1, w0.2; strong operations are s0, s1, …. An entry is named by its term
// and index, a stamp by its base, its clock reading and its node.
func (c *Config) Describe(out *Outcome) string {
	var b strings.Builder
	c.describeMix(&b)
	s := c.initial()
	for i, step := range out.Trace {
		was := s
		c.take(&s, step)
		fmt.Fprintf(&b, "%2d. %s\n", i+1, c.sentence(step, &was, &s))
	}
	if out.Wrong != "" {
		fmt.Fprintf(&b, "Broken: %s.\n", out.Wrong)
	}
	return b.String()
}

func (c *Config) describeMix(b *strings.Builder) {
	fmt.Fprintf(b, "n0 leads term 1; clocks start at %d, %d and %d; the key is absent.\n", c.Clocks[0], c.Clocks[1], c.Clocks[2])
	for i := range c.Writes {
		fmt.Fprintf(b, "w%d: eventual write of %s%s\n", i, valueName(valueOf(uint8(i))), c.afterwards(c.Writes[i]))
	}
	for i, op := range c.Strong {
		what := [...]string{Get: "get", Put: "put of", CompareAndSet: "compare-and-set to", Delete: "delete"}[op.Kind]
		if op.Kind == Put || op.Kind == CompareAndSet {
			what += " " + valueName(valueOf(uint8(i)+writesMax))
		}
		fmt.Fprintf(b, "s%d: strong %s%s\n", i, what, c.afterwards(op))
	}
	b.WriteString("\n")
}

func (c *Config) afterwards(op Op) string {
	if op.After == 0 {
		return ""
	}
	return ", begun after " + opName(op.After-1) + " returned"
}

func opName(id uint8) string {
	if id < writesMax {
		return fmt.Sprintf("w%d", id)
	}
	return fmt.Sprintf("s%d", id-writesMax)
}

func valueName(v uint8) string {
	if v == absent {
		return "nothing"
	}
	return strings.ToUpper(opName(v - 1))
}

func positionName(pos uint8) string { return fmt.Sprintf("%d.%d", termOf(pos), indexOf(pos)) }

func (a stamp) String() string {
	return fmt.Sprintf("(%s, %d, n%d)", positionName(a.base), a.time, a.node)
}

func (s *State) heldName(in *set) string {
	var held []string
	for w, a := range in.held {
		if a != 0 {
			held = append(held, fmt.Sprintf("w%d.%d %v", w, a, s.writes[w].try[a-1].stamp))
		}
	}
	if held == nil {
		return "nothing"
	}
	return strings.Join(held, " and ")
}

func (s *State) appliedName(r uint8) string {
	t := s.settled(r)
	return fmt.Sprintf("n%d has applied %s, where S is %s at %v", r, positionName(s.log[s.node[r].commit].pos), valueName(t.value), t.stamp)
}

func (c *Config) sentence(step Step, was, is *State) string {
	switch step.kind {
	case stepBegin, stepRestamp, stepDeliver, stepHint:
		return c.writeSentence(step, was, is)
	case stepReplicate:
		text := fmt.Sprintf("n%d replicates its log up to %s to n%d", step.a, positionName(is.log[is.node[step.b].last].pos), step.b)
		for _, r := range [...]uint8{step.a, step.b} {
			if is.node[r].commit != was.node[r].commit {
				text += "; " + is.appliedName(r)
			}
		}
		return text + "."
	case stepElect:
		return fmt.Sprintf("n%d becomes leader of term %d with the vote of n%d.", step.a, is.node[step.a].term, step.b)
	case stepSync:
		return fmt.Sprintf("n%d syncs%s.", step.a, c.outcomes(was, is))
	case stepCrash:
		return fmt.Sprintf("n%d crashes, loses what was not synced, and comes back.", c.Victim)
	case stepRepair:
		return fmt.Sprintf("A repair carries what n%d holds to n%d, which now holds %s.", step.a, step.b, is.heldName(&is.node[step.b].held))
	}
	return c.strongSentence(step, was, is)
}

func (c *Config) writeSentence(step Step, was, is *State) string {
	if step.kind == stepBegin && step.a >= writesMax {
		i := step.a - writesMax
		if c.Strong[i].Kind == Put {
			return fmt.Sprintf("s%d begins at n%d, which appends its entry %s.", i, step.b, positionName(is.log[is.node[step.b].last].pos))
		}
		return fmt.Sprintf("s%d begins at n%d.", i, step.b)
	}
	o := &is.writes[step.a]
	switch {
	case step.kind == stepBegin:
		return fmt.Sprintf("w%d begins at n%d, which stamps it %v and sends it.", step.a, o.at, o.try[0].stamp)
	case step.kind == stepRestamp && o.phase == phaseReturned:
		return fmt.Sprintf("n%d sees that w%d was settled: it is acknowledged.", o.at, step.a)
	case step.kind == stepRestamp:
		return fmt.Sprintf("n%d stamps w%d anew, w%d.%d %v, and sends it%s.", o.at, step.a, step.a, o.tries, o.try[o.tries-1].stamp, c.outcomes(was, is))
	case step.kind == stepHint:
		return fmt.Sprintf("A hint of w%d.%d reaches n%d, which now holds %s.", step.a, step.n, step.b, is.heldName(&is.node[step.b].held))
	}
	did := "acknowledges it"
	if o.try[step.n-1].to[step.b] == flightRefused {
		did = "refuses it"
	}
	return fmt.Sprintf("w%d.%d reaches n%d, which %s and holds %s%s.", step.a, step.n, step.b, did,
		is.heldName(&is.node[step.b].held), c.outcomes(was, is))
}

func (c *Config) strongSentence(step Step, was, is *State) string {
	op, old := &is.strong[step.a], &was.strong[step.a]
	name := fmt.Sprintf("s%d", step.a)
	at := fmt.Sprintf("n%d", old.at)
	ended := c.outcomes(was, is)
	switch {
	case step.kind == stepPeek && c.Strong[step.a].Kind != Get && op.h != 0:
		return fmt.Sprintf("n%d answers the peek of %s with h = %d: it holds %s.", step.b, name, op.h, is.heldName(&is.node[step.b].held))
	case step.kind == stepPeek:
		return fmt.Sprintf("n%d answers the peek of %s: it holds %s.", step.b, name, is.heldName(&is.node[step.b].held))
	case step.kind == stepRetry && ended != "":
		return fmt.Sprintf("%s is retried at n%d, which answers from its dedup row%s.", name, step.b, ended)
	case step.kind == stepRetry && is.entries != was.entries:
		return fmt.Sprintf("%s is retried at n%d, which appends it as %s.", name, step.b, positionName(is.log[is.entries].pos))
	case step.kind == stepRetry:
		return fmt.Sprintf("%s is retried at n%d, which waits for its entry.", name, step.b)
	case is.entries != was.entries:
		e := &is.log[is.entries]
		what := [...]string{entrySwap: "its entry", entrySettle: "a Settle of " + fmt.Sprintf("w%d", e.write), entryCover: "its second entry"}[e.kind]
		return fmt.Sprintf("%s has what it needs, and %s appends %s as %s.", name, at, what, positionName(e.pos))
	case ended != "":
		return strings.TrimPrefix(ended, ", and ") + "."
	case op.phase == phaseGaveUp:
		return name + " gives up."
	case op.answered == 0 && op.known != 0:
		return fmt.Sprintf("%s has found w%d.%d and peeks again.", name, op.known&0xf-1, op.known>>4)
	case op.answered == 0:
		return name + " peeks again."
	}
	return name + " goes on."
}

// outcomes tells which operations returned in a step.
func (c *Config) outcomes(was, is *State) string {
	var b strings.Builder
	for id := range uint8(opsMax) {
		if (is.returned&^was.returned)&(1<<id) == 0 {
			continue
		}
		switch kind := c.opOf(id).Kind; kind {
		case Eventual:
			fmt.Fprintf(&b, ", and %s is acknowledged", opName(id))
		case Put:
			fmt.Fprintf(&b, ", and %s is acknowledged", opName(id))
		default:
			fmt.Fprintf(&b, ", and %s returns, having read %s", opName(id), valueName(is.strong[id-writesMax].value))
		}
	}
	return b.String()
}
