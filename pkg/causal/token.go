package causal

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"slices"
)

const (
	// tokenFormat is that of a context without dots, tokenDotsFormat that of one with some.
	tokenFormat        = 1
	tokenDotsFormat    = 2
	tokenKeyHashBytes  = 8
	tokenChecksumBytes = 4
	tokenBytesMin      = 1 + tokenKeyHashBytes + 1 + tokenChecksumBytes
)

// SeenDotsMax bounds the dots of a Seen.
const SeenDotsMax = 16

// Seen is what a user has seen of a key: everything that Vector covers, and each of Dots by itself. A vector alone cannot say
// it: between two writes of one user through one node lie writes of others through the same node, which an entry for the
// second would cover unseen.
//
// Invariant: Dots are sorted, at most SeenDotsMax, and Vector covers none of them.
type Seen struct {
	Vector Vector
	Dots   []Dot
}

// Covers reports whether the dot was seen.
func (s Seen) Covers(d Dot) bool { return s.Vector.Covers(d) || slices.Contains(s.Dots, d) }

// Latest returns the highest time of anything that was seen, as Vector.Latest does.
func (s Seen) Latest() HLC {
	latest := s.Vector.Latest()
	for _, d := range s.Dots {
		latest = max(latest, d.Time)
	}
	return latest
}

// With returns what was seen together with the dots. Where there are too many the oldest are left out: not to have seen a
// version makes a write stand beside it, which loses nothing.
func (s Seen) With(dots ...Dot) Seen {
	all := make([]Dot, 0, len(s.Dots)+len(dots))
	for _, d := range append(append(all, s.Dots...), dots...) {
		if !s.Vector.Covers(d) && !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	if len(all) == 0 {
		return Seen{Vector: s.Vector}
	}
	if over := len(all) - SeenDotsMax; over > 0 {
		slices.SortFunc(all, func(a, b Dot) int { return cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Node, b.Node)) })
		all = all[over:]
	}
	slices.SortFunc(all, Dot.Compare)
	return Seen{Vector: s.Vector, Dots: all}
}

// valid reports whether the invariant holds.
func (s Seen) valid() bool {
	for i, d := range s.Dots {
		if s.Vector.Covers(d) || i > 0 && s.Dots[i-1].Compare(d) >= 0 {
			return false
		}
	}
	return len(s.Dots) <= SeenDotsMax
}

// EncodeContext makes the opaque context that a user gets with an answer about the key and hands back to overwrite
// exactly what was read. It holds no log position: a base must never come from outside (see Stamp).
func EncodeContext(key []byte, v Vector) []byte { return EncodeSeen(key, Seen{Vector: v}) }

// EncodeSeen is EncodeContext for what no vector can say.
func EncodeSeen(key []byte, s Seen) []byte {
	out := make([]byte, 0, tokenBytesMin+1+(len(s.Vector)+len(s.Dots))*(2+hlcBytes))
	if len(s.Dots) == 0 {
		out = append(out, tokenFormat)
	} else {
		out = append(out, tokenDotsFormat)
	}
	out = binary.BigEndian.AppendUint64(out, fnv1a(key))
	out = AppendVector(out, s.Vector)
	if len(s.Dots) > 0 {
		out = binary.AppendUvarint(out, uint64(len(s.Dots)))
		for _, d := range s.Dots {
			out = AppendDot(out, d)
		}
	}
	return binary.BigEndian.AppendUint32(out, tokenChecksum(out))
}

// DecodeContext reads a context of the key. It returns ErrBadContext for anything that EncodeSeen did not return for
// this key. The checks catch mistakes, not malice: whoever uses it shows its Latest to Clock.Observe first.
func DecodeContext(key, token []byte) (Seen, error) {
	if len(token) < tokenBytesMin || token[0] != tokenFormat && token[0] != tokenDotsFormat {
		return Seen{}, ErrBadContext
	}
	body, sum := token[:len(token)-tokenChecksumBytes], token[len(token)-tokenChecksumBytes:]
	if binary.BigEndian.Uint32(sum) != tokenChecksum(body) {
		return Seen{}, ErrBadContext
	}
	if binary.BigEndian.Uint64(body[1:]) != fnv1a(key) {
		return Seen{}, ErrBadContext
	}
	v, rest, err := DecodeVector(body[1+tokenKeyHashBytes:])
	s := Seen{Vector: v}
	if err == nil && token[0] == tokenDotsFormat {
		s.Dots, rest, err = decodeDots(rest)
	}
	if err != nil || len(rest) != 0 || !s.valid() {
		return Seen{}, ErrBadContext
	}
	return s, nil
}

// decodeDots reads at least one dot.
func decodeDots(b []byte) ([]Dot, []byte, error) {
	n, b, err := decodeCount(b, dotBytesMin)
	if err != nil || n == 0 {
		return nil, nil, ErrBadContext
	}
	dots := make([]Dot, n)
	for i := range dots {
		if dots[i], b, err = DecodeDot(b); err != nil {
			return nil, nil, err
		}
	}
	return dots, b, nil
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
