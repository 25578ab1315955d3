// Package storage is the engine of one node: everything the node must still know after a power cut, in one Pebble
// instance, and the only package that imports Pebble.
//
// # What it owns
//
// The key layout (keys.go), the encoding of every row, batches and their durability, and the health of the disk below.
// The strong lane's log, the state of both lanes and the node's own rows share one write-ahead log, so that one sync
// pays for everything that became durable together. They are reached through separate handles, Log and State.
//
// # Invariants
//
//   - A batch is atomic: after a crash all of its rows are there or none of them is.
//   - Batches survive in the order in which they were applied: what a crash leaves is a prefix of them, and the prefix
//     holds every batch whose sync was acknowledged. A sync therefore also makes durable what was applied before it.
//   - Every row carries a format byte and a checksum over its key and its content. A row that does not check out is an
//     error wrapping ErrCorruption, never a value.
//   - All rows of a Raft group are contiguous, and the eventual lane's rows lie outside of them, so that a snapshot can
//     replace one range and leave the other lane alone.
//   - A snapshot of a group (GroupSnapshot) is of one moment, and an installed one (InstallGroup) replaces all rows of its
//     group at once. It is outside the order of batches: durable at return, whether or not batches of other groups are that
//     were applied before it.
//   - Once the write-ahead log or the manifest could not be written, nothing is acknowledged and nothing changes on the
//     disk any more (guard.go says how), and the process goes on living, so that it can say why it stops.
//
// FaultFS is a filesystem that can be told to misbehave: full, failing, slow, or forgetting what was not synced. Nodes with
// a fault injector and simulations put it below all of this.
//
// Rows of the eventual lane that were written or read last are kept in memory as well (recent.go), behind the same calls.
//
// # What it never does
//
// It decides nothing about consistency, merges nothing, knows no other node, and never exits the process.
package storage
