package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The form in which nodes hand requests, responses and errors to one another. It is written by hand because it is on the
// path of every forwarded operation, where protobuf costs more than twice as much. A message is a format byte, then its
// fields in order: enums as bytes, counts and ids as uvarints, quantities that may be negative as zigzag varints, byte
// strings as a uvarint length and the bytes.

// ErrMalformed is returned for bytes that no encoder of this package wrote.
var ErrMalformed = errors.New("kv: malformed message")

const (
	requestFormat = 1
	// requestFormatMore is a request that does more than the first version knew of: a byte of flags and what they
	// announce follow.
	requestFormatMore = 2
	responseFormat    = 1
	// responseFormatMore is a response with what the first version did not know: a byte of flags and what they announce.
	responseFormatMore = 2
	errorFormat        = 1

	// siblingBytesMin is an encoded sibling with an empty value and no timestamp.
	siblingBytesMin = 1 + 1 + 1
	// itemBytesMin is an encoded item of a batch without a condition, key and value.
	itemBytesMin = 5
)

// Flags of a response and of a sibling.
const (
	flagFound     = 1 << 0
	flagSettled   = 1 << 1
	flagTimestamp = 1 << 2 // a timestamp follows; left out when it is zero
	flagDeleted   = 1 << 0 // of a sibling
	flagRetryable = 1 << 0 // of an error
	flagLag       = 1 << 1 // of an error: a lag follows
	flagStaleness = 1 << 2 // of an error: a staleness follows

	flagID         = 1 << 0 // of a request with more
	flagIDRequired = 1 << 1
	flagItems      = 1 << 2
	flagTTL        = 1 << 3
	flagList       = 1 << 4
	flagSloppy     = 1 << 5
	flagResume     = 1 << 6
	flagSession    = 1 << 7

	flagItemResults = 1 << 0 // of a response with more
	flagListed      = 1 << 1
	flagMore        = 1 << 2
	flagExpires     = 1 << 3
	flagHinted      = 1 << 4
	flagSessionIs   = 1 << 5

	flagKeysOnly = 1 << 0 // of a listing
	flagSingle   = 1 << 1
)

// AppendRequest appends the request.
func AppendRequest(dst []byte, r *Request) []byte {
	more := moreOf(r)
	format := byte(requestFormat)
	if more != 0 {
		format = requestFormatMore
	}
	dst = append(dst, format, byte(r.Op), byte(r.Level), byte(r.Condition.Kind), byte(r.Siblings), r.Hops)
	if r.Condition.Kind != ConditionNone {
		dst = binary.AppendUvarint(dst, r.Condition.Version)
	}
	if r.Level == LevelBounded {
		dst = binary.AppendVarint(dst, int64(r.MaxStaleness))
	}
	dst = appendInt(dst, r.Quorum.N)
	dst = appendInt(dst, r.Quorum.R)
	dst = appendInt(dst, r.Quorum.W)
	dst = appendBytes(dst, r.Key)
	dst = appendBytes(dst, r.Value)
	dst = appendBytes(dst, r.Context)
	if more == 0 {
		return dst
	}
	return appendMore(append(dst, more), r, more)
}

// DecodeRequest reads what AppendRequest wrote, which must be all of b. Key, Value and Context alias b; empty ones are
// nil.
func DecodeRequest(b []byte) (Request, error) {
	d := decoder{b: b}
	format := d.byte()
	if format != requestFormat && format != requestFormatMore {
		d.fail()
	}
	r := Request{
		Op:        Op(d.enum(byte(OpList))),
		Level:     Level(d.enum(byte(LevelLast))),
		Condition: Condition{Kind: ConditionKind(d.enum(byte(ConditionExists)))},
		Siblings:  SiblingMode(d.enum(byte(SiblingsError))),
		Hops:      d.byte(),
	}
	if r.Condition.Kind != ConditionNone {
		r.Condition.Version = d.uvarint()
	}
	if r.Level == LevelBounded {
		r.MaxStaleness = time.Duration(d.varint())
	}
	r.Quorum = Quorum{N: d.int(), R: d.int(), W: d.int()}
	r.Key = d.bytes()
	r.Value = d.bytes()
	r.Context = d.bytes()
	if format == requestFormatMore {
		d.more(&r)
	}
	if err := d.finish("request"); err != nil {
		return Request{}, err
	}
	return r, nil
}

// AppendResponse appends the response.
func AppendResponse(dst []byte, r *Response) []byte {
	flags := flagIf(r.Found, flagFound) | flagIf(r.Settled, flagSettled) | flagIf(!r.Timestamp.IsZero(), flagTimestamp)
	format := byte(responseFormat)
	more := flagIf(len(r.Items) > 0, flagItemResults) | flagIf(len(r.Listed) > 0, flagListed) | flagIf(r.More, flagMore) |
		flagIf(!r.Expires.IsZero(), flagExpires) | flagIf(r.Hinted != 0, flagHinted) | flagIf(len(r.Session) > 0, flagSessionIs)
	if more != 0 {
		format = responseFormatMore
	}
	dst = append(dst, format, flags, byte(r.Level), byte(r.Outcome))
	if !r.Timestamp.IsZero() {
		dst = appendTime(dst, r.Timestamp)
	}
	if r.Level == LevelBounded {
		dst = binary.AppendVarint(dst, int64(r.Staleness))
	}
	dst = appendInt(dst, r.Acks)
	dst = appendInt(dst, r.Concurrent)
	dst = binary.AppendUvarint(dst, r.Version)
	dst = binary.AppendUvarint(dst, uint64(r.Coordinator))
	dst = appendBytes(dst, r.Value)
	dst = appendBytes(dst, r.Context)
	dst = binary.AppendUvarint(dst, uint64(len(r.Replicas)))
	for _, n := range r.Replicas {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Siblings)))
	for i := range r.Siblings {
		dst = appendSibling(dst, &r.Siblings[i])
	}
	if format == responseFormat {
		return dst
	}
	dst = append(dst, more)
	if more&flagItemResults != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Items)))
		for _, item := range r.Items {
			dst = append(dst, flagIf(item.Found, flagFound))
		}
	}
	if more&flagListed != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Listed)))
		for i := range r.Listed {
			dst = appendListed(dst, &r.Listed[i])
		}
	}
	if more&flagExpires != 0 {
		dst = appendTime(dst, r.Expires)
	}
	if more&flagHinted != 0 {
		dst = appendInt(dst, r.Hinted)
	}
	if more&flagSessionIs != 0 {
		dst = appendBytes(dst, r.Session)
	}
	return dst
}

// DecodeResponse reads what AppendResponse wrote, which must be all of b. Values and Context alias b; empty ones are
// nil. Times come back in UTC.
func DecodeResponse(b []byte) (Response, error) {
	d := decoder{b: b}
	format := d.byte()
	if format != responseFormat && format != responseFormatMore {
		d.fail()
	}
	flags := d.enum(flagFound | flagSettled | flagTimestamp)
	r := Response{
		Found:   flags&flagFound != 0,
		Settled: flags&flagSettled != 0,
		Level:   Level(d.enum(byte(LevelLast))),
		Outcome: Outcome(d.enum(byte(OutcomeUnknown))),
	}
	if flags&flagTimestamp != 0 {
		r.Timestamp = d.time()
	}
	if r.Level == LevelBounded {
		r.Staleness = time.Duration(d.varint())
	}
	r.Acks = d.int()
	r.Concurrent = d.int()
	r.Version = d.uvarint()
	r.Coordinator = NodeID(d.uvarint())
	r.Value = d.bytes()
	r.Context = d.bytes()
	if n := d.count(1); n > 0 {
		r.Replicas = make([]NodeID, n)
		for i := range r.Replicas {
			r.Replicas[i] = NodeID(d.uvarint())
		}
	}
	if n := d.count(siblingBytesMin); n > 0 {
		r.Siblings = make([]Sibling, n)
		for i := range r.Siblings {
			d.sibling(&r.Siblings[i])
		}
	}
	if format == responseFormatMore {
		d.moreOfResponse(&r)
	}
	if err := d.finish("response"); err != nil {
		return Response{}, err
	}
	return r, nil
}

// AppendError appends the error. The cause it wraps stays behind: its text is part of Detail.
func AppendError(dst []byte, e *Error) []byte {
	dst = append(dst, errorFormat, flagIf(e.Retryable, flagRetryable)|flagIf(e.Lag != 0, flagLag)|flagIf(e.Staleness != 0, flagStaleness), byte(e.Outcome))
	dst = appendInt(dst, e.Required)
	dst = appendInt(dst, e.Alive)
	dst = appendInt(dst, e.Acked)
	dst = binary.AppendUvarint(dst, e.CurrentVersion)
	dst = binary.AppendVarint(dst, int64(e.RetryAfter))
	dst = appendBytes(dst, e.Code)
	dst = appendBytes(dst, e.Detail)
	dst = appendBytes(dst, e.Leader)
	if e.Lag != 0 {
		dst = binary.AppendVarint(dst, int64(e.Lag))
	}
	if e.Staleness != 0 {
		dst = binary.AppendVarint(dst, int64(e.Staleness))
	}
	return dst
}

// DecodeError reads what AppendError wrote, which must be all of b.
func DecodeError(b []byte) (*Error, error) {
	d := decoder{b: b}
	d.format(errorFormat)
	flags := d.enum(flagRetryable | flagLag | flagStaleness)
	e := &Error{
		Retryable:      flags&flagRetryable != 0,
		Outcome:        Outcome(d.enum(byte(OutcomeUnknown))),
		Required:       d.int(),
		Alive:          d.int(),
		Acked:          d.int(),
		CurrentVersion: d.uvarint(),
		RetryAfter:     time.Duration(d.varint()),
		Code:           Code(d.bytes()),
		Detail:         string(d.bytes()),
		Leader:         string(d.bytes()),
	}
	if flags&flagLag != 0 {
		if e.Lag = time.Duration(d.varint()); e.Lag == 0 {
			d.fail()
		}
	}
	if flags&flagStaleness != 0 {
		if e.Staleness = time.Duration(d.varint()); e.Staleness == 0 {
			d.fail()
		}
	}
	if err := d.finish("error"); err != nil {
		return nil, err
	}
	return e, nil
}

func appendSibling(dst []byte, s *Sibling) []byte {
	dst = append(dst, flagIf(s.Deleted, flagDeleted)|flagIf(!s.Timestamp.IsZero(), flagTimestamp))
	if !s.Timestamp.IsZero() {
		dst = appendTime(dst, s.Timestamp)
	}
	dst = binary.AppendUvarint(dst, uint64(s.Node))
	return appendBytes(dst, s.Value)
}

func appendBytes[T string | Code | []byte](dst []byte, v T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(v)))
	return append(dst, v...)
}

func appendInt(dst []byte, v int) []byte { return binary.AppendVarint(dst, int64(v)) }

// appendTime appends seconds and nanoseconds since 1970.
func appendTime(dst []byte, t time.Time) []byte {
	dst = binary.AppendVarint(dst, t.Unix())
	return binary.AppendUvarint(dst, uint64(t.Nanosecond()))
}

func flagIf(set bool, flag byte) byte {
	if set {
		return flag
	}
	return 0
}

// decoder reads fields from b. After the first malformed one every later field reads as zero, so that callers check
// once, in finish. Nothing is allocated for a length or a count before the bytes that are left could hold it.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) fail() {
	d.failed = true
	d.b = nil
}

// finish reports whether everything was well-formed and nothing is left.
func (d *decoder) finish(what string) error {
	switch {
	case d.failed:
		return fmt.Errorf("%w: a %s is cut short or has a field that is out of range", ErrMalformed, what)
	case len(d.b) > 0:
		return fmt.Errorf("%w: %d bytes follow a %s", ErrMalformed, len(d.b), what)
	}
	return nil
}

func (d *decoder) format(want byte) {
	if d.byte() != want {
		d.fail()
	}
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// enum reads a byte of at most limit.
func (d *decoder) enum(limit byte) byte {
	v := d.byte()
	if v > limit {
		d.fail()
		return 0
	}
	return v
}

func (d *decoder) uvarint() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := d.b[0]
		d.b = d.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) int() int {
	v := d.varint()
	if int64(int(v)) != v {
		d.fail()
		return 0
	}
	return int(v)
}

// count reads a number of elements of at least elementBytesMin each.
func (d *decoder) count(elementBytesMin int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/elementBytesMin) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) bytes() []byte {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) time() time.Time {
	seconds, nanos := d.varint(), d.uvarint()
	if nanos >= uint64(time.Second) {
		d.fail()
		return time.Time{}
	}
	return time.Unix(seconds, int64(nanos)).UTC()
}

func (d *decoder) sibling(s *Sibling) {
	flags := d.enum(flagDeleted | flagTimestamp)
	s.Deleted = flags&flagDeleted != 0
	if flags&flagTimestamp != 0 {
		s.Timestamp = d.time()
	}
	s.Node = NodeID(d.uvarint())
	s.Value = d.bytes()
}
