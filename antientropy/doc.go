// Package antientropy makes the replicas of a partition converge without anybody reading, finds rows that were lost or
// damaged underneath, and says when everything up to some time is everywhere.
//
// It owns the exchange between two replicas, the repair watermark, the collection of tombstones behind it, the scrub, and the
// pace of all of them. The hash tree that it compares is package storage's. Invariants:
//
//   - Nothing is overwritten: whatever arrives is merged by the replica, under the same rules as a repair.
//   - Equal replicas cost one round trip; unequal ones carry only the keys that differ, and digests of a few neighbours.
//   - Everything stamped at or below the watermark was on every replica, and in no store of hints, when it was set; none of
//     them accepts an attempt from up to then any more. Only behind it is a row without a value removed.
//   - A replica that has lost rows takes part in no watermark until it was compared with so many others that every write
//     which a majority holds was met.
//   - The service takes a bounded share of the node's time and of its network, however much it holds.
//
// It never decides what a version is worth. DESIGN.md explains the protocols and what was rejected.
//
// The exchange follows DeCandia et al., "Dynamo: Amazon's Highly Available Key-value Store", 2007, section 4.7.
package antientropy

import "errors"

var (
	// ErrPayload is returned for a payload that no exchange wrote.
	ErrPayload = errors.New("antientropy: malformed payload")
	// ErrQuarantined is returned while the rows of the partition are damaged and being replaced.
	ErrQuarantined = errors.New("antientropy: the rows of the partition are being replaced")
	// ErrNotOwner is returned when this node does not hold the partition at the epoch that the peer named.
	ErrNotOwner = errors.New("antientropy: the partition is not held here at that epoch")
)
