package consensus

import (
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/kv"
)

// outgoing is one message of a group to a peer.
type outgoing struct {
	group kv.GroupID
	msg   *pb.Message // nil once a later one took its place
}

// parcel is what waits for one peer.
type parcel struct {
	to       kv.NodeID
	messages []outgoing
	// ack maps a group to the place of its newest acknowledgement among messages.
	ack map[kv.GroupID]int
	// news are the groups' appends of nothing, which only tell how far the group has committed.
	news []outgoing
}

// outbox gathers what the next flush sends, by peer, in the order in which Raft emitted it.
//
// Acknowledgements of appended entries are cumulative within a term, so that one a group and flush is enough: the one
// with the highest index, at the place of the last. Everything else goes as it is. A heartbeat is never merged: what it
// carries for a ReadIndex counts responses, and one frame a peer already makes them cheap.
//
// An append of nothing tells a follower how far the group has committed. The next append of something tells it too, and on
// a busy group comes at once: so news wait for tell, and for nothing else. Left out, they spare the follower an
// iteration and the leader its answer.
type outbox struct {
	peers map[kv.NodeID]*parcel
	order []*parcel // those with messages, in the order of their first
	// merged counts acknowledgements that were left out.
	merged uint64
}

func newOutbox() outbox { return outbox{peers: make(map[kv.NodeID]*parcel)} }

func (o *outbox) add(g kv.GroupID, m *pb.Message) {
	to := kv.NodeID(m.GetTo())
	p := o.peers[to]
	if p == nil {
		p = &parcel{to: to, ack: make(map[kv.GroupID]int)}
		o.peers[to] = p
	}
	switch m.GetType() {
	case pb.MsgApp:
		p.forget(g)
		if len(m.GetEntries()) == 0 {
			p.news = append(p.news, outgoing{group: g, msg: m})
			return
		}
	case pb.MsgAppResp:
		if m.GetReject() {
			break
		}
		if at, ok := p.ack[g]; ok && p.messages[at].msg.GetTerm() == m.GetTerm() {
			if earlier := p.messages[at].msg; earlier.GetIndex() > m.GetIndex() {
				m = earlier
			}
			p.messages[at].msg = nil
			o.merged++
		}
		p.ack[g] = len(p.messages)
	default:
	}
	o.put(p, outgoing{group: g, msg: m})
}

func (o *outbox) put(p *parcel, m outgoing) {
	if len(p.messages) == 0 {
		o.order = append(o.order, p)
	}
	p.messages = append(p.messages, m)
}

// forget drops the group's news, because something later is about to be sent.
func (p *parcel) forget(g kv.GroupID) {
	p.news = slices.DeleteFunc(p.news, func(m outgoing) bool { return m.group == g })
}

// tell lets the next flush send the news.
func (o *outbox) tell() {
	for _, p := range o.peers {
		for _, m := range p.news {
			o.put(p, m)
		}
		clear(p.news)
		p.news = p.news[:0]
	}
}

// reset forgets everything that was gathered and keeps the memory.
func (o *outbox) reset() {
	for _, p := range o.order {
		clear(p.messages)
		p.messages = p.messages[:0]
		clear(p.ack)
	}
	o.order = o.order[:0]
}

// frames encodes what waits for a peer. It calls send for each frame with the groups that have messages in it; both are
// reused. One frame is the rule; a new one begins when bytesMax is reached, so that a frame never exceeds it by more
// than one message.
func (p *parcel) frames(buf []byte, groups []kv.GroupID, bytesMax int, send func(frame []byte, groups []kv.GroupID)) ([]byte, []kv.GroupID) {
	buf, groups = append(buf[:0], frameFormat), groups[:0]
	for _, m := range p.messages {
		if m.msg == nil {
			continue
		}
		buf = appendMessage(buf, m.group, m.msg)
		groups = append(groups, m.group)
		if len(buf) >= bytesMax {
			send(buf, groups)
			buf, groups = append(buf[:0], frameFormat), groups[:0]
		}
	}
	if len(groups) > 0 {
		send(buf, groups)
	}
	return buf, groups
}
