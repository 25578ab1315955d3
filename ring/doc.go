// Package ring says where keys live: which partition a key belongs to, which nodes own the partition, and how owners
// change when nodes come and go.
//
// It owns the hash of keys, the partition map and the arithmetic of placement. It decides nothing by itself: the map
// that holds is the one that group 0 committed, and this package computes proposals for it. It is pure: no clock, no
// randomness, no I/O; equal input gives equal output on every node.
//
// Invariants of a placement that Place or Rebalance returns:
//   - Every partition has exactly Replicas distinct owners.
//   - The owners of a partition are spread over zones as evenly as the zones' nodes permit, so that with at least as
//     many zones as replicas no two of them share one; then over data centers in the same way.
//   - Within what the spread leaves free, no node owns more than its share by weight, rounded up, plus one.
//   - First owners, which are the preferred leaders, are spread over nodes by weight as well.
//   - Rebalance moves a replica only because its node has gone, its place breaks the spread, or a node is off its share
//     by more than one.
package ring
