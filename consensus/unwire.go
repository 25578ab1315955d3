package consensus

import (
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/kv"
)

// inbound is one message that arrived for a group.
type inbound struct {
	group kv.GroupID
	msg   *pb.Message
	bytes int
}

// messageMemory is a message together with the values that its fields point to: one allocation instead of a dozen.
type messageMemory struct {
	msg     pb.Message
	typ     pb.MessageType
	numbers [8]uint64
	reject  bool
}

// entryMemory is messageMemory for an entry.
type entryMemory struct {
	entry       pb.Entry
	typ         pb.EntryType
	term, index uint64
}

// decodeFrame reads all messages of a frame. They share no memory with it. Each message with payload owns one buffer
// for it: sharing one buffer a frame would let a small entry of an idle group keep every busy group's bytes alive.
func decodeFrame(frame []byte) ([]inbound, error) {
	r := reader{b: frame}
	if f := r.byte("format"); r.err == nil && f != frameFormat {
		return nil, fmt.Errorf("%w: unknown format %d", ErrBadFrame, f)
	}
	var out []inbound
	for len(r.b) > 0 && r.err == nil {
		before := len(r.b)
		g := kv.GroupID(r.bounded("group", uint64(^kv.GroupID(0))))
		m := decodeMessage(&r)
		out = append(out, inbound{group: g, msg: m, bytes: before - len(r.b)})
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadFrame, r.err)
	}
	return out, nil
}

func decodeMessage(r *reader) *pb.Message {
	f := r.uint16("flags")
	if f&^flagsKnown != 0 || (f&flagRejectSet != 0 && f&flagReject == 0) {
		r.fail("flags")
		return nil
	}
	mem := &messageMemory{}
	m := &mem.msg
	if f&flagType != 0 {
		mem.typ = pb.MessageType(r.enum("type"))
		m.Type = &mem.typ
	}
	fields := [...]struct {
		flag uint16
		dst  **uint64
	}{
		{flagTo, &m.To},
		{flagFrom, &m.From},
		{flagTerm, &m.Term},
		{flagLogTerm, &m.LogTerm},
		{flagIndex, &m.Index},
		{flagCommit, &m.Commit},
		{flagVote, &m.Vote},
		{flagRejectHint, &m.RejectHint},
	}
	for i := range fields {
		if f&fields[i].flag != 0 {
			mem.numbers[i] = r.uvarint("number")
			*fields[i].dst = &mem.numbers[i]
		}
	}
	if f&flagReject != 0 {
		mem.reject = f&flagRejectSet != 0
		m.Reject = &mem.reject
	}
	if f&flagContext != 0 {
		m.Context = append([]byte{}, r.bytes("context")...)
	}
	if f&flagEntries != 0 {
		m.Entries = decodeEntries(r)
	}
	if f&flagSnapshot != 0 {
		m.Snapshot = decodeSnapshot(r)
	}
	return m
}

func decodeEntries(r *reader) []*pb.Entry {
	n := r.count("entries")
	if n == 0 {
		r.fail("entries")
	}
	if r.err != nil {
		return nil
	}
	mem := make([]entryMemory, n)
	out := make([]*pb.Entry, n)
	total := 0
	for i := range mem {
		decodeEntry(r, &mem[i])
		out[i] = &mem[i].entry
		total += len(mem[i].entry.Data)
	}
	if r.err != nil {
		return nil
	}
	payload := make([]byte, 0, total)
	for _, e := range out {
		if e.Data == nil {
			continue
		}
		at := len(payload)
		payload = append(payload, e.Data...)
		e.Data = payload[at:len(payload):len(payload)]
	}
	return out
}

// decodeEntry leaves the entry's data aliasing the input.
func decodeEntry(r *reader, mem *entryMemory) {
	f := r.byte("entry flags")
	if f&^entryFlagsKnown != 0 {
		r.fail("entry flags")
		return
	}
	if f&entryHasTerm != 0 {
		mem.term = r.uvarint("entry term")
		mem.entry.Term = &mem.term
	}
	if f&entryHasIndex != 0 {
		mem.index = r.uvarint("entry index")
		mem.entry.Index = &mem.index
	}
	if f&entryHasType != 0 {
		mem.typ = pb.EntryType(r.enum("entry type"))
		mem.entry.Type = &mem.typ
	}
	if f&entryHasData != 0 {
		mem.entry.Data = r.bytes("entry data")
	}
}

func decodeSnapshot(r *reader) *pb.Snapshot {
	s := &pb.Snapshot{}
	f := r.byte("snapshot flags")
	if f&^snapFlagsKnown != 0 || (f != 0 && f&snapHasMetadata == 0) {
		r.fail("snapshot flags")
		return s
	}
	if f == 0 {
		return s
	}
	m := &pb.SnapshotMetadata{}
	s.Metadata = m
	if f&snapHasIndex != 0 {
		m.Index = new(r.uvarint("snapshot index"))
	}
	if f&snapHasTerm != 0 {
		m.Term = new(r.uvarint("snapshot term"))
	}
	if f&snapHasConf != 0 {
		m.ConfState = decodeConf(r)
	}
	return s
}

func decodeConf(r *reader) *pb.ConfState {
	cs := &pb.ConfState{}
	f := r.byte("configuration flags")
	if f&^confFlagsKnown != 0 || f == confAutoLeave {
		r.fail("configuration flags")
		return cs
	}
	if f&confHasAutoLeave != 0 {
		cs.AutoLeave = new(f&confAutoLeave != 0)
	}
	for _, dst := range [...]*[]uint64{&cs.Voters, &cs.Learners, &cs.VotersOutgoing, &cs.LearnersNext} {
		n := r.count("configuration")
		if r.err != nil {
			return cs
		}
		for range n {
			*dst = append(*dst, r.uvarint("node id"))
		}
	}
	return cs
}
