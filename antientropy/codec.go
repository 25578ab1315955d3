package antientropy

import (
	"encoding/binary"
	"fmt"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Kinds of request. Each is answered by its own kind of reply, which carries no tag.
const (
	// askLeaves carries a digest; the answer is the set of leaves that differ.
	askLeaves = 1
	// askKeys carries a set of leaves and the last key of the chunk before; the answer is a chunk of keys and hashes.
	askKeys = 2
	// askMerge carries sets; the answer has the merged set of each that differs from what was sent.
	askMerge = 3
)

// header starts every request.
type header struct {
	kind      byte
	partition kv.PartitionID
	epoch     kv.Epoch
}

func (h header) append(dst []byte) []byte {
	dst = append(dst, h.kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.partition))
	return binary.BigEndian.AppendUint64(dst, uint64(h.epoch))
}

const headerBytes = 11

func decodeHeader(b []byte) (header, []byte, error) {
	if len(b) < headerBytes {
		return header{}, nil, fmt.Errorf("%w: %d bytes of header", ErrPayload, len(b))
	}
	return header{
		kind: b[0], partition: kv.PartitionID(binary.BigEndian.Uint16(b[1:])), epoch: kv.Epoch(binary.BigEndian.Uint64(b[3:])),
	}, b[headerBytes:], nil
}

func appendDigest(dst []byte, d *digest) []byte {
	for _, h := range d {
		dst = binary.BigEndian.AppendUint64(dst, h)
	}
	return dst
}

func decodeDigest(b []byte) (*digest, error) {
	if len(b) != leaves*8 {
		return nil, fmt.Errorf("%w: digest of %d bytes", ErrPayload, len(b))
	}
	d := &digest{}
	for i := range d {
		d[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return d, nil
}

func decodeLeafSet(b []byte) (leafSet, []byte, error) {
	if len(b) < leaves/8 {
		return leafSet{}, nil, fmt.Errorf("%w: leaf set of %d bytes", ErrPayload, len(b))
	}
	return leafSet(b[:leaves/8]), b[leaves/8:], nil
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

// chunk is the answer to askKeys.
type chunk struct {
	keys []keyHash
	// more says that keys after the last one were left out.
	more bool
}

func (c chunk) append(dst []byte) []byte {
	flag := byte(0)
	if c.more {
		flag = 1
	}
	dst = append(dst, flag)
	for _, k := range c.keys {
		dst = appendBytes(dst, k.key)
		dst = binary.BigEndian.AppendUint64(dst, k.hash)
	}
	return dst
}

func decodeChunk(b []byte) (chunk, error) {
	if len(b) == 0 || b[0] > 1 {
		return chunk{}, fmt.Errorf("%w: chunk", ErrPayload)
	}
	c := chunk{more: b[0] == 1}
	for rest := b[1:]; len(rest) > 0; {
		key, after, err := takeBytes(rest)
		if err != nil {
			return chunk{}, err
		}
		if len(after) < 8 || (len(c.keys) > 0 && string(c.keys[len(c.keys)-1].key) >= string(key)) {
			return chunk{}, fmt.Errorf("%w: keys of a chunk", ErrPayload)
		}
		c.keys = append(c.keys, keyHash{key: key, hash: binary.BigEndian.Uint64(after)})
		rest = after[8:]
	}
	if c.more && len(c.keys) == 0 {
		return chunk{}, fmt.Errorf("%w: an empty chunk that is not the last", ErrPayload)
	}
	return c, nil
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

// merged is the answer to askMerge.
type merged struct {
	// taken is the number of sets of the request that were dealt with; the rest must be sent again.
	taken int
	sets  []keySet
}

func (m merged) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(m.taken))
	for _, s := range m.sets {
		dst = s.append(dst)
	}
	return dst
}

func decodeMerged(b []byte, sent int) (merged, error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n == 0 || n > uint64(sent) {
		return merged{}, fmt.Errorf("%w: count of merged sets", ErrPayload)
	}
	sets, err := decodeKeySets(b[w:])
	return merged{taken: int(n), sets: sets}, err
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
