package consensus

import (
	"encoding/binary"
	"fmt"
	"math"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// A frame is what one flush sends to one peer: a format byte, then pairs of a group number and a message.
//
// The codec is written by hand because Raft messages are the hottest thing between nodes and their generated protobuf
// code costs several times as much. Every field is optional on the wire, as in protobuf, and absent stays absent: two
// bytes of flags come first, then the fields that are there, numbers as uvarints.
const frameFormat byte = 1

// Presence flags of a message, in the order of the fields on the wire. flagRejectSet holds a value, not a presence.
const (
	flagType uint16 = 1 << iota
	flagTo
	flagFrom
	flagTerm
	flagLogTerm
	flagIndex
	flagCommit
	flagVote
	flagRejectHint
	flagReject
	flagRejectSet
	flagContext
	flagEntries
	flagSnapshot
	flagsKnown = 1<<iota - 1
)

// Presence flags of an entry.
const (
	entryHasTerm byte = 1 << iota
	entryHasIndex
	entryHasType
	entryHasData
	entryFlagsKnown = 1<<iota - 1
)

// Presence flags of a snapshot's metadata and of a configuration.
const (
	snapHasMetadata byte = 1 << iota
	snapHasIndex
	snapHasTerm
	snapHasConf
	snapFlagsKnown = 1<<iota - 1

	confHasAutoLeave byte = 1
	confAutoLeave    byte = 2
	confFlagsKnown        = confHasAutoLeave | confAutoLeave
)

// appendMessage appends the pair of group and message. A snapshot travels as metadata only; its data is streamed apart.
// Messages to the local storage threads carry responses, never leave the node, and cannot be encoded.
func appendMessage(dst []byte, g kv.GroupID, m *pb.Message) []byte {
	invariant.Check(len(m.Responses) == 0, "message %s with responses cannot leave the node", m.GetType())
	dst = binary.AppendUvarint(dst, uint64(g))
	flags := messageFlags(m)
	dst = binary.LittleEndian.AppendUint16(dst, flags)
	if m.Type != nil {
		dst = binary.AppendUvarint(dst, uint64(uint32(*m.Type)))
	}
	for _, n := range [...]*uint64{m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit, m.Vote, m.RejectHint} {
		if n != nil {
			dst = binary.AppendUvarint(dst, *n)
		}
	}
	if m.Context != nil {
		dst = appendBytes(dst, m.Context)
	}
	if len(m.Entries) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(m.Entries)))
		for _, e := range m.Entries {
			dst = appendEntry(dst, e)
		}
	}
	if m.Snapshot != nil {
		dst = appendSnapshot(dst, m.Snapshot)
	}
	return dst
}

func messageFlags(m *pb.Message) uint16 {
	var f uint16
	set := func(present bool, flag uint16) {
		if present {
			f |= flag
		}
	}
	set(m.Type != nil, flagType)
	set(m.To != nil, flagTo)
	set(m.From != nil, flagFrom)
	set(m.Term != nil, flagTerm)
	set(m.LogTerm != nil, flagLogTerm)
	set(m.Index != nil, flagIndex)
	set(m.Commit != nil, flagCommit)
	set(m.Vote != nil, flagVote)
	set(m.RejectHint != nil, flagRejectHint)
	set(m.Reject != nil, flagReject)
	set(m.GetReject(), flagRejectSet)
	set(m.Context != nil, flagContext)
	set(len(m.Entries) > 0, flagEntries)
	set(m.Snapshot != nil, flagSnapshot)
	return f
}

func appendEntry(dst []byte, e *pb.Entry) []byte {
	at := len(dst)
	dst = append(dst, 0)
	var f byte
	if e != nil && e.Term != nil {
		f |= entryHasTerm
		dst = binary.AppendUvarint(dst, *e.Term)
	}
	if e != nil && e.Index != nil {
		f |= entryHasIndex
		dst = binary.AppendUvarint(dst, *e.Index)
	}
	if e != nil && e.Type != nil {
		f |= entryHasType
		dst = binary.AppendUvarint(dst, uint64(uint32(*e.Type)))
	}
	if e != nil && e.Data != nil {
		f |= entryHasData
		dst = appendBytes(dst, e.Data)
	}
	dst[at] = f
	return dst
}

func appendSnapshot(dst []byte, s *pb.Snapshot) []byte {
	m := s.Metadata
	if m == nil {
		return append(dst, 0)
	}
	at := len(dst)
	dst = append(dst, 0)
	f := snapHasMetadata
	if m.Index != nil {
		f |= snapHasIndex
		dst = binary.AppendUvarint(dst, *m.Index)
	}
	if m.Term != nil {
		f |= snapHasTerm
		dst = binary.AppendUvarint(dst, *m.Term)
	}
	if m.ConfState != nil {
		f |= snapHasConf
		dst = appendConf(dst, m.ConfState)
	}
	dst[at] = f
	return dst
}

// appendConf appends a configuration. It is also how the applied row spells one, after a format byte of its own.
func appendConf(dst []byte, cs *pb.ConfState) []byte {
	var f byte
	if cs.AutoLeave != nil {
		f |= confHasAutoLeave
	}
	if cs.GetAutoLeave() {
		f |= confAutoLeave
	}
	dst = append(dst, f)
	for _, ids := range [...][]uint64{cs.Voters, cs.Learners, cs.VotersOutgoing, cs.LearnersNext} {
		dst = binary.AppendUvarint(dst, uint64(len(ids)))
		for _, id := range ids {
			dst = binary.AppendUvarint(dst, id)
		}
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// reader takes fields off the front of b. The first failure sticks; what is read after it is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s cut short or out of range", what)
	}
	r.b = nil
}

func (r *reader) uvarint(what string) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// bounded reads a uvarint that must not exceed limit.
func (r *reader) bounded(what string, limit uint64) uint64 {
	v := r.uvarint(what)
	if v > limit {
		r.fail(what)
		return 0
	}
	return v
}

// count reads the number of things that follow, each of which takes at least one byte. The bound keeps a short frame
// from asking for a large allocation.
func (r *reader) count(what string) int {
	v := r.uvarint(what)
	if v > uint64(len(r.b)) {
		r.fail(what)
		return 0
	}
	return int(v)
}

func (r *reader) byte(what string) byte {
	if len(r.b) == 0 {
		r.fail(what)
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint16(what string) uint16 {
	if len(r.b) < 2 {
		r.fail(what)
		return 0
	}
	v := binary.LittleEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

func (r *reader) uint64(what string) uint64 {
	if len(r.b) < 8 {
		r.fail(what)
		return 0
	}
	v := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

// bytes reads a length and that many bytes, which alias the input and have no spare capacity.
func (r *reader) bytes(what string) []byte {
	n := r.count(what)
	if r.err != nil {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// enum reads a value of a generated enumeration, which is an int32 that is never negative here.
func (r *reader) enum(what string) int32 { return int32(r.bounded(what, math.MaxInt32)) }
