package kv

// OpSessionBytesMax bounds OpID.Session.
const OpSessionBytesMax = 255

// OpID names a strong write, so that a repetition of it is recognised and answered with the first one's outcome instead
// of being applied once more. The zero value names nothing.
//
// The group that applies the write remembers it. An id therefore names one write of one key, or one batch: the same id
// with anything else is refused where the group still remembers, and is simply another write in another group.
type OpID struct {
	// Session is what the caller chose: the text of an Idempotency-Key, or the random name of a client, of which one
	// must begin with a byte that the other cannot.
	Session []byte
	// Sequence numbers the session's writes. An Idempotency-Key is a session with one write, number 0.
	Sequence uint64
	// Floor says that the caller knows the outcome, or has given up, of every write of the session with a smaller
	// number: they can be forgotten, and any of them that is still under way must not be applied any more.
	//
	// Invariant: Floor <= Sequence.
	Floor uint64
	// Required refuses the write at a level that remembers nothing; otherwise the id is left out there. A first attempt
	// can do without it, a repetition cannot.
	Required bool
}

// IsZero reports whether the id names nothing.
func (o OpID) IsZero() bool { return len(o.Session) == 0 }

// IsOpName reports whether the text may name an operation by itself, as an Idempotency-Key does: 1 to OpSessionBytesMax
// printable ASCII characters. The sessions of clients have names that begin otherwise, so that the two never meet.
func IsOpName(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return text != "" && len(text) <= OpSessionBytesMax
}

// validate checks the id of a request at the level.
func (o OpID) validate(op Op, level Level) error {
	switch {
	case o.IsZero():
		if o.Sequence != 0 || o.Floor != 0 {
			return Errorf(CodeBadRequest, "an operation id without a session names nothing")
		}
		return nil
	case len(o.Session) > OpSessionBytesMax:
		return Errorf(CodeBadRequest, "the operation id has %d bytes; the limit is %d", len(o.Session), OpSessionBytesMax)
	case o.Floor > o.Sequence:
		return Errorf(CodeBadRequest, "operation %d lies below its own session's floor, %d", o.Sequence, o.Floor)
	case !op.IsWrite() && op != OpInquire:
		return Errorf(CodeBadRequest, "an Idempotency-Key names a write; it means nothing on a read")
	case level != LevelStrong && o.Required:
		return Errorf(CodeBadRequest, "an Idempotency-Key can only be honoured at level strong, not at %s", level)
	}
	return nil
}
