// Package meta owns group 0: the Raft group whose state is the cluster's identity, its members, the partition map and
// the policies.
//
// Invariants:
//   - A NodeID, once assigned, belongs to one disk for ever. A node that comes back with another disk is refused.
//   - The partition map changes only by a committed command that names the epoch it replaces, so the epoch grows by one
//     at a time and every node sees the same maps in the same order.
//   - Apply reads the command and the state, nothing else: no clock, no configuration, no gossip.
//
// Every node holds the whole state in memory and on its own disk, so it can route a request without asking anyone. The
// package never decides who is alive (pkg/membership does) and never moves data.
package meta
