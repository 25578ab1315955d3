// Package antientropy makes the replicas of a partition converge without anybody reading: it compares what they hold and
// carries over what differs.
//
// It owns the digests of a partition, the exchange between two replicas and its pace. Invariants:
//
//   - Nothing is overwritten: whatever arrives is merged by the replica, under the same rules as a repair.
//   - Equal replicas cost one round trip and two scans; unequal ones carry only the keys that differ.
//   - The service takes a bounded share of the node's time, however much it holds (Config.IdleFactor).
//
// It never decides what a version is worth, and never deletes. Digests are computed from a scan when they are needed.
//
// The exchange follows DeCandia et al., "Dynamo: Amazon's Highly Available Key-value Store", 2007, §4.7, with a tree of two
// levels: a partition's leaves are sent whole, which at 256 of them costs less than another round trip.
package antientropy

import "errors"

var (
	// ErrPayload is returned for a payload that no exchange wrote.
	ErrPayload = errors.New("antientropy: malformed payload")
	// ErrNotOwner is returned when this node does not hold the partition at the epoch that the peer named.
	ErrNotOwner = errors.New("antientropy: the partition is not held here at that epoch")
)
