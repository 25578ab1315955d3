package kv

// validateFallback checks that the level which a request permits beside its own is one, is weaker, and can honour all else that
// the request asks for.
func (r *Request) validateFallback() error {
	switch {
	case r.Fallback == LevelUnset:
		return nil
	case r.Op != OpGet && r.Op != OpPut && r.Op != OpDelete:
		return Errorf(CodeBadRequest, "fallback= goes with reads and writes of one key, not with a %s", r.Op)
	case r.Fallback != LevelEventual && r.Fallback != LevelLocal:
		return Errorf(CodeBadRequest, "fallback=%s: one can fall back to %s or %s only", r.Fallback, LevelEventual, LevelLocal)
	case r.Fallback.strength() >= r.Level.strength():
		return Errorf(CodeBadRequest, "fallback=%s is not weaker than level %s, which was asked for", r.Fallback, r.Level)
	case r.Condition.Kind != ConditionNone:
		return Errorf(CodeBadRequest, "a condition can only be honoured at level strong, so that there is nothing to fall back to")
	case r.ID.Required:
		return Errorf(CodeBadRequest, "an Idempotency-Key can only be honoured at level strong, so that there is nothing to fall back to")
	}
	return nil
}

// strength orders levels by what they promise, the weakest first.
func (l Level) strength() int {
	switch l {
	case LevelStrong:
		return 4
	case LevelCausal, LevelBounded:
		return 3
	case LevelEventual:
		return 2
	case LevelLocal:
		return 1
	default:
		return 0
	}
}

// Weakened returns the request at its fallback level, without what only the stronger one could honour.
func (r *Request) Weakened() *Request {
	out := *r
	out.Level, out.Fallback = r.Fallback, LevelUnset
	out.Session, out.MaxStaleness = nil, 0
	out.ID = OpID{} // the weaker levels remember nothing
	if out.Level == LevelLocal {
		out.Quorum, out.Sloppy = Quorum{}, false
	}
	return &out
}
