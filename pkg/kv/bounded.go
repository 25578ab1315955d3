package kv

import "time"

// How stale an answer at level bounded may be (Request.MaxStaleness).
const (
	// MaxStalenessMin is the least that can be asked for. Who wants less wants level strong.
	MaxStalenessMin = time.Millisecond
	// MaxStalenessMax is the most. A replica that has proven nothing for longer has been away.
	MaxStalenessMax = time.Hour
	// MaxStalenessDefault is what a request asks for that does not say. It outlasts the election of a leader.
	MaxStalenessDefault = 5 * time.Second
)

// validateBounded checks what a request of level bounded asks for, and that no other request asks for it.
func (r *Request) validateBounded() error {
	switch {
	case r.Level != LevelBounded && r.MaxStaleness != 0:
		return Errorf(CodeBadRequest, "max-staleness goes with level bounded, not with %s", r.Level)
	case r.Level != LevelBounded:
		return nil
	case r.Op.IsWrite():
		return Errorf(CodeBadRequest, "level bounded is for reads: a %s goes with strong, eventual, local or causal", r.Op)
	case r.MaxStaleness != 0 && (r.MaxStaleness < MaxStalenessMin || r.MaxStaleness > MaxStalenessMax):
		return Errorf(CodeBadRequest, "max-staleness=%s is out of range: it is %s to %s; an answer that is not stale at all is level strong's",
			r.MaxStaleness, MaxStalenessMin, MaxStalenessMax)
	}
	return nil
}

// StalenessMillis is how stale the answer is at most in whole milliseconds, rounded up.
func (r *Response) StalenessMillis() int64 {
	return int64((r.Staleness + time.Millisecond - 1) / time.Millisecond)
}
