package kv

import "time"

// Limits bounds what a request may carry.
type Limits struct {
	KeyBytesMax   int
	ValueBytesMax int
}

// DefaultLimits are the limits of design.md §12.
func DefaultLimits() Limits { return Limits{KeyBytesMax: KeyBytesMax, ValueBytesMax: ValueBytesMax} }

// Validate checks what can be checked of a request without knowing the cluster: sizes, the level, and that no parameter
// is given that the level cannot honour. Level must already be resolved. A parameter that would be ignored is an
// error, never silence.
func (r *Request) Validate(l Limits) error {
	if err := r.validateSizes(l); err != nil {
		return err
	}
	if !r.Level.Valid() {
		return Errorf(CodeUnknownConsistency, "unknown consistency level %d", r.Level)
	}
	if r.Condition.Kind != ConditionNone && !r.Op.IsWrite() {
		return Errorf(CodeBadRequest, "a condition guards a write; it means nothing on a read")
	}
	if err := r.validateTTL(); err != nil {
		return err
	}
	if err := r.ID.validate(r.Op, r.Level); err != nil {
		return err
	}
	if r.Op.IsWrite() && r.Siblings != SiblingsDefault {
		return Errorf(CodeBadRequest, "siblings= chooses how a read answers; it means nothing on a write")
	}
	if r.Sloppy && (r.Level != LevelEventual || !r.Op.IsWrite()) {
		return Errorf(CodeBadRequest, "sloppy= lets hints count as acknowledgements of a write at level eventual; it means nothing here")
	}
	if err := r.validateFallback(); err != nil {
		return err
	}
	if err := r.validateSession(); err != nil {
		return err
	}
	if err := r.validateBounded(); err != nil {
		return err
	}
	if r.Level == LevelStrong {
		return r.validateStrong(l)
	}
	if r.Op == OpList {
		if r.Quorum != (Quorum{}) {
			return Errorf(CodeBadRequest, "a listing asks as many replicas as the policy says; n, r and w go with single keys")
		}
		return r.validateList()
	}
	if r.Op == OpBatch {
		return Errorf(CodeBadRequest, "an atomic batch is applied at level strong, not at %s", r.Level)
	}
	if r.Op == OpInquire {
		return Errorf(CodeBadRequest, "only level strong remembers operations, not %s", r.Level)
	}
	if r.Condition.Kind != ConditionNone {
		return Errorf(CodeConditionNeedsStrong, "a condition can only be honoured at level strong, not at %s", r.Level)
	}
	if r.Op == OpGet && r.Quorum.W != 0 {
		return Errorf(CodeBadRequest, "w= counts acknowledgements of a write; a read takes r=")
	}
	// A write may carry R: clients send one N, R and W with all they do. It is checked against N and asks for nothing.
	if r.Op == OpGet && len(r.Context) > 0 {
		return Errorf(CodeBadRequest, "a context goes with a write; it means nothing on a read")
	}
	if r.Level == LevelBounded && r.Quorum != (Quorum{}) {
		return Errorf(CodeBadRequest, "level bounded asks whom it has to; n, r and w go with level eventual")
	}
	if r.Level == LevelLocal && r.Quorum != (Quorum{}) {
		return Errorf(CodeBadRequest, "level local always asks one replica; n, r and w go with level eventual")
	}
	return nil
}

func (r *Request) validateTTL() error {
	switch {
	case r.TTL == 0:
		return nil
	case r.Op != OpPut:
		return Errorf(CodeBadRequest, "ttl= says how long the value of a put is there; it means nothing on a %s", r.Op)
	case r.TTL == TTLKeep && r.Condition != (Condition{}) && r.Condition != (Condition{Kind: ConditionVersion}):
		return nil // there is something to keep it from
	case r.TTL < time.Millisecond || r.TTL > TTLMax || r.TTL%time.Millisecond != 0:
		return Errorf(CodeBadRequest, "ttl=%s is out of range: it is whole milliseconds, at least one and at most %d hours", r.TTL, int(TTLMax.Hours()))
	}
	return nil
}

func (r *Request) validateSizes(l Limits) error {
	switch {
	case r.Op < OpGet || r.Op > OpList:
		return Errorf(CodeBadRequest, "unknown operation %d", r.Op)
	case len(r.Key) == 0 && r.Op != OpList:
		return Errorf(CodeBadRequest, "the key is empty; a key has 1 to %d bytes", l.KeyBytesMax)
	case len(r.Key) > l.KeyBytesMax:
		return Errorf(CodeKeyTooLarge, "the key has %d bytes; the limit is %d", len(r.Key), l.KeyBytesMax)
	case len(r.Value) > l.ValueBytesMax:
		return Errorf(CodeValueTooLarge, "the value has %d bytes; the limit is %d", len(r.Value), l.ValueBytesMax)
	}
	return nil
}

func (r *Request) validateStrong(l Limits) error {
	switch {
	case r.Quorum != (Quorum{}):
		return Errorf(CodeBadRequest, "level strong is always decided by a majority of the partition's replicas; n, r and w go with level eventual")
	case len(r.Context) > 0:
		return Errorf(CodeBadRequest, "a context orders eventual writes; at level strong use if-version")
	case r.Op == OpList:
		return r.validateList()
	case r.Op == OpBatch:
		return r.validateBatch(l)
	case r.Op == OpInquire && r.ID.IsZero():
		return Errorf(CodeBadRequest, "the operation id is empty; it has 1 to %d bytes", OpSessionBytesMax)
	}
	return nil
}
