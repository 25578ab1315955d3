package antientropy

import (
	"encoding/binary"
	"fmt"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Kinds of request. Each is answered by its own kind of reply, which carries no tag.
const (
	// askRoot carries the digest of a tree; the answer begins with the peer's standing, and has the digests of the tree's groups
	// unless the peer's tree is the same.
	askRoot = 1 + iota
	// askNodes carries a salt and a set of groups; the answer has the digests of their nodes.
	askNodes
	// askRows carries nodes; the answer has for each its rows, or the digests of its parts.
	askRows
	// askParts carries parts of nodes; the answer has their rows.
	askParts
	// askSets carries ids of rows; the answer has their sets.
	askSets
	// askMerge carries sets; the answer has the merged set of each that differs from what was sent.
	askMerge
	// askWatermark carries a step of the watermark protocol (watermark.go).
	askWatermark
)

// standing says what a replica's word is worth to one that has lost rows.
type standing struct {
	committed causal.HLC
	healthy   bool
}

func (s standing) append(dst []byte) []byte {
	flag := byte(0)
	if s.healthy {
		flag = 1
	}
	return causal.AppendHLC(append(dst, flag), s.committed)
}

const standingBytes = 1 + 8

func decodeStanding(b []byte) (standing, []byte, error) {
	if len(b) < standingBytes || b[0] > 1 {
		return standing{}, nil, fmt.Errorf("%w: standing", ErrPayload)
	}
	at, rest, err := causal.DecodeHLC(b[1:])
	return standing{committed: at, healthy: b[0] == 1}, rest, err
}

// header starts every request.
type header struct {
	kind      byte
	partition kv.PartitionID
	epoch     kv.Epoch
	from      standing
}

func (h header) append(dst []byte) []byte {
	dst = append(dst, h.kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.partition))
	return h.from.append(binary.BigEndian.AppendUint64(dst, uint64(h.epoch)))
}

const headerBytes = 11

func decodeHeader(b []byte) (header, []byte, error) {
	if len(b) < headerBytes {
		return header{}, nil, fmt.Errorf("%w: %d bytes of header", ErrPayload, len(b))
	}
	h := header{
		kind: b[0], partition: kv.PartitionID(binary.BigEndian.Uint16(b[1:])), epoch: kv.Epoch(binary.BigEndian.Uint64(b[3:])),
	}
	var err error
	h.from, b, err = decodeStanding(b[headerBytes:])
	return h, b, err
}

func appendSums(dst []byte, sums []uint64) []byte {
	for _, s := range sums {
		dst = binary.BigEndian.AppendUint64(dst, s)
	}
	return dst
}

func decodeSums(b []byte, n int) ([]uint64, error) {
	if len(b) != n*8 {
		return nil, fmt.Errorf("%w: %d bytes of digests, not %d", ErrPayload, len(b), n*8)
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return out, nil
}

func appendHalves(dst []byte, sums []uint32) []byte {
	for _, s := range sums {
		dst = binary.BigEndian.AppendUint32(dst, s)
	}
	return dst
}

func decodeHalves(b []byte, n int) ([]uint32, error) {
	if len(b) != n*4 {
		return nil, fmt.Errorf("%w: %d bytes of digests, not %d", ErrPayload, len(b), n*4)
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = binary.BigEndian.Uint32(b[i*4:])
	}
	return out, nil
}

// reader takes fields off a payload. The first failure sticks.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrPayload, what)
	}
	r.b = nil
}

func (r *reader) bytes(n int, what string) []byte {
	if r.err != nil || len(r.b) < n {
		r.fail(what)
		return make([]byte, n)
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint64(what string) uint64 { return binary.BigEndian.Uint64(r.bytes(8, what)) }

// node takes the number of a node.
func (r *reader) node() int {
	n := int(binary.BigEndian.Uint16(r.bytes(2, "node")))
	if n >= storage.TreeNodes {
		r.fail("node")
		return 0
	}
	return n
}

// count takes a number of things that take up at least size bytes each.
func (r *reader) count(size int, what string) int {
	n, w := binary.Uvarint(r.b)
	if r.err != nil || w <= 0 || n > uint64((len(r.b)-w)/size) {
		r.fail(what)
		return 0
	}
	r.b = r.b[w:]
	return int(n)
}

const rowMarkBytes = 8

func appendMarks(dst []byte, marks []rowMark) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(marks)))
	for _, m := range marks {
		dst = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(dst, m.id), m.sum)
	}
	return dst
}

func (r *reader) marks() []rowMark {
	out := make([]rowMark, r.count(rowMarkBytes, "rows"))
	for i := range out {
		b := r.bytes(rowMarkBytes, "row")
		out[i] = rowMark{id: binary.BigEndian.Uint32(b), sum: binary.BigEndian.Uint32(b[4:])}
		if i > 0 && out[i-1].compare(out[i]) > 0 {
			r.fail("order of rows")
		}
	}
	return out
}

// nodeRows is what askRows is answered with for one node: its rows, or the digests of its parts.
type nodeRows struct {
	parts []uint32
	marks []rowMark
}

func (n nodeRows) append(dst []byte) []byte {
	if n.parts == nil {
		return appendMarks(append(dst, 0), n.marks)
	}
	return appendHalves(append(dst, 1), n.parts)
}

func (r *reader) nodeRows() nodeRows {
	switch r.bytes(1, "node")[0] {
	case 0:
		return nodeRows{marks: r.marks()}
	case 1:
		out := nodeRows{parts: make([]uint32, fanOut)}
		for i := range out.parts {
			out.parts[i] = binary.BigEndian.Uint32(r.bytes(4, "part"))
		}
		return out
	}
	r.fail("kind of a node's rows")
	return nodeRows{}
}

// wanted are rows of a node by their ids.
type wanted struct {
	node int
	ids  []uint32
}

func (w wanted) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(w.node))
	dst = binary.AppendUvarint(dst, uint64(len(w.ids)))
	for _, id := range w.ids {
		dst = binary.BigEndian.AppendUint32(dst, id)
	}
	return dst
}

func (r *reader) wanted() wanted {
	w := wanted{node: r.node(), ids: make([]uint32, r.count(4, "ids"))}
	for i := range w.ids {
		w.ids[i] = binary.BigEndian.Uint32(r.bytes(4, "id"))
	}
	return w
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func takeBytes(b []byte) (out, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, fmt.Errorf("%w: length of a field", ErrPayload)
	}
	return b[w : w+int(n)], b[w+int(n):], nil
}

// keySet is a key with a sibling set.
type keySet struct {
	key []byte
	set causal.SiblingSet
}

func (k keySet) append(dst []byte) []byte {
	dst = appendBytes(dst, k.key)
	return appendBytes(dst, causal.AppendSet(nil, k.set))
}

func decodeKeySets(b []byte) ([]keySet, error) {
	var out []keySet
	for len(b) > 0 {
		key, rest, err := takeBytes(b)
		if err != nil {
			return nil, err
		}
		raw, rest, err := takeBytes(rest)
		if err != nil {
			return nil, err
		}
		set, err := causal.DecodeSet(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPayload, err)
		}
		out = append(out, keySet{key: key, set: set})
		b = rest
	}
	return out, nil
}

// merged is the answer to askMerge, and to askSets, where taken counts the nodes.
type merged struct {
	from standing
	// behind says that not all that was sent could be merged.
	behind bool
	// taken is the number of things of the request that were dealt with; the rest must be asked for again.
	taken int
	sets  []keySet
}

func (m merged) append(dst []byte) []byte {
	flag := byte(0)
	if m.behind {
		flag = 1
	}
	dst = binary.AppendUvarint(append(m.from.append(dst), flag), uint64(m.taken))
	for _, s := range m.sets {
		dst = s.append(dst)
	}
	return dst
}

func decodeMerged(b []byte, sent int) (merged, error) {
	from, b, err := decodeStanding(b)
	if err != nil {
		return merged{}, err
	}
	if len(b) == 0 || b[0] > 1 {
		return merged{}, fmt.Errorf("%w: merged sets", ErrPayload)
	}
	behind := b[0] == 1
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n > uint64(sent) {
		return merged{}, fmt.Errorf("%w: count of merged sets", ErrPayload)
	}
	sets, err := decodeKeySets(b[1+w:])
	if err == nil && n == 0 && len(sets) == 0 {
		err = fmt.Errorf("%w: nothing was dealt with", ErrPayload)
	}
	return merged{from: from, behind: behind, taken: int(n), sets: sets}, err
}

// setBytes estimates the encoded size of a set by its values.
func setBytes(siblings []causal.Sibling) int {
	n := 0
	for i := range siblings {
		n += len(siblings[i].Value) + siblingBytes
	}
	return n
}

// siblingBytes is about what a sibling costs beside its value.
const siblingBytes = 64
