package kvwire

import (
	"math"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The fields of ResultBatch, Result, Sibling and Error.
const (
	batchResult   = 1
	batchDraining = 2

	resultID          = 1
	resultFound       = 2
	resultValue       = 3
	resultVersion     = 4
	resultContext     = 5
	resultTimestamp   = 6
	resultLevel       = 7
	resultAcks        = 8
	resultSettled     = 9
	resultOutcome     = 10
	resultSiblings    = 11
	resultConcurrent  = 12
	resultReplicas    = 13
	resultCoordinator = 14
	resultError       = 15
	resultHinted      = 16
	resultSession     = 20
	resultStaleness   = 21

	siblingValue     = 1
	siblingDeleted   = 2
	siblingTimestamp = 3
	siblingNode      = 4

	errorCode           = 1
	errorDetail         = 2
	errorOutcome        = 3
	errorRetryable      = 4
	errorRequired       = 5
	errorAlive          = 6
	errorAcked          = 7
	errorCurrentVersion = 8
	errorLeader         = 9
	errorRetryAfter     = 10
	errorLag            = 11
	errorStaleness      = 12
)

// resultOverhead is a guess of what a result takes beside value and context.
const resultOverhead = 40

// Sibling is one of several concurrent versions of a key, with its node's name.
type Sibling struct {
	Value           []byte
	Deleted         bool
	TimestampMillis int64
	Node            string
}

// Result answers one operation as it travels on a stream: kv.Response with names for nodes, or an error.
type Result struct {
	ID      uint64
	Found   bool
	Settled bool
	// HasOutcome tells a write's result from a read's, which has no outcome.
	HasOutcome      bool
	Outcome         kv.Outcome
	Level           kv.Level
	Acks            int
	Hinted          int
	Concurrent      int
	Version         uint64
	TimestampMillis int64
	Value           []byte
	Context         []byte
	Session         []byte
	StalenessMillis int64 // rounded up
	Siblings        []Sibling
	Replicas        []string
	Coordinator     string
	Err             *kv.Error
}

// AppendResult appends the result to an encoded ResultBatch.
func AppendResult(dst []byte, r *Result) []byte {
	guess := len(r.Value) + len(r.Context) + len(r.Session) + resultOverhead
	dst, body := beginMessage(dst, bytesTag(batchResult), guess)
	dst = AppendBareResult(dst, r)
	return endMessage(dst, body, guess)
}

// AppendDraining appends to an encoded ResultBatch that the server is draining.
func AppendDraining(dst []byte) []byte { return appendBool(dst, varintTag(batchDraining), true) }

// AppendBareResult appends the result as a message of its own.
func AppendBareResult(dst []byte, r *Result) []byte {
	dst = appendUint(dst, varintTag(resultID), r.ID)
	dst = appendBool(dst, varintTag(resultFound), r.Found)
	dst = appendBytes(dst, bytesTag(resultValue), r.Value)
	dst = appendUint(dst, varintTag(resultVersion), r.Version)
	dst = appendBytes(dst, bytesTag(resultContext), r.Context)
	dst = appendUint(dst, varintTag(resultTimestamp), uint64(r.TimestampMillis))
	dst = appendUint(dst, varintTag(resultLevel), uint64(r.Level))
	dst = appendUint(dst, varintTag(resultAcks), clamp32(r.Acks))
	dst = appendBool(dst, varintTag(resultSettled), r.Settled)
	if r.HasOutcome {
		dst = appendUint(dst, varintTag(resultOutcome), outcomeNumber(r.Outcome))
	}
	for i := range r.Siblings {
		dst = appendSibling(dst, &r.Siblings[i])
	}
	dst = appendUint(dst, varintTag(resultConcurrent), clamp32(r.Concurrent))
	for _, name := range r.Replicas {
		// An empty name keeps its place, as in every repeated field.
		dst, _ = beginMessage(dst, bytesTag(resultReplicas), len(name))
		dst = endMessage(append(dst, name...), len(dst), len(name))
	}
	dst = appendBytes(dst, bytesTag(resultCoordinator), r.Coordinator)
	if r.Err != nil {
		dst = appendError(dst, r.Err)
	}
	dst = appendRareUint(dst, resultHinted, clamp32(r.Hinted))
	dst = appendRareBytes(dst, resultSession, r.Session)
	return appendRareUint(dst, resultStaleness, clamp32(int(r.StalenessMillis)))
}

func appendSibling(dst []byte, s *Sibling) []byte {
	guess := len(s.Value) + len(s.Node) + 12
	dst, body := beginMessage(dst, bytesTag(resultSiblings), guess)
	dst = appendBytes(dst, bytesTag(siblingValue), s.Value)
	dst = appendBool(dst, varintTag(siblingDeleted), s.Deleted)
	dst = appendUint(dst, varintTag(siblingTimestamp), uint64(s.TimestampMillis))
	dst = appendBytes(dst, bytesTag(siblingNode), s.Node)
	return endMessage(dst, body, guess)
}

func appendError(dst []byte, e *kv.Error) []byte {
	guess := len(e.Code) + len(e.Detail) + len(e.Leader) + 8
	dst, body := beginMessage(dst, bytesTag(resultError), guess)
	dst = appendBytes(dst, bytesTag(errorCode), e.Code)
	dst = appendBytes(dst, bytesTag(errorDetail), e.Detail)
	dst = appendUint(dst, varintTag(errorOutcome), outcomeNumber(e.Outcome))
	dst = appendBool(dst, varintTag(errorRetryable), e.Retryable)
	dst = appendUint(dst, varintTag(errorRequired), clamp32(e.Required))
	dst = appendUint(dst, varintTag(errorAlive), clamp32(e.Alive))
	dst = appendUint(dst, varintTag(errorAcked), clamp32(e.Acked))
	dst = appendUint(dst, varintTag(errorCurrentVersion), e.CurrentVersion)
	dst = appendBytes(dst, bytesTag(errorLeader), e.Leader)
	dst = appendUint(dst, varintTag(errorRetryAfter), clamp32(int(e.RetryAfter.Milliseconds())))
	dst = appendUint(dst, varintTag(errorLag), clamp32(int(e.Lag.Milliseconds())))
	dst = appendUint(dst, varintTag(errorStaleness), clamp32(int(e.Staleness.Milliseconds())))
	return endMessage(dst, body, guess)
}

// outcomeNumber is the outcome's number in kv.proto, where 0 says that there is none.
func outcomeNumber(o kv.Outcome) uint64 { return uint64(o) + 1 }

// outcomeOf is the outcome with a number of kv.proto. A number that this version does not know proves nothing.
func outcomeOf(number uint64) kv.Outcome {
	if number < 1 || number > outcomeNumber(kv.OutcomeUnknown) {
		return kv.OutcomeUnknown
	}
	return kv.Outcome(number - 1)
}

// DecodeResults calls fn for each result of an encoded ResultBatch and reports whether the server is draining. Values and
// contexts alias b. The Result is reused for the next call, and so is its Replicas slice.
func DecodeResults(b []byte, names *Names, fn func(*Result)) (draining bool, err error) {
	r := reader{rest: b}
	var out Result
	for r.next() {
		switch r.number {
		case batchResult:
			if err := DecodeResult(r.bytes(), names, &out); err != nil {
				return false, err
			}
			if !r.malformed {
				fn(&out)
			}
		case batchDraining:
			draining = r.uint() != 0
		default:
			r.skip()
		}
	}
	return draining, r.err()
}

// DecodeResult decodes one Result message into out, whose slices then alias b. Fields of a newer server are passed over.
func DecodeResult(b []byte, names *Names, out *Result) error {
	*out = Result{Replicas: out.Replicas[:0]}
	r := reader{rest: b}
	for r.next() {
		switch r.number {
		case resultID:
			out.ID = r.uint()
		case resultFound:
			out.Found = r.uint() != 0
		case resultValue:
			out.Value = r.bytes()
		case resultVersion:
			out.Version = r.uint()
		case resultContext:
			out.Context = r.bytes()
		case resultTimestamp:
			out.TimestampMillis = int64(r.uint())
		case resultLevel:
			out.Level = kv.Level(min(r.uint(), math.MaxUint8))
		case resultAcks:
			out.Acks = int(r.uint32())
		case resultHinted:
			out.Hinted = int(r.uint32())
		case resultSettled:
			out.Settled = r.uint() != 0
		case resultOutcome:
			out.HasOutcome = true
			out.Outcome = outcomeOf(r.uint())
		case resultConcurrent:
			out.Concurrent = int(r.uint32())
		case resultReplicas:
			out.Replicas = append(out.Replicas, names.intern(r.bytes()))
		case resultCoordinator:
			out.Coordinator = names.intern(r.bytes())
		case resultSiblings:
			out.Siblings = append(out.Siblings, decodeSibling(&r, names))
		case resultSession:
			out.Session = r.bytes()
		case resultStaleness:
			out.StalenessMillis = int64(r.uint32())
		case resultError:
			out.Err = decodeError(&r, names)
		default:
			r.skip()
		}
	}
	return r.err()
}

func decodeSibling(r *reader, names *Names) Sibling {
	var out Sibling
	inner := reader{rest: r.bytes()}
	for inner.next() {
		switch inner.number {
		case siblingValue:
			out.Value = inner.bytes()
		case siblingDeleted:
			out.Deleted = inner.uint() != 0
		case siblingTimestamp:
			out.TimestampMillis = int64(inner.uint())
		case siblingNode:
			out.Node = names.intern(inner.bytes())
		default:
			inner.skip()
		}
	}
	if inner.malformed {
		r.fail()
	}
	return out
}

func decodeError(r *reader, names *Names) *kv.Error {
	out := &kv.Error{Outcome: kv.OutcomeUnknown}
	inner := reader{rest: r.bytes()}
	for inner.next() {
		switch inner.number {
		case errorCode:
			out.Code = kv.Code(names.intern(inner.bytes()))
		case errorDetail:
			out.Detail = string(inner.bytes())
		case errorOutcome:
			out.Outcome = outcomeOf(inner.uint())
		case errorRetryable:
			out.Retryable = inner.uint() != 0
		case errorRequired:
			out.Required = int(inner.uint32())
		case errorAlive:
			out.Alive = int(inner.uint32())
		case errorAcked:
			out.Acked = int(inner.uint32())
		case errorCurrentVersion:
			out.CurrentVersion = inner.uint()
		case errorLeader:
			out.Leader = names.intern(inner.bytes())
		case errorRetryAfter:
			out.RetryAfter = time.Duration(inner.uint32()) * time.Millisecond
		case errorLag:
			out.Lag = time.Duration(inner.uint32()) * time.Millisecond
		case errorStaleness:
			out.Staleness = time.Duration(inner.uint32()) * time.Millisecond
		default:
			inner.skip()
		}
	}
	if inner.malformed {
		r.fail()
	}
	return out
}
