package kvwire

import (
	"math"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The fields of OperationBatch, Operation and Condition.
const (
	batchOperation = 1

	operationID        = 1
	operationOp        = 2
	operationKey       = 3
	operationValue     = 4
	operationLevel     = 5
	operationN         = 6
	operationR         = 7
	operationW         = 8
	operationCondition = 9
	operationContext   = 10
	operationSiblings  = 11
	operationTimeout   = 12
	operationName      = 13
	operationTTL       = 14
	operationSloppy    = 15
	operationFallback  = 20
	operationSession   = 21
	operationStaleness = 22

	conditionKind    = 1
	conditionVersion = 2

	nameSession  = 1
	nameSequence = 2
	nameFloor    = 3
	nameRequired = 4
)

// operationOverhead is a generous guess of what an operation takes beside key, value and context.
const operationOverhead = 24

// Operation is one request as it travels on a stream.
type Operation struct {
	ID      uint64
	Request kv.Request
	// Timeout has a resolution of milliseconds; 0 leaves it to the server.
	Timeout time.Duration
	// Strange says which part of a received operation this version does not understand, as the number of an unknown field
	// or the number of the field with an unknown value; 0 when all is understood. Such an operation must be refused.
	Strange int32
}

// Size is about what the operation takes in a batch, never less.
func (o *Operation) Size() int {
	return len(o.Request.Key) + len(o.Request.Value) + len(o.Request.Context) + len(o.Request.Session) + 2*operationOverhead + 57 + o.nameSize()
}

// AppendOperation appends the operation to an encoded OperationBatch.
func AppendOperation(dst []byte, o *Operation) []byte {
	r := &o.Request
	guess := len(r.Key) + len(r.Value) + len(r.Context) + len(r.Session) + operationOverhead
	dst, body := beginMessage(dst, bytesTag(batchOperation), guess)
	dst = appendOperationBody(dst, o)
	return endMessage(dst, body, guess)
}

func appendOperationBody(dst []byte, o *Operation) []byte {
	r := &o.Request
	dst = appendUint(dst, varintTag(operationID), o.ID)
	dst = appendUint(dst, varintTag(operationOp), uint64(r.Op))
	dst = appendBytes(dst, bytesTag(operationKey), r.Key)
	dst = appendBytes(dst, bytesTag(operationValue), r.Value)
	dst = appendUint(dst, varintTag(operationLevel), uint64(r.Level))
	if r.Quorum != (kv.Quorum{}) {
		dst = appendUint(dst, varintTag(operationN), clamp32(r.Quorum.N))
		dst = appendUint(dst, varintTag(operationR), clamp32(r.Quorum.R))
		dst = appendUint(dst, varintTag(operationW), clamp32(r.Quorum.W))
	}
	if r.Condition != (kv.Condition{}) {
		const guess = 4
		var body int
		dst, body = beginMessage(dst, bytesTag(operationCondition), guess)
		dst = appendUint(dst, varintTag(conditionKind), uint64(r.Condition.Kind))
		dst = appendUint(dst, varintTag(conditionVersion), r.Condition.Version)
		dst = endMessage(dst, body, guess)
	}
	dst = appendBytes(dst, bytesTag(operationContext), r.Context)
	dst = appendUint(dst, varintTag(operationSiblings), uint64(r.Siblings))
	dst = appendUint(dst, varintTag(operationTimeout), clamp32(int(o.Timeout.Milliseconds())))
	if !r.ID.IsZero() || r.ID.Required {
		dst = appendName(dst, r.ID)
	}
	ttl := uint64(r.TTL.Milliseconds())
	if r.TTL < 0 {
		ttl = uint64(2 * kv.TTLMax / time.Millisecond) // refused rather than left out
	}
	dst = appendUint(dst, varintTag(operationTTL), ttl)
	dst = appendBool(dst, varintTag(operationSloppy), r.Sloppy)
	dst = appendRareUint(dst, operationFallback, uint64(r.Fallback))
	dst = appendRareBytes(dst, operationSession, r.Session)
	staleness := r.MaxStaleness.Milliseconds()
	if staleness == 0 && r.MaxStaleness != 0 {
		staleness = -1 // refused rather than left out
	}
	return appendRareUint(dst, operationStaleness, clamp32(int(staleness)))
}

func appendName(dst []byte, id kv.OpID) []byte {
	guess := len(id.Session) + nameOverhead
	dst, body := beginMessage(dst, bytesTag(operationName), guess)
	dst = appendBytes(dst, bytesTag(nameSession), id.Session)
	dst = appendUint(dst, varintTag(nameSequence), id.Sequence)
	dst = appendUint(dst, varintTag(nameFloor), id.Floor)
	dst = appendBool(dst, varintTag(nameRequired), id.Required)
	return endMessage(dst, body, guess)
}

// nameOverhead is a guess of what an operation's id takes beside its session.
const nameOverhead = 10

// nameSize is the most that the operation's id takes.
func (o *Operation) nameSize() int {
	if o.Request.ID.IsZero() {
		return 4
	}
	return len(o.Request.ID.Session) + 2*11 + 10
}

// clamp32 keeps a number in the range of a uint32 field. A negative one becomes the largest, which every check of a range refuses
// like the negative one; as 0 it would mean "not given".
func clamp32(n int) uint64 {
	if n < 0 || n > math.MaxUint32 {
		return math.MaxUint32
	}
	return uint64(n)
}

// DecodeOperations calls fn for each operation of an encoded OperationBatch. Keys, values and contexts alias b. The Operation is
// reused for the next call, its slices are not.
func DecodeOperations(b []byte, fn func(*Operation)) error {
	r := reader{rest: b}
	var o Operation
	for r.next() {
		if r.number != batchOperation {
			// A field of the batch as a whole would change the meaning of every operation in it.
			return ErrMalformed
		}
		if err := DecodeOperation(r.bytes(), &o); err != nil {
			return err
		}
		if r.malformed {
			break
		}
		fn(&o)
	}
	return r.err()
}

// DecodeOperation decodes one Operation message into o, whose slices then alias b.
func DecodeOperation(b []byte, o *Operation) error {
	*o = Operation{}
	req := &o.Request
	r := reader{rest: b}
	for r.next() {
		switch r.number {
		case operationID:
			o.ID = r.uint()
		case operationOp:
			req.Op = kv.Op(o.small(&r, uint64(kv.OpDelete)))
		case operationKey:
			req.Key = r.bytes()
		case operationValue:
			req.Value = r.bytes()
		case operationLevel:
			req.Level = kv.Level(o.small(&r, uint64(kv.LevelLast)))
		case operationN:
			req.Quorum.N = int(r.uint32())
		case operationR:
			req.Quorum.R = int(r.uint32())
		case operationW:
			req.Quorum.W = int(r.uint32())
		case operationCondition:
			o.decodeCondition(&r)
		case operationContext:
			req.Context = r.bytes()
		case operationSiblings:
			req.Siblings = kv.SiblingMode(o.small(&r, uint64(kv.SiblingsError)))
		case operationTimeout:
			o.Timeout = time.Duration(r.uint32()) * time.Millisecond
		case operationName:
			o.decodeName(&r)
		case operationTTL:
			// What exceeds the limit is cut to what is refused, so that it does not wrap around into what is not.
			req.TTL = time.Duration(min(r.uint(), uint64(2*kv.TTLMax/time.Millisecond))) * time.Millisecond
		case operationSloppy:
			req.Sloppy = r.uint() != 0
		case operationFallback:
			req.Fallback = kv.Level(o.small(&r, uint64(kv.LevelLocal)))
		case operationSession:
			req.Session = r.bytes()
		case operationStaleness:
			req.MaxStaleness = time.Duration(r.uint32()) * time.Millisecond
		default:
			o.Strange = int32(r.number)
			r.skip()
		}
	}
	return r.err()
}

func (o *Operation) decodeName(r *reader) {
	id := &o.Request.ID
	inner := reader{rest: r.bytes()}
	for inner.next() {
		switch inner.number {
		case nameSession:
			id.Session = inner.bytes()
		case nameSequence:
			id.Sequence = inner.uint()
		case nameFloor:
			id.Floor = inner.uint()
		case nameRequired:
			id.Required = inner.uint() != 0
		default:
			o.Strange = operationName
			inner.skip()
		}
	}
	if inner.malformed {
		r.fail()
	}
}

// small reads the value of an enum field whose largest known value is last; a larger one is strange and reads as 0.
func (o *Operation) small(r *reader, last uint64) uint8 {
	v := r.uint()
	if v > last {
		o.Strange = int32(r.number)
		return 0
	}
	return uint8(v)
}

func (o *Operation) decodeCondition(r *reader) {
	inner := reader{rest: r.bytes()}
	for inner.next() {
		switch inner.number {
		case conditionKind:
			o.Request.Condition.Kind = kv.ConditionKind(o.small(&inner, uint64(kv.ConditionExists)))
		case conditionVersion:
			o.Request.Condition.Version = inner.uint()
		default:
			o.Strange = operationCondition
			inner.skip()
		}
	}
	if inner.malformed {
		r.fail()
	}
}
