package consensus

import (
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// MessageKind says what a Raft message means to somebody who watches the wire.
type MessageKind uint8

// The kinds. Pre-votes, transfers and forwarded read requests promise nothing and are MessageOther.
const (
	MessageOther MessageKind = iota
	MessageAppend
	MessageAppendResponse
	MessageVoteResponse
	MessageHeartbeat
	MessageSnapshot
)

// Message is a Raft message as somebody sees it who watches the wire: what its sender claims or promises by it.
type Message struct {
	Group    kv.GroupID
	Kind     MessageKind
	From, To kv.NodeID
	Term     uint64
	// Before is the position that Entries follow, of an append.
	Before causal.Position
	// Index is what an append response acknowledges, unless Reject is set.
	Index  uint64
	Reject bool
	// Entries are those of an append.
	Entries []MessageEntry
}

// MessageEntry is a log entry under way.
type MessageEntry struct {
	Pos  causal.Position
	Type uint8
	Data []byte
}

// InspectFrame calls fn for each message of a frame that a Sender was given. It is for simulators that check what nodes
// say to each other. What fn gets does not alias the frame.
func InspectFrame(frame []byte, fn func(Message)) error {
	messages, err := decodeFrame(frame)
	if err != nil {
		return err
	}
	for _, in := range messages {
		fn(inspect(in.group, in.msg))
	}
	return nil
}

func inspect(g kv.GroupID, m *pb.Message) Message {
	out := Message{
		Group: g, From: kv.NodeID(m.GetFrom()), To: kv.NodeID(m.GetTo()), Term: m.GetTerm(),
		Index: m.GetIndex(), Reject: m.GetReject(),
	}
	switch m.GetType() {
	case pb.MsgApp:
		out.Kind = MessageAppend
		out.Before = causal.Position{Term: m.GetLogTerm(), Index: m.GetIndex()}
		for _, e := range m.GetEntries() {
			out.Entries = append(out.Entries, MessageEntry{
				Pos:  causal.Position{Term: e.GetTerm(), Index: e.GetIndex()},
				Type: uint8(e.GetType()), Data: e.GetData(),
			})
		}
	case pb.MsgAppResp:
		out.Kind = MessageAppendResponse
	case pb.MsgVoteResp:
		out.Kind = MessageVoteResponse
	case pb.MsgHeartbeat:
		out.Kind = MessageHeartbeat
	case pb.MsgSnap:
		out.Kind = MessageSnapshot
	default:
	}
	return out
}
