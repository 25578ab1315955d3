package client

import (
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// request is an operation as the options make it.
type request struct {
	kv.Request
	timeout time.Duration
	refused *kv.Error // the first option that made no sense
}

// Option changes one operation. An option that the operation or its level cannot honour makes the operation fail; none is ignored.
type Option func(*request)

// Strong asks for level strong: linearizable.
func Strong() Option { return func(r *request) { r.Level = kv.LevelStrong } }

// Eventual asks for level eventual: a write acknowledged by W replicas, a read merged from R.
func Eventual() Option { return func(r *request) { r.Level = kv.LevelEventual } }

// Local asks for level local: one replica, the nearest.
func Local() Option { return func(r *request) { r.Level = kv.LevelLocal } }

// Causal asks for level causal: eventual, and never older than what the session has seen. It is for use with a Session, which asks for
// it by itself; without one it begins a session, whose token Result.Session is.
func Causal() Option { return func(r *request) { r.Level = kv.LevelCausal } }

// SessionToken makes the operation one of the session whose token it is, at level causal if causal says so, else at the level that
// the other options say. Who keeps the token in the process uses a Session.
func SessionToken(token []byte, causal bool) Option {
	return func(r *request) {
		r.Session = token
		if causal {
			r.Level = kv.LevelCausal
		}
	}
}

// Bounded asks for level bounded: any one replica that was proven no staler than d, 1 ms to 1 h. It is for reads. Result.Staleness says
// how stale the answer is at most.
func Bounded(d time.Duration) Option {
	return func(r *request) {
		if d < kv.MaxStalenessMin || d > kv.MaxStalenessMax {
			r.refuse(kv.Errorf(kv.CodeBadRequest, "a staleness of %s is out of range: %s to %s", d, kv.MaxStalenessMin, kv.MaxStalenessMax))
			return
		}
		r.Level, r.MaxStaleness = kv.LevelBounded, d.Truncate(time.Millisecond)
	}
}

// AtLevel asks for the level; kv.LevelUnset leaves it to the policy of the key's prefix.
func AtLevel(level kv.Level) Option { return func(r *request) { r.Level = level } }

// Fallback permits a weaker level, kv.LevelEventual or kv.LevelLocal, where the one that was asked for cannot be met for want of
// replicas; Result.Level says which one the answer has. A write falls back only if it was certainly not applied at the stronger
// level.
func Fallback(level kv.Level) Option {
	return func(r *request) {
		if level == kv.LevelUnset {
			r.refuse(kv.Errorf(kv.CodeBadRequest, "there is no falling back to a level that is left to the policy"))
			return
		}
		r.Fallback = level
	}
}

// N chooses how many of the partition's replicas an eventual operation concerns, at least 1.
func N(n int) Option { return quorumOption("n", n, func(q *kv.Quorum) { q.N = n }) }

// R chooses how many replicas answer an eventual read, at least 1.
func R(r int) Option { return quorumOption("r", r, func(q *kv.Quorum) { q.R = r }) }

// W chooses how many replicas acknowledge an eventual write, at least 1.
func W(w int) Option { return quorumOption("w", w, func(q *kv.Quorum) { q.W = w }) }

// Sloppy lets durable hints on nodes that are no replicas of the key count towards the W of an eventual write; Result.Hinted says
// how many did.
func Sloppy() Option { return func(r *request) { r.Sloppy = true } }

// quorumOption refuses numbers below 1 here, because on the wire 0 means "not chosen" and would be ignored.
func quorumOption(name string, value int, set func(*kv.Quorum)) Option {
	return func(r *request) {
		if value < 1 {
			r.refuse(kv.Errorf(kv.CodeBadQuorum, "%s=%d is out of range: at least 1", name, value))
			return
		}
		set(&r.Quorum)
	}
}

// IfVersion makes a strong write succeed only while the key's version is the given one; 0 means that the key must not exist.
func IfVersion(version uint64) Option {
	return func(r *request) { r.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version} }
}

// CreateOnly makes a strong write succeed only if the key does not exist.
func CreateOnly() Option { return IfVersion(0) }

// IfExists makes a strong write succeed only if the key exists.
func IfExists() Option {
	return func(r *request) { r.Condition = kv.Condition{Kind: kv.ConditionExists} }
}

// OperationID names a strong write by a text of 1 to 255 printable ASCII characters, as Idempotency-Key does over HTTP: whoever writes
// again under the same name, be it another process, gets the first write's outcome and writes nothing. Without it the
// client names its strong writes itself, which serves its own retries only. Any other text is refused, above all the empty one,
// which would name nothing.
func OperationID(id string) Option {
	return func(r *request) {
		if !kv.IsOpName(id) {
			r.refuse(kv.Errorf(kv.CodeBadRequest, "an operation id is 1 to %d printable ASCII characters", kv.OpSessionBytesMax))
			return
		}
		r.ID = kv.OpID{Session: []byte(id), Required: true}
	}
}

// TTL makes the value of a strong write expire that long after it was written: whole milliseconds, at most kv.TTLMax.
func TTL(d time.Duration) Option {
	return func(r *request) {
		if d < time.Millisecond || d > kv.TTLMax || d%time.Millisecond != 0 {
			r.refuse(kv.Errorf(kv.CodeBadRequest, "a ttl of %s is out of range: whole milliseconds, at most %s", d, kv.TTLMax))
			return
		}
		r.TTL = d
	}
}

// Context hands back the causal context of an earlier result, so that an eventual write overwrites exactly what was read.
func Context(context []byte) Option { return func(r *request) { r.Context = context } }

// Siblings says how a read answers concurrent versions where the key's policy keeps them.
func Siblings(mode kv.SiblingMode) Option { return func(r *request) { r.Siblings = mode } }

// Timeout bounds the operation, retries included, in place of the client's default. At least 1 ms, which is its resolution.
func Timeout(d time.Duration) Option {
	return func(r *request) {
		if d < time.Millisecond || d > kv.RequestTimeoutMax {
			r.refuse(kv.Errorf(kv.CodeBadRequest, "a timeout of %s is out of range: 1ms to %s", d, kv.RequestTimeoutMax))
			return
		}
		r.timeout = d
	}
}

func (r *request) refuse(err *kv.Error) {
	if r.refused == nil {
		r.refused = err
	}
}
