package causal

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Byte forms. Node ids, terms, indexes and lengths are uvarints; clock readings are 8 bytes big-endian, because a
// uvarint of one takes 9. Decoders accept only what encoders write, so that equal values have equal bytes: that is what
// replicas compare by. Counts and lengths are checked against the bytes that are left before anything is allocated.
const (
	setFormat = 1
	// setFormatPruned is setFormat with the index up to which the set was pruned in front. A set that never was has the form
	// of before there was one, and keeps its hash.
	setFormatPruned = 2

	hlcBytes    = 8
	dotBytesMin = 1 + hlcBytes
	// siblingBytesMin is a sibling whose ID is its dot, whose stamp repeats it, and whose value is empty.
	siblingBytesMin = dotBytesMin + 1 + 2 + 1
)

// Flags of an encoded sibling. A field equal to what it usually equals is left out.
const (
	flagDeleted  = 1 << iota
	flagOwnID    // ID differs from Dot and follows
	flagOwnStamp // the stamp's time or node differs from Dot's and both follow
	flagState
	flagExpiry // the expiry follows; left out when it is zero
	flagsAll   = 1<<iota - 1
)

// AppendHLC appends the 8 bytes of a reading. Their order is the order of readings.
func AppendHLC(dst []byte, h HLC) []byte { return binary.BigEndian.AppendUint64(dst, uint64(h)) }

// DecodeHLC reads what AppendHLC wrote and returns the bytes after it.
func DecodeHLC(b []byte) (HLC, []byte, error) {
	if len(b) < hlcBytes {
		return 0, nil, corrupt("a clock reading is cut short")
	}
	return HLC(binary.BigEndian.Uint64(b)), b[hlcBytes:], nil
}

// AppendDot appends the dot.
func AppendDot(dst []byte, d Dot) []byte {
	return AppendHLC(binary.AppendUvarint(dst, uint64(d.Node)), d.Time)
}

// DecodeDot reads what AppendDot wrote and returns the bytes after it.
func DecodeDot(b []byte) (Dot, []byte, error) {
	node, b, err := decodeUvarint(b)
	if err != nil {
		return Dot{}, nil, err
	}
	t, b, err := DecodeHLC(b)
	return Dot{Node: kv.NodeID(node), Time: t}, b, err
}

// AppendPosition appends the position.
func AppendPosition(dst []byte, p Position) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, p.Term), p.Index)
}

// DecodePosition reads what AppendPosition wrote and returns the bytes after it.
func DecodePosition(b []byte) (Position, []byte, error) {
	term, b, err := decodeUvarint(b)
	if err != nil {
		return Position{}, nil, err
	}
	index, b, err := decodeUvarint(b)
	return Position{Term: term, Index: index}, b, err
}

// AppendStamp appends the stamp.
func AppendStamp(dst []byte, s Stamp) []byte {
	return AppendDot(AppendPosition(dst, s.Base), Dot{Node: s.Node, Time: s.Time})
}

// DecodeStamp reads what AppendStamp wrote and returns the bytes after it.
func DecodeStamp(b []byte) (Stamp, []byte, error) {
	base, b, err := DecodePosition(b)
	if err != nil {
		return Stamp{}, nil, err
	}
	d, b, err := DecodeDot(b)
	return Stamp{Base: base, Time: d.Time, Node: d.Node}, b, err
}

// AppendVector appends the vector.
func AppendVector(dst []byte, v Vector) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(v)))
	for i := range v {
		dst = AppendDot(dst, v[i])
	}
	return dst
}

// DecodeVector reads what AppendVector wrote and returns the bytes after it. An empty vector is nil.
func DecodeVector(b []byte) (Vector, []byte, error) {
	n, b, err := decodeCount(b, dotBytesMin)
	if err != nil || n == 0 {
		return nil, b, err
	}
	v := make(Vector, n)
	for i := range v {
		if v[i], b, err = DecodeDot(b); err != nil {
			return nil, nil, err
		}
	}
	if !v.valid() {
		return nil, nil, corrupt("a vector is not sorted by node")
	}
	return v, b, nil
}

// AppendSet appends the set. Equal sets have equal bytes.
func AppendSet(dst []byte, s SiblingSet) []byte {
	dst = slices.Grow(dst, s.encodedBytesGuess())
	if s.Pruned == 0 {
		dst = append(dst, setFormat)
	} else {
		dst = binary.AppendUvarint(append(dst, setFormatPruned), s.Pruned)
	}
	dst = AppendVector(dst, s.Context)
	dst = binary.AppendUvarint(dst, uint64(len(s.Siblings)))
	for i := range s.Siblings {
		dst = appendSibling(dst, &s.Siblings[i])
	}
	return dst
}

// DecodeSet reads what AppendSet wrote, which must be all of b. Values alias b.
func DecodeSet(b []byte) (SiblingSet, error) {
	if len(b) == 0 || b[0] != setFormat && b[0] != setFormatPruned {
		return SiblingSet{}, corrupt("a sibling set has an unknown format")
	}
	var s SiblingSet
	var err error
	pruned := b[0] == setFormatPruned
	b = b[1:]
	if pruned {
		if s.Pruned, b, err = decodeUvarint(b); err != nil {
			return SiblingSet{}, err
		}
		if s.Pruned == 0 {
			return SiblingSet{}, corrupt("a sibling set says that it was pruned, and not by what")
		}
	}
	if s.Context, b, err = DecodeVector(b); err != nil {
		return SiblingSet{}, err
	}
	n, b, err := decodeCount(b, siblingBytesMin)
	if err != nil {
		return SiblingSet{}, err
	}
	if n > 0 {
		s.Siblings = make([]Sibling, n)
	}
	for i := range s.Siblings {
		if b, err = decodeSibling(b, &s.Siblings[i]); err != nil {
			return SiblingSet{}, err
		}
		switch d := s.Siblings[i].Dot; {
		case i > 0 && s.Siblings[i-1].Dot.Compare(d) >= 0:
			return SiblingSet{}, corrupt("the siblings are not sorted by dot")
		case !s.Context.Covers(d):
			return SiblingSet{}, corrupt("the context does not cover a sibling")
		}
	}
	if len(b) != 0 {
		return SiblingSet{}, corrupt("%d bytes follow a sibling set", len(b))
	}
	return s, nil
}

// encodedBytesGuess is about what the set encodes to. Node ids and log positions are taken for small numbers; where they
// are not, append grows once more.
func (s SiblingSet) encodedBytesGuess() int {
	size := 1 + 2*2 + len(s.Context)*(2+hlcBytes)
	for i := range s.Siblings {
		size += 3*(2+hlcBytes) + 16 + len(s.Siblings[i].Value)
	}
	return size
}

func appendSibling(dst []byte, w *Sibling) []byte {
	var flags byte
	if w.Deleted {
		flags |= flagDeleted
	}
	if w.ID != w.Dot {
		flags |= flagOwnID
	}
	if w.stampDot() != w.Dot {
		flags |= flagOwnStamp
	}
	if w.State {
		flags |= flagState
	}
	if w.Expiry != 0 {
		flags |= flagExpiry
	}
	dst = AppendDot(dst, w.Dot)
	dst = append(dst, flags)
	if flags&flagOwnID != 0 {
		dst = AppendDot(dst, w.ID)
	}
	dst = AppendPosition(dst, w.Stamp.Base)
	if flags&flagOwnStamp != 0 {
		dst = AppendDot(dst, w.stampDot())
	}
	if flags&flagExpiry != 0 {
		dst = AppendHLC(dst, w.Expiry)
	}
	dst = binary.AppendUvarint(dst, uint64(len(w.Value)))
	return append(dst, w.Value...)
}

func decodeSibling(b []byte, w *Sibling) ([]byte, error) {
	var err error
	if w.Dot, b, err = DecodeDot(b); err != nil {
		return nil, err
	}
	if len(b) == 0 || b[0] > flagsAll {
		return nil, corrupt("a sibling has unknown flags")
	}
	flags := b[0]
	b = b[1:]
	w.Deleted, w.State = flags&flagDeleted != 0, flags&flagState != 0
	if w.ID, b, err = decodeOwnDot(b, flags&flagOwnID != 0, w.Dot); err != nil {
		return nil, err
	}
	if w.Stamp.Base, b, err = DecodePosition(b); err != nil {
		return nil, err
	}
	stamp, b, err := decodeOwnDot(b, flags&flagOwnStamp != 0, w.Dot)
	if err != nil {
		return nil, err
	}
	w.Stamp.Time, w.Stamp.Node = stamp.Time, stamp.Node
	if flags&flagExpiry != 0 {
		if w.Expiry, b, err = DecodeHLC(b); err != nil {
			return nil, err
		}
		if w.Expiry == 0 {
			return nil, corrupt("a sibling says that it expires, and not when")
		}
	}
	n, b, err := decodeCount(b, 1)
	if err != nil {
		return nil, err
	}
	w.Value = b[:n:n]
	return b[n:], nil
}

// decodeOwnDot reads a dot that is written only where it differs from the usual one.
func decodeOwnDot(b []byte, own bool, usual Dot) (Dot, []byte, error) {
	if !own {
		return usual, b, nil
	}
	d, b, err := DecodeDot(b)
	if err == nil && d == usual {
		return Dot{}, nil, corrupt("a sibling repeats its dot")
	}
	return d, b, err
}

func (s *Sibling) stampDot() Dot { return Dot{Node: s.Stamp.Node, Time: s.Stamp.Time} }

// decodeCount reads a number of elements of at least elementBytesMin each, and refuses one that the rest of b cannot
// hold.
func decodeCount(b []byte, elementBytesMin int) (int, []byte, error) {
	n, b, err := decodeUvarint(b)
	if err != nil {
		return 0, nil, err
	}
	if n > uint64(len(b)/elementBytesMin) {
		return 0, nil, corrupt("%d elements cannot be in %d bytes", n, len(b))
	}
	return int(n), b, nil
}

// decodeUvarint reads an unsigned varint and refuses one that is longer than it need be.
func decodeUvarint(b []byte) (uint64, []byte, error) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), b[1:], nil
	}
	v, n := binary.Uvarint(b)
	if n <= 0 || n != (bits.Len64(v)+6)/7 {
		return 0, nil, corrupt("a number is malformed")
	}
	return v, b[n:], nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
