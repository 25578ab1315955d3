package transport

import (
	"encoding/binary"
	"math"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// A batch is a header and frames, all integers big-endian:
//
//	header: format u8, sender u64, life u64, cluster u64, clock u64, epoch u64
//	frame:  kind u8, id u64, length u32, payload
//
// Fields have fixed places, unlike in the payloads, so that a length is filled in after its payload was appended in
// place, and a frame that is still queued is taken back by changing its kind.
const (
	batchFormat = 1
	headerBytes = 1 + 5*8
	frameBytes  = 1 + 8 + 4

	// frameBytesCeiling is what a length can express with room to spare.
	frameBytesCeiling = math.MaxInt32 / 2
)

// kind says what a frame carries.
type kind uint8

const (
	// kindVoid is a request that expired while it was queued. Receivers skip it.
	kindVoid kind = iota
	kindRaft
	kindWrite
	kindRead
	kindForward
	kindExchange
	kindMeta
	// kindReply answers the request whose id it has.
	kindReply
	// kindPull asks for a part of a snapshot, kindPullReply answers it, an exchange, or a hint that was handed over. They have
	// links of their own; see bulk.go.
	kindPull
	kindPullReply
	// kindScan asks for a replica's part of a listing.
	kindScan
	// kindHint is a write that the receiver is to keep for another node.
	kindHint
	// kindHandOver is a write that another node has kept for the receiver.
	kindHandOver
	// kindWrites, kindReads and kindForwards carry many requests; see each.go.
	kindWrites
	kindReads
	kindForwards
	kindsEnd
)

var kindNames = [kindsEnd]string{
	"void", "raft", "write", "read", "forward", "exchange", "meta", "reply", "pull", "pull reply", "scan", "hint", "hand over",
	"writes", "reads", "forwards",
}

func (k kind) String() string {
	if k < kindsEnd {
		return kindNames[k]
	}
	return "invalid"
}

// isWrite reports whether the frame hands over a sibling set, and is answered like a write.
func (k kind) isWrite() bool { return k == kindWrite || k == kindHint || k == kindHandOver }

// isRequest reports whether the frame wants a reply.
func (k kind) isRequest() bool {
	return k >= kindWrite && k <= kindMeta || k == kindPull || k == kindScan || k >= kindHint && k <= kindForwards
}

// isReply reports whether the frame answers a request.
func (k kind) isReply() bool { return k == kindReply || k == kindPullReply }

// isBulk reports whether the frame belongs to the traffic that has links of its own.
func (k kind) isBulk() bool {
	return k == kindPull || k == kindPullReply || k == kindExchange || k == kindHandOver
}

// header introduces a batch.
type header struct {
	from kv.NodeID
	// life is unique to each start of the sending node. Ids of requests are compared within one life only.
	life uint64
	// cluster is 0 while the sender does not know it.
	cluster uint64
	// clock is at or above every reading in the batch.
	clock causal.HLC
	epoch kv.Epoch
}

// put writes the header over the first headerBytes of b.
func (h header) put(b []byte) {
	b[0] = batchFormat
	for i, v := range [...]uint64{uint64(h.from), h.life, h.cluster, uint64(h.clock), uint64(h.epoch)} {
		binary.BigEndian.PutUint64(b[1+8*i:], v)
	}
}

// decodeHeader reads a batch's header and returns its frames.
func decodeHeader(b []byte) (header, []byte, error) {
	if len(b) < headerBytes {
		return header{}, nil, malformed("a batch of %d bytes has no header", len(b))
	}
	if b[0] != batchFormat {
		return header{}, nil, malformed("a batch has format %d; this node reads %d", b[0], batchFormat)
	}
	field := func(i int) uint64 { return binary.BigEndian.Uint64(b[1+8*i:]) }
	return header{
		from: kv.NodeID(field(0)), life: field(1), cluster: field(2), clock: causal.HLC(field(3)), epoch: kv.Epoch(field(4)),
	}, b[headerBytes:], nil
}

// frame is one message of a batch. Its payload aliases the batch.
type frame struct {
	kind    kind
	id      uint64 // of the request; 0 for Raft
	payload []byte
}

// openFrame appends the fixed part of a frame. The caller appends the payload and then calls closeFrame with the place
// where the frame starts.
func openFrame(dst []byte, k kind, id uint64) []byte {
	dst = append(dst, byte(k))
	dst = binary.BigEndian.AppendUint64(dst, id)
	return append(dst, 0, 0, 0, 0)
}

// closeFrame fills in the length of the frame that begins at start and ends with b.
func closeFrame(b []byte, start int) {
	binary.BigEndian.PutUint32(b[start+1+8:], uint32(len(b)-start-frameBytes))
}

// nextFrame reads the first frame of b and returns what follows it.
func nextFrame(b []byte) (frame, []byte, error) {
	if len(b) < frameBytes {
		return frame{}, nil, malformed("%d bytes are no frame", len(b))
	}
	f := frame{kind: kind(b[0]), id: binary.BigEndian.Uint64(b[1:])}
	n := uint64(binary.BigEndian.Uint32(b[1+8:]))
	b = b[frameBytes:]
	if f.kind >= kindsEnd {
		return frame{}, nil, malformed("frame kind %d", f.kind)
	}
	if n > uint64(len(b)) {
		return frame{}, nil, malformed("a frame of %d bytes in a batch that has %d left", n, len(b))
	}
	f.payload = b[:n:n]
	return f, b[n:], nil
}
