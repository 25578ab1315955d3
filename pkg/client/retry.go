package client

import (
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// attemptsMax bounds how often one operation is sent. The deadline ends it long before, unless endpoints refuse at once.
const attemptsMax = 100

// failure is one failed attempt, as the decision about the next one needs it.
type failure struct {
	write    bool
	named    bool // a strong write with an id, which is not applied twice
	unsure   bool // an attempt before may have been applied
	attempts int  // how often the operation was sent, this time included
	err      *kv.Error
	// lost: the connection broke before an answer came.
	lost bool
}

// pacing is what the decision needs to know of the client.
type pacing struct {
	endpoints          int
	retryMin, retryMax time.Duration
}

// next decides what follows a failed attempt: whether to send again, and after which pause. The caller checks the deadline.
//
// A write is sent again only when it was certainly not applied, or has an id. A lost read is sent again at once, because another
// endpoint is as good; a refusal (no leader, not ready, overloaded) is worth a pause, because the next endpoint will most likely
// say the same. QUORUM_UNAVAILABLE depends on which side of a cut the endpoint is, and on whether it has just started and met
// nobody yet, so that each endpoint is tried once.
func (p pacing) next(f failure) (pause time.Duration, again bool) {
	if f.attempts >= attemptsMax {
		return 0, false
	}
	unsure := f.write && (f.unsure || f.err.Outcome != kv.OutcomeNotApplied)
	switch {
	case f.lost && f.attempts <= p.endpoints:
		return 0, !f.write || f.named
	case f.lost:
		return p.pause(f.attempts), f.named
	case unsure && !f.named:
		return 0, false
	}
	switch f.err.Code {
	case kv.CodeDeadlineExceeded:
		return p.pause(f.attempts), unsure && f.err.Retryable
	case kv.CodeNoLeader, kv.CodeNotReady, kv.CodeOverloaded:
		return max(p.pause(f.attempts), f.err.RetryAfter), f.err.Retryable
	case kv.CodeQuorumUnavailable:
		if unsure {
			return p.pause(f.attempts), f.err.Retryable
		}
		return 0, f.attempts < p.endpoints
	default:
		return 0, false
	}
}

// pause doubles from retryMin to retryMax.
func (p pacing) pause(attempts int) time.Duration {
	const doublingsMax = 16 // far beyond any sensible retryMax; keeps the shift from overflowing
	return min(p.retryMin<<min(attempts-1, doublingsMax), p.retryMax)
}
