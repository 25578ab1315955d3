package kv

import "strings"

// Level is the consistency level of one request: its place on the CAP triangle.
type Level uint8

// The levels. LevelUnset means that the policy of the key's prefix, else the cluster, chooses.
const (
	LevelUnset Level = iota
	// LevelStrong is linearizable: committed, or confirmed, by the partition's Raft group.
	LevelStrong
	// LevelEventual is acknowledged by W of n replicas, and read from R of n.
	LevelEventual
	// LevelLocal is acknowledged by one replica and sent on to the others; read from one replica, the nearest.
	LevelLocal
	// LevelCausal is eventual, and never older than what the request's session has seen.
	LevelCausal
	// LevelBounded reads from any one replica that was proven no staler than the request's MaxStaleness. It has no writes.
	LevelBounded
)

// LevelLast is the last of the levels.
const LevelLast = LevelBounded

var levelNames = [...]string{"", "strong", "eventual", "local", "causal", "bounded"}

// String returns the level's name as requests spell it, and "" for LevelUnset.
func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return "invalid"
}

// Valid reports whether l is one of the levels that a request can ask for.
func (l Level) Valid() bool { return l >= LevelStrong && l <= LevelLast }

// ParseLevel reads a level's name. An unknown one is an error with code CodeUnknownConsistency; so is the empty string.
func ParseLevel(s string) (Level, error) {
	for l := LevelStrong; l <= LevelLast; l++ {
		if levelNames[l] == s {
			return l, nil
		}
	}
	return LevelUnset, Errorf(CodeUnknownConsistency, "unknown consistency level %q; the levels are %s",
		s, strings.Join(levelNames[1:], ", "))
}

// Outcome is what is known about a write's effect once its request has been answered.
type Outcome uint8

// The outcomes. The zero value is OutcomeNotApplied: an error made before anything was sent needs no care to be honest.
const (
	// OutcomeNotApplied: nothing was written and nothing of it will appear later.
	OutcomeNotApplied Outcome = iota
	// OutcomeApplied: the write took effect.
	OutcomeApplied
	// OutcomeUnknown: the write was sent and may or may not have taken effect, or may still do so.
	OutcomeUnknown
)

var outcomeNames = [...]string{"not_applied", "applied", "unknown"}

// String returns the outcome as answers spell it.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "invalid"
}

// Quorum is the choice of N, R and W for one request.
//
// Invariant, once resolved: 1 <= R, W <= N <= the partition's number of replicas.
type Quorum struct {
	N, R, W int
}

// Majority is the smallest number of replicas out of n that any other such number must overlap.
func Majority(n int) int { return n/2 + 1 }

// Resolve fills what q leaves unset (zero) from defaults and checks the result against the partition's number of
// replicas. A default of R or W larger than a smaller N asked for by the request is lowered to that N.
// The error has code CodeBadQuorum.
func (q Quorum) Resolve(defaults Quorum, replicas int) (Quorum, error) {
	out := q
	if out.N == 0 {
		out.N = min(defaults.N, replicas)
	}
	if out.R == 0 {
		out.R = min(defaults.R, out.N)
	}
	if out.W == 0 {
		out.W = min(defaults.W, out.N)
	}
	switch {
	case out.N < 1 || out.N > replicas:
		return Quorum{}, Errorf(CodeBadQuorum, "n=%d is out of range: 1 <= n <= %d replicas", out.N, replicas)
	case out.R < 1 || out.R > out.N:
		return Quorum{}, Errorf(CodeBadQuorum, "r=%d is out of range: 1 <= r <= n=%d", out.R, out.N)
	case out.W < 1 || out.W > out.N:
		return Quorum{}, Errorf(CodeBadQuorum, "w=%d is out of range: 1 <= w <= n=%d", out.W, out.N)
	}
	return out, nil
}
