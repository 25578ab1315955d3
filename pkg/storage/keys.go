package storage

import (
	"encoding/binary"
	"fmt"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// The layout of the key space. Numbers are big-endian and user keys come last, so that the order of the keys is the
// order of the tuples they are made of. No key space overlaps or contains another.
//
//	00 <name>                  node row
//	01 <group u32> 01          hard state
//	               02          truncated position
//	               03 <index>  log entry
//	               04          quarantine: why what follows is not to be trusted
//	               10          applied position and configuration
//	               11 <op id>  reply of an operation already applied (dedup)
//	               20 <key>    S: the strong lane's state; in group 0 the metadata state machine's rows
//	               21 <expiry u64> <key>  expiry index of S
//	02 <partition u16> <key>   E: the eventual lane's sibling set
//	03 <target u64> <partition u16> <seq u64>   hint: a sibling set that the target has not acknowledged
//	04 <partition u16> 00                 what the replica has promised and finished (RepairState)
//	                   01 <place> <key>   hash of the key's row in E
//	                   02 <node u16>      digest of a node of the hash tree
//	                   03 <segment u16>   mark: rows of the segment have changed since it was last folded in
//	                   04 <segment u16>   seal: what was folded in
//	                   05 <key>           copy of a row of E while the partition is quarantined
//	05 <partition u16> <time u64> <key>   index of the rows of E that hold no value
const (
	prefixNode     byte = 0x00
	prefixGroup    byte = 0x01
	prefixSiblings byte = 0x02
	prefixHint     byte = 0x03
	prefixTree     byte = 0x04
	prefixDead     byte = 0x05
	// prefixEnd lies above every prefix in use and reserved.
	prefixEnd byte = 0x06
)

// What a row of a group holds, the byte after the group's number.
const (
	groupHardState byte = 0x01
	groupTruncated byte = 0x02
	groupEntry     byte = 0x03
	// groupQuarantine lies next to what it is about, so that one excise takes both away.
	groupQuarantine byte = 0x04
	groupApplied    byte = 0x10
	groupDedup      byte = 0x11
	groupState      byte = 0x20
	groupExpiry     byte = 0x21
)

// What a row of a partition's tree holds, the byte after the partition's number.
const (
	treeRepair byte = 0x00
	treeIndex  byte = 0x01
	treeNode   byte = 0x02
	treeMark   byte = 0x03
	treeSeal   byte = 0x04
	treeCopy   byte = 0x05
	treeEnd    byte = 0x06
)

const (
	treeRowBytes = 1 + 2 + 1 // 04 <partition> <kind>
	treePlace    = treeRowBytes + 4
)

const (
	groupPrefixBytes    = 1 + 4     // 01 <group>
	groupRowBytes       = 1 + 4 + 1 // 01 <group> <kind>
	entryKeyBytes       = groupRowBytes + 8
	siblingsPrefixBytes = 1 + 2 // 02 <partition>
)

// appendNodeKey appends the key of the named node row.
func appendNodeKey(dst []byte, name string) []byte {
	return append(append(dst, prefixNode), name...)
}

// appendGroupPrefix appends the prefix that all rows of the group share.
func appendGroupPrefix(dst []byte, g kv.GroupID) []byte {
	return binary.BigEndian.AppendUint32(append(dst, prefixGroup), uint32(g))
}

// appendGroupRow appends the key of a row that a group has once, or the prefix of those it has many of.
func appendGroupRow(dst []byte, g kv.GroupID, kind byte) []byte {
	return append(appendGroupPrefix(dst, g), kind)
}

// appendEntryKey appends the key of a log entry.
func appendEntryKey(dst []byte, g kv.GroupID, index uint64) []byte {
	return binary.BigEndian.AppendUint64(appendGroupRow(dst, g, groupEntry), index)
}

// appendDedupKey appends the key of the reply kept for an operation.
func appendDedupKey(dst []byte, g kv.GroupID, opID []byte) []byte {
	return append(appendGroupRow(dst, g, groupDedup), opID...)
}

// appendStateKey appends the key of a row of the group's state machine.
func appendStateKey(dst []byte, g kv.GroupID, key []byte) []byte {
	return append(appendGroupRow(dst, g, groupState), key...)
}

// appendSiblingsPrefix appends the prefix that all sibling sets of the partition share.
func appendSiblingsPrefix(dst []byte, p kv.PartitionID) []byte {
	return binary.BigEndian.AppendUint16(append(dst, prefixSiblings), uint16(p))
}

// appendSiblingsKey appends the key of the sibling set that the eventual lane holds for a user's key.
func appendSiblingsKey(dst []byte, p kv.PartitionID, key []byte) []byte {
	return append(appendSiblingsPrefix(dst, p), key...)
}

// appendTreeRow appends the key of a row that a partition's tree has once, or the prefix of those it has many of.
func appendTreeRow(dst []byte, p kv.PartitionID, kind byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(dst, prefixTree), uint16(p)), kind)
}

// appendIndexKey appends the key of the row that has the hash of the key's sibling set.
func appendIndexKey[K []byte | string](dst []byte, p kv.PartitionID, place Place, key K) []byte {
	return append(binary.BigEndian.AppendUint32(appendTreeRow(dst, p, treeIndex), uint32(place)), key...)
}

// appendNodeRow appends the key of a node's digest, or of a segment's mark or seal.
func appendNodeRow(dst []byte, p kv.PartitionID, kind byte, n int) []byte {
	return binary.BigEndian.AppendUint16(appendTreeRow(dst, p, kind), uint16(n))
}

// appendDeadKey appends the key of a row of the index of dead sibling sets.
func appendDeadKey(dst []byte, p kv.PartitionID, at causal.HLC, key []byte) []byte {
	dst = binary.BigEndian.AppendUint16(append(dst, prefixDead), uint16(p))
	return append(causal.AppendHLC(dst, at), key...)
}

// appendPrefixEnd appends the smallest key above every key that starts with prefix. No prefix of this layout consists
// of 0xff bytes only, because the first byte is below prefixEnd.
func appendPrefixEnd(dst, prefix []byte) []byte {
	end := len(prefix)
	for end > 0 && prefix[end-1] == 0xff {
		end--
	}
	dst = append(dst, prefix[:end]...)
	dst[len(dst)-1]++
	return dst
}

// groupOfKey returns the group that a key with prefixGroup belongs to.
func groupOfKey(key []byte) (kv.GroupID, bool) {
	if len(key) < groupRowBytes || key[0] != prefixGroup {
		return 0, false
	}
	return kv.GroupID(binary.BigEndian.Uint32(key[1:])), true
}

// indexOfEntryKey returns the log index in the key of a log entry.
func indexOfEntryKey(key []byte) (uint64, bool) {
	if len(key) != entryKeyBytes || key[0] != prefixGroup || key[groupPrefixBytes] != groupEntry {
		return 0, false
	}
	return binary.BigEndian.Uint64(key[groupRowBytes:]), true
}

// keyspace names the kind of row that a key belongs to, for messages and metrics.
func keyspace(key []byte) string {
	if len(key) == 0 {
		return "none"
	}
	switch key[0] {
	case prefixNode:
		return "node"
	case prefixSiblings:
		return "siblings"
	case prefixHint:
		return "hint"
	case prefixTree:
		return "tree"
	case prefixDead:
		return "dead"
	case prefixGroup:
		if len(key) >= groupRowBytes {
			return groupKeyspace(key[groupPrefixBytes])
		}
	}
	return "unknown"
}

func groupKeyspace(kind byte) string {
	switch kind {
	case groupHardState:
		return "hard_state"
	case groupTruncated:
		return "truncated"
	case groupEntry:
		return "log_entry"
	case groupQuarantine:
		return "quarantine"
	case groupApplied:
		return "applied"
	case groupDedup:
		return "dedup"
	case groupState:
		return "state"
	case groupExpiry:
		return "expiry"
	}
	return "unknown"
}

// describeKey says in words which row a key names. User keys are shown cut short, because they may be long.
func describeKey(key []byte) string {
	const shownMax = 48
	space := keyspace(key)
	where, rest := "", key
	switch {
	case space == "node":
		rest = key[1:]
	case (space == "siblings" || space == "tree" || space == "dead") && len(key) >= siblingsPrefixBytes:
		where = fmt.Sprintf(" of partition %d", binary.BigEndian.Uint16(key[1:]))
		rest = key[siblingsPrefixBytes:]
	case len(key) >= groupRowBytes && key[0] == prefixGroup:
		g, _ := groupOfKey(key)
		where = fmt.Sprintf(" of group %d", g)
		rest = key[groupRowBytes:]
		if i, ok := indexOfEntryKey(key); ok {
			return fmt.Sprintf("%s row%s at index %d", space, where, i)
		}
	}
	if len(rest) == 0 {
		return fmt.Sprintf("%s row%s", space, where)
	}
	more := ""
	if len(rest) > shownMax {
		rest, more = rest[:shownMax], "…"
	}
	return fmt.Sprintf("%s row%s, key %q%s", space, where, rest, more)
}
