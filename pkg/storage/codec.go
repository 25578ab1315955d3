package storage

import (
	"encoding/binary"
	"errors"

	"github.com/caprockdb/caprock/pkg/causal"
)

// HardState is what a Raft replica must not forget: the term it is in, whom it voted for, what it knows committed.
type HardState struct {
	Term, Vote, Commit uint64
}

// LogEntry is one entry of a Raft log. Type is the consensus package's own; Data is opaque here.
type LogEntry struct {
	Index, Term uint64
	Type        uint8
	Data        []byte
}

// Applied says up to where a group's state machine has been applied, and the configuration it reached there.
type Applied struct {
	Index, Term uint64
	ConfState   []byte
}

// Strong is the strong lane's state of one key.
type Strong struct {
	Value   []byte
	Deleted bool // a tombstone; Value is then empty
	// Revision is the log index of the write that users see as the key's version.
	Revision uint64
	Stamp    causal.Stamp
	Expiry   causal.HLC // 0: never
	// Covered lists the ids of eventual writes that this state has folded in.
	Covered []causal.Dot
	// Before is a reading up to which all ids of eventual writes are covered, listed or not (consensus/guard.go).
	Before causal.HLC
	// Base is what a resolver whose versions are states has to leave out of the versions beside this state, because this state
	// replaced it (quorum.Counter); nil for nothing.
	Base []byte
}

const (
	strongDeleted byte = 1 << iota
	strongExpires
	strongCovers
	strongForgets
	strongBased
	strongFlags = strongDeleted | strongExpires | strongCovers | strongForgets | strongBased
)

// dotBytesMin is the shortest encoded dot: a node and a clock reading.
const dotBytesMin = 1 + 8

var (
	errCutShort  = errors.New("is cut short")
	errLeftOver  = errors.New("has bytes left over")
	errPadded    = errors.New("has a number longer than it needs to be")
	errFlags     = errors.New("has unknown flags")
	errDead      = errors.New("is a tombstone with a value")
	errEmpty     = errors.New("spells out what it could leave out")
	errDotsCount = errors.New("counts more covered dots than it has bytes for")
)

// uvarints reads numbers off the front of b. The first failure sticks. Like every decoder here it accepts only what the
// encoder writes, so that equal rows have equal bytes.
type uvarints struct {
	b   []byte
	err error
}

func (u *uvarints) next() uint64 {
	if u.err != nil {
		return 0
	}
	v, n := binary.Uvarint(u.b)
	switch {
	case n <= 0:
		u.err = errCutShort
		return 0
	case n > 1 && u.b[n-1] == 0:
		u.err = errPadded
		return 0
	}
	u.b = u.b[n:]
	return v
}

// end reports what went wrong, bytes left over included.
func (u *uvarints) end() error {
	if u.err == nil && len(u.b) > 0 {
		return errLeftOver
	}
	return u.err
}

func appendHardState(dst []byte, h HardState) []byte {
	dst = binary.AppendUvarint(dst, h.Term)
	dst = binary.AppendUvarint(dst, h.Vote)
	return binary.AppendUvarint(dst, h.Commit)
}

func decodeHardState(b []byte) (HardState, error) {
	u := uvarints{b: b}
	h := HardState{Term: u.next(), Vote: u.next(), Commit: u.next()}
	return h, u.end()
}

func appendTruncated(dst []byte, p causal.Position) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, p.Term), p.Index)
}

func decodeTruncated(b []byte) (causal.Position, error) {
	u := uvarints{b: b}
	p := causal.Position{Term: u.next(), Index: u.next()}
	return p, u.end()
}

// appendEntryHead appends what goes before an entry's data. The index is in the key.
func appendEntryHead(dst []byte, e *LogEntry) []byte {
	return append(binary.AppendUvarint(dst, e.Term), e.Type)
}

// decodeEntry reads an entry; Data aliases b.
func decodeEntry(b []byte) (LogEntry, error) {
	u := uvarints{b: b}
	e := LogEntry{Term: u.next()}
	if u.err == nil && len(u.b) == 0 {
		u.err = errCutShort
	}
	if u.err != nil {
		return LogEntry{}, u.err
	}
	e.Type, e.Data = u.b[0], u.b[1:]
	return e, nil
}

func appendAppliedHead(dst []byte, a *Applied) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, a.Index), a.Term)
}

// decodeApplied reads an applied position; ConfState aliases b.
func decodeApplied(b []byte) (Applied, error) {
	u := uvarints{b: b}
	a := Applied{Index: u.next(), Term: u.next()}
	if u.err != nil {
		return Applied{}, u.err
	}
	a.ConfState = u.b
	return a, nil
}

// appendStrongHead appends everything of s but its value, which comes last.
func appendStrongHead(dst []byte, s *Strong) []byte {
	var flags byte
	if s.Deleted {
		flags |= strongDeleted
	}
	if s.Expiry != 0 {
		flags |= strongExpires
	}
	if len(s.Covered) > 0 {
		flags |= strongCovers
	}
	if s.Before != 0 {
		flags |= strongForgets
	}
	if len(s.Base) > 0 {
		flags |= strongBased
	}
	dst = binary.AppendUvarint(append(dst, flags), s.Revision)
	dst = causal.AppendStamp(dst, s.Stamp)
	if s.Expiry != 0 {
		dst = causal.AppendHLC(dst, s.Expiry)
	}
	if len(s.Covered) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(s.Covered)))
		for _, d := range s.Covered {
			dst = causal.AppendDot(dst, d)
		}
	}
	if s.Before != 0 {
		dst = causal.AppendHLC(dst, s.Before)
	}
	if len(s.Base) > 0 {
		dst = append(binary.AppendUvarint(dst, uint64(len(s.Base))), s.Base...)
	}
	return dst
}

// decodeStrong reads a state; Value and Base alias b.
func decodeStrong(b []byte) (Strong, error) {
	if len(b) == 0 {
		return Strong{}, errCutShort
	}
	flags := b[0]
	if flags&^strongFlags != 0 {
		return Strong{}, errFlags
	}
	u := uvarints{b: b[1:]}
	s := Strong{Deleted: flags&strongDeleted != 0, Revision: u.next()}
	if u.err != nil {
		return Strong{}, u.err
	}
	var err error
	if s.Stamp, b, err = causal.DecodeStamp(u.b); err != nil {
		return Strong{}, err
	}
	if flags&strongExpires != 0 {
		if s.Expiry, b, err = causal.DecodeHLC(b); err != nil {
			return Strong{}, err
		}
		if s.Expiry == 0 {
			return Strong{}, errEmpty
		}
	}
	if flags&strongCovers != 0 {
		if s.Covered, b, err = decodeDots(b); err != nil {
			return Strong{}, err
		}
	}
	if flags&strongForgets != 0 {
		if s.Before, b, err = causal.DecodeHLC(b); err != nil {
			return Strong{}, err
		}
		if s.Before == 0 {
			return Strong{}, errEmpty
		}
	}
	if flags&strongBased != 0 {
		u := uvarints{b: b}
		n := u.next()
		switch {
		case u.err != nil:
			return Strong{}, u.err
		case n == 0:
			return Strong{}, errEmpty
		case n > uint64(len(u.b)):
			return Strong{}, errCutShort
		}
		s.Base, b = u.b[:n:n], u.b[n:]
	}
	if s.Deleted && len(b) > 0 {
		return Strong{}, errDead
	}
	s.Value = b
	return s, nil
}

func decodeDots(b []byte) ([]causal.Dot, []byte, error) {
	u := uvarints{b: b}
	n := u.next()
	if u.err != nil {
		return nil, nil, u.err
	}
	if n == 0 {
		return nil, nil, errEmpty
	}
	// Before anything is allocated for them.
	if n > uint64(len(u.b)/dotBytesMin) {
		return nil, nil, errDotsCount
	}
	dots := make([]causal.Dot, n)
	rest := u.b
	for i := range dots {
		var err error
		if dots[i], rest, err = causal.DecodeDot(rest); err != nil {
			return nil, nil, err
		}
	}
	return dots, rest, nil
}
