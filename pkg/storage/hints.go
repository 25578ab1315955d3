package storage

import (
	"bytes"
	"encoding/binary"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// hintKeyBytes is the size of a hint's key: 03 <target> <partition> <seq>.
const hintKeyBytes = 1 + 8 + 2 + 8

// HintID names a hint: whom it is for, and its place among those for the same target and partition.
type HintID struct {
	Target    kv.NodeID
	Partition kv.PartitionID
	// Seq is a reading of the holder's clock. It orders the hints of one target and partition, and tells their age.
	Seq causal.HLC
}

// Hint is a key's sibling set that a node keeps for another one.
type Hint struct {
	ID  HintID
	Key []byte
	Set causal.SiblingSet
	// Bytes is what the hint takes on the disk, as HintBytes counts it.
	Bytes int
}

func appendHintPrefix(dst []byte, target kv.NodeID, p kv.PartitionID) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, prefixHint), uint64(target))
	return binary.BigEndian.AppendUint16(dst, uint16(p))
}

func appendHintKey(dst []byte, id HintID) []byte {
	return causal.AppendHLC(appendHintPrefix(dst, id.Target, id.Partition), id.Seq)
}

func decodeHintKey(key []byte) (HintID, error) {
	if len(key) != hintKeyBytes {
		return HintID{}, corruptRow(key, "has a key of %d bytes", len(key))
	}
	return HintID{
		Target:    kv.NodeID(binary.BigEndian.Uint64(key[1:])),
		Partition: kv.PartitionID(binary.BigEndian.Uint16(key[9:])),
		Seq:       causal.HLC(binary.BigEndian.Uint64(key[11:])),
	}, nil
}

// HintBytes returns what a hint takes on the disk, before compression.
func HintBytes(key []byte, set causal.SiblingSet) int {
	return hintKeyBytes + rowBytesMin + len(appendHintHead(nil, key)) + len(causal.AppendSet(nil, set))
}

func appendHintHead(dst, key []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(key))), key...)
}

// holdersPrefix begins the names of the node rows that say who may keep hints.
const holdersPrefix = "holders/"

// SetHintHolders notes which nodes this one has asked to keep hints of a partition.
func (b *Batch) SetHintHolders(p kv.PartitionID, holders []kv.NodeID) {
	value := make([]byte, 0, 8*len(holders))
	for _, id := range holders {
		value = binary.BigEndian.AppendUint64(value, uint64(id))
	}
	b.SetNodeRow(string(binary.BigEndian.AppendUint16([]byte(holdersPrefix), uint16(p))), value)
}

// ScanHintHolders calls fn with each node that SetHintHolders noted last, partition by partition.
func (s State) ScanHintHolders(fn func(p kv.PartitionID, holder kv.NodeID)) error {
	lower := appendNodeKey(nil, holdersPrefix)
	return s.e.scan(lower, appendPrefixEnd(nil, lower), lower, func(key, row []byte) (bool, error) {
		if len(key) != len(lower)+2 {
			return false, corruptRow(key, "names no partition")
		}
		p := kv.PartitionID(binary.BigEndian.Uint16(key[len(lower):]))
		return true, s.e.useRow(key, row, formatOpaque, func(b []byte) error {
			for ; len(b) >= 8; b = b[8:] {
				fn(p, kv.NodeID(binary.BigEndian.Uint64(b)))
			}
			if len(b) > 0 {
				return errLeftOver
			}
			return nil
		})
	})
}

// SetHint keeps a key's sibling set for another node.
func (b *Batch) SetHint(id HintID, key []byte, set causal.SiblingSet) {
	b.key = appendHintKey(b.key[:0], id)
	b.head = causal.AppendSet(appendHintHead(b.head[:0], key), set)
	b.put(formatHint, b.head, nil)
}

// DeleteHint removes a hint.
func (b *Batch) DeleteHint(id HintID) {
	b.key = appendHintKey(b.key[:0], id)
	b.remove()
}

// ScanHintIDs calls fn with each hint's name and size, in order, until fn returns false. What the hints hold is not looked
// at.
func (s State) ScanHintIDs(fn func(id HintID, bytes int) (more bool)) error {
	lower := []byte{prefixHint}
	return s.e.scan(lower, appendPrefixEnd(nil, lower), lower, func(key, row []byte) (bool, error) {
		id, err := decodeHintKey(key)
		if err != nil {
			return false, err
		}
		return fn(id, len(key)+len(row)), nil
	})
}

// ScanHints calls fn for the hints of a target and partition from a place on, in order, until fn returns false. What fn gets
// is its own. A hint that cannot be read has an error in place of a key and a set; fn decides what becomes of it.
func (s State) ScanHints(from HintID, fn func(h Hint, damaged error) (more bool)) error {
	lower := appendHintPrefix(nil, from.Target, from.Partition)
	return s.e.scan(lower, appendPrefixEnd(nil, lower), appendHintKey(nil, from), func(key, row []byte) (bool, error) {
		id, err := decodeHintKey(key)
		if err != nil {
			return false, err
		}
		h := Hint{ID: id, Bytes: len(key) + len(row)}
		err = s.e.useRow(key, row, formatHint, func(payload []byte) (err error) {
			h.Key, h.Set, err = decodeHint(payload)
			return err
		})
		if stopped := s.e.health.stopped(); stopped != nil {
			return false, stopped
		}
		return fn(h, err), nil
	})
}

func decodeHint(payload []byte) (key []byte, set causal.SiblingSet, err error) {
	n, size := binary.Uvarint(payload)
	if size <= 0 || n > uint64(len(payload)-size) {
		return nil, causal.SiblingSet{}, errCutShort
	}
	own := bytes.Clone(payload[size:])
	key, own = own[:n:n], own[n:]
	set, err = causal.DecodeSet(own)
	return key, set, err
}
