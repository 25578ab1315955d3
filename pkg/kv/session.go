package kv

// SessionBytesMax bounds a session's token.
const SessionBytesMax = 8 << 10

// SessionNew begins a session where a token would stand.
const SessionNew = "new"

// validateSession checks whether the request can be one of a session.
func (r *Request) validateSession() error {
	key := r.Op == OpGet || r.Op == OpPut || r.Op == OpDelete
	switch {
	case r.Level == LevelCausal && !key:
		return Errorf(CodeBadRequest, "level causal goes with reads and writes of one key, not with a %s", r.Op)
	case len(r.Session) == 0:
		return nil
	case len(r.Session) > SessionBytesMax:
		return Errorf(CodeBadRequest, "the session token has %d bytes; it is not one that an answer gave", len(r.Session))
	case !key || r.Level != LevelCausal && r.Level != LevelStrong:
		return Errorf(CodeBadRequest, "a session goes with operations on one key at the levels causal and strong, not with a %s at %s", r.Op, r.Level)
	}
	return nil
}
