package causal

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	tokenFormat        = 1
	tokenKeyHashBytes  = 8
	tokenChecksumBytes = 4
	tokenBytesMin      = 1 + tokenKeyHashBytes + 1 + tokenChecksumBytes
)

// EncodeContext makes the opaque context that a user gets with an answer about the key and hands back to overwrite
// exactly what was read. It holds no log position: a base must never come from outside (see Stamp).
func EncodeContext(key []byte, v Vector) []byte {
	out := make([]byte, 0, tokenBytesMin+len(v)*(2+hlcBytes))
	out = append(out, tokenFormat)
	out = binary.BigEndian.AppendUint64(out, fnv1a(key))
	out = AppendVector(out, v)
	return binary.BigEndian.AppendUint32(out, tokenChecksum(out))
}

// DecodeContext reads a context of the key. It returns ErrBadContext for anything that EncodeContext did not return for
// this key. The checks catch mistakes, not malice: whoever uses the vector shows its Latest to Clock.Observe first.
func DecodeContext(key, token []byte) (Vector, error) {
	if len(token) < tokenBytesMin || token[0] != tokenFormat {
		return nil, ErrBadContext
	}
	body, sum := token[:len(token)-tokenChecksumBytes], token[len(token)-tokenChecksumBytes:]
	if binary.BigEndian.Uint32(sum) != tokenChecksum(body) {
		return nil, ErrBadContext
	}
	if binary.BigEndian.Uint64(body[1:]) != fnv1a(key) {
		return nil, ErrBadContext
	}
	v, rest, err := DecodeVector(body[1+tokenKeyHashBytes:])
	if err != nil || len(rest) != 0 {
		return nil, ErrBadContext
	}
	return v, nil
}

func tokenChecksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// fnv1a is the 64-bit FNV-1a hash. hash/fnv would allocate for each token.
func fnv1a(b []byte) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	return h
}
