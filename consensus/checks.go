package consensus

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// checkSoonTicks is how long after a check the next one comes at the earliest that no user asked for.
const checkSoonTicks = 100

// ticksOf rounds a duration up to ticks.
func (l *loop) ticksOf(d time.Duration) uint64 {
	return uint64((d + l.cfg.TickInterval - 1) / l.cfg.TickInterval)
}

// tickChecks proposes the checks of a led group that are due, and ends the one that waited for long enough.
func (l *loop) tickChecks(g *group) {
	if g.quarantine != nil {
		l.tickQuarantine(g)
		return
	}
	if !g.leads() {
		return
	}
	if c := g.check; c != nil && !c.done && c.due != 0 && l.ticks >= c.due {
		l.judge(g, true)
	}
	if g.checkAt == 0 && l.cfg.CheckTicks > 0 {
		g.checkAt = l.ticks + l.firstCheck(g.id)
	}
	if g.checkAt != 0 && l.ticks >= g.checkAt {
		l.proposeCheck(g)
	}
}

// firstCheck is how long after it began to lead a leader checks for the first time: between half an interval and one, by
// the group, so that groups which are led since the same moment are not hashed all at once.
func (l *loop) firstCheck(g kv.GroupID) uint64 {
	half := uint64(l.cfg.CheckTicks)/2 + 1
	return half + uint64(g)*0x9e3779b97f4a7c15>>33%half
}

// proposeCheck proposes the entry at which all replicas hash their state: one with a header and without commands, so that a
// replica which knows nothing of checks does nothing at it. It returns false when that is not possible now.
func (l *loop) proposeCheck(g *group) bool {
	now, ok := l.deps.Clock.TryNow()
	if !ok {
		l.extendClock()
	}
	if !ok || g.transferring {
		return false
	}
	g.checkAt = 0
	if l.cfg.CheckTicks > 0 {
		g.checkAt = l.ticks + uint64(l.cfg.CheckTicks)
	}
	g.checkedAt = l.ticks
	l.propose(g, nil, now)
	return true
}

// beginCheck takes the state as of an entry that asks for a check, which was just applied. The hashing runs elsewhere.
func (l *loop) beginCheck(g *group, pos causal.Position) {
	if g.quarantine != nil {
		return
	}
	g.check = newStateCheck(pos)
	g.view.checking.Store(pos.Index)
	snap, err := l.deps.Engine.PinGroup(g.id)
	if err == nil {
		select {
		case l.hashings <- hashing{group: g.id, pos: pos, snap: snap}:
			return
		default:
			snap.Close()
			err = errors.New("too many others wait")
		}
	}
	l.leaveOut(g, err)
}

// leaveOut ends this replica's part in the check.
func (l *loop) leaveOut(g *group, err error) {
	l.metrics.checksLeftOut.Inc()
	l.log.Warn("this replica leaves a check out", "group", g.id, "index", g.check.pos.Index, "error", err)
	g.check.due = l.ticks + l.ticksOf(checkPatience)
}

// hashed takes over the sum of this replica's state.
func (l *loop) hashed(j hashing, sum uint64, took time.Duration, err error) {
	g := l.groups[j.group]
	if g.check == nil || g.check.pos != j.pos || g.stopped != nil || g.quarantine != nil {
		return
	}
	if err != nil {
		l.leaveOut(g, err)
		if errors.Is(err, storage.ErrCorruption) {
			l.distrust(g, err)
		}
		return
	}
	patience := checkPatience + checkSlowness*took
	g.check.sums[l.deps.Self] = sum
	g.check.due = l.ticks + l.ticksOf(patience)
	if g.leads() {
		l.judge(g, false)
	}
	if g.quarantine == nil && !(g.leads() && g.check.done) {
		// A leader reports to itself, too: it may not lead for long enough to see the end.
		generation := g.view.trust.Load()
		l.running.Go(func() { l.report(l.background, j, generation, sum, patience) })
	}
}

// answerCheck answers a request about a check, from a peer or from this node.
func (l *loop) answerCheck(from kv.NodeID, c *checkRequest) checkReply {
	g := l.groups[c.group]
	if g == nil || g.stopped != nil || g.quarantine != nil || !g.leads() {
		return checkReply{verdict: verdictElsewhere}
	}
	switch c.verb {
	case checkStart:
		if g.check != nil && !g.check.done && g.check.pos.Term == g.term {
			return checkReply{verdict: verdictDone, result: CheckResult{Index: g.check.pos.Index - 1}}
		}
		before := g.applied.Index
		if !l.proposeCheck(g) {
			return checkReply{verdict: verdictElsewhere}
		}
		return checkReply{verdict: verdictDone, result: CheckResult{Index: before}}
	case checkSoon:
		if at := max(l.ticks+1, g.checkedAt+checkSoonTicks); g.checkAt == 0 || at < g.checkAt {
			g.checkAt = at
		}
		return checkReply{verdict: verdictDone}
	case checkAsk:
		if g.check == nil || g.check.pos.Index <= c.pos.Index {
			return checkReply{verdict: verdictUndecided}
		}
		return checkReply{verdict: verdictDone, result: g.check.result(g.conf)}
	default:
		return checkReply{verdict: l.reported(g, from, c)}
	}
}

// reported takes in what a replica has, and says what that means as far as it is known.
func (l *loop) reported(g *group, from kv.NodeID, c *checkRequest) checkVerdict {
	switch {
	case !slices.Contains(members(g.conf), from):
		return verdictOver
	case g.check != nil && g.check.pos == c.pos:
	case c.pos.Index > g.applied.Index:
		return verdictUndecided // it was faster
	default:
		return verdictOver
	}
	if known, again := g.check.sums[from]; again && known != c.sum {
		return verdictOver // it has been rebuilt, or is confused
	}
	g.check.sums[from] = c.sum
	l.judge(g, false)
	return g.check.verdict(g.conf, from)
}

// judge acts on what is known of a check. over says that nobody is waited for any longer.
func (l *loop) judge(g *group, over bool) {
	c, was := g.check, g.check.done
	accused := c.judge(g.conf, over)
	right, found := c.right(g.conf)
	for id, sum := range c.sums {
		if found && sum == right {
			delete(g.suspects, id)
		}
	}
	for _, id := range accused {
		l.violation(g, "a replica's state differs from the majority's", "node", id, "hash", fmt.Sprintf("%016x", c.sums[id]),
			"majority", fmt.Sprintf("%016x", right))
		if g.suspects == nil {
			g.suspects = make(map[kv.NodeID]bool)
		}
		g.suspects[id] = true
	}
	if c.done && !was {
		l.finishCheck(g)
	}
	if slices.Contains(accused, l.deps.Self) {
		l.distrust(g, fmt.Errorf("%w at entry %d", errDiffers, c.pos.Index))
	}
}

// finishCheck notes how a check ended.
func (l *loop) finishCheck(g *group) {
	c := g.check
	result := checkEqual
	switch silent := c.silent(g.conf); {
	case len(c.accused) > 0:
		result = checkDifferent
	case c.split:
		result = checkSplit
		var sums []any
		for id, sum := range c.sums {
			sums = append(sums, fmt.Sprintf("node %d", id), fmt.Sprintf("%016x", sum))
		}
		l.violation(g, "replicas' states differ and no majority agrees: nobody can say who is right", sums...)
		if len(silent) > 0 {
			g.checkAt = max(l.ticks+1, g.checkedAt+checkSoonTicks) // who was silent may know
		}
	case len(silent) > 0:
		result = checkIncomplete
	}
	l.metrics.checks.WithLabelValues(result).Inc()
	l.log.Info("the replicas' states were compared", "group", g.id, "index", c.pos.Index, "result", result)
	g.publish()
}

// violation counts and tells that replicas of one group have been found in different states.
func (l *loop) violation(g *group, what string, args ...any) {
	invariant.Check(g.check != nil, "group %d: a violation without a check", g.id)
	l.violations.Add(1)
	l.log.Error("consistency violation: "+what, append([]any{"group", g.id, "index", g.check.pos.Index, "term", g.check.pos.Term}, args...)...)
}

// condemned is told that this replica's state at the position is not what a majority has.
func (l *loop) condemned(id kv.GroupID, pos causal.Position, sum uint64) {
	g := l.groups[id]
	if g.check == nil || g.check.pos != pos || g.check.sums[l.deps.Self] != sum {
		return // it has been replaced meanwhile
	}
	l.distrust(g, fmt.Errorf("%w at entry %d", errDiffers, pos.Index))
}
