package kvwire

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed is returned for bytes that are no protobuf message of the expected type.
var ErrMalformed = errors.New("kvwire: malformed message")

// tag is a field's number and wire type, as it stands before the field. All fields of the stream that are common have numbers
// up to 15, so that a tag is one byte.
type tag = byte

func varintTag(number protowire.Number) tag { return tag(number<<3) | tag(protowire.VarintType) }
func bytesTag(number protowire.Number) tag  { return tag(number<<3) | tag(protowire.BytesType) }

// The append functions leave out zero values, as proto3 does.

func appendUint(dst []byte, t tag, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return binary.AppendUvarint(append(dst, t), v)
}

// appendRareUint is appendUint of a field with a higher number.
func appendRareUint(dst []byte, number protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return binary.AppendUvarint(protowire.AppendTag(dst, number, protowire.VarintType), v)
}

// appendRareBytes is appendBytes of a field with a higher number.
func appendRareBytes(dst []byte, number protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, number, protowire.BytesType), v)
}

func appendBool(dst []byte, t tag, v bool) []byte {
	if !v {
		return dst
	}
	return append(dst, t, 1)
}

func appendBytes[T ~string | ~[]byte](dst []byte, t tag, v T) []byte {
	if len(v) == 0 {
		return dst
	}
	return append(binary.AppendUvarint(append(dst, t), uint64(len(v))), v...)
}

// beginMessage starts an embedded message of about size bytes, for which it leaves room for the length, and returns
// where the message's body starts.
func beginMessage(dst []byte, t tag, size int) (out []byte, body int) {
	dst = append(dst, t)
	for range varintLen(size) {
		dst = append(dst, 0)
	}
	return dst, len(dst)
}

// endMessage fills in the length of the embedded message that starts at body. A wrong guess of its size costs a move of
// the body, by the byte or two that the length differs.
func endMessage(dst []byte, body, guess int) []byte {
	size := len(dst) - body
	reserved, needed := varintLen(guess), varintLen(size)
	if reserved != needed {
		for range needed - reserved {
			dst = append(dst, 0)
		}
		copy(dst[body+needed-reserved:], dst[body:body+size])
		dst = dst[:body+needed-reserved+size]
	}
	binary.PutUvarint(dst[body-reserved:], uint64(size))
	return dst
}

// varintLen is the number of bytes of a non-negative number's varint.
func varintLen(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

// reader takes fields off the front of a message. The first failure sticks: afterwards next returns false.
type reader struct {
	rest      []byte
	number    protowire.Number
	kind      protowire.Type
	malformed bool
}

// next reads the next field's tag, and returns false at the end of the message or of what can be understood of it.
func (r *reader) next() bool {
	if len(r.rest) == 0 || r.malformed {
		return false
	}
	number, kind := protowire.DecodeTag(r.varint())
	if number < protowire.MinValidNumber || number > protowire.MaxValidNumber {
		r.fail()
	}
	r.number, r.kind = number, kind
	return !r.malformed
}

func (r *reader) fail() {
	r.malformed = true
	r.rest = nil
}

func (r *reader) varint() uint64 {
	if len(r.rest) > 0 && r.rest[0] < 0x80 {
		v := r.rest[0]
		r.rest = r.rest[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// uint reads the value of a varint field.
func (r *reader) uint() uint64 {
	if r.kind != protowire.VarintType {
		r.fail()
		return 0
	}
	return r.varint()
}

// uint32 reads the value of a varint field of 32 bits; what does not fit is cut off, as protobuf defines it.
func (r *reader) uint32() uint32 { return uint32(r.uint()) }

// bytes reads the value of a length-delimited field. The result aliases the message.
func (r *reader) bytes() []byte {
	if r.kind != protowire.BytesType {
		r.fail()
		return nil
	}
	n := r.varint()
	if n > uint64(len(r.rest)) {
		r.fail()
		return nil
	}
	v := r.rest[:n:n]
	r.rest = r.rest[n:]
	return v
}

// skip passes over the value of a field that nobody asked for.
func (r *reader) skip() {
	n := protowire.ConsumeFieldValue(r.number, r.kind, r.rest)
	if n < 0 {
		r.fail()
		return
	}
	r.rest = r.rest[n:]
}

func (r *reader) err() error {
	if r.malformed {
		return ErrMalformed
	}
	return nil
}
