// Package consensus is the strong lane: the Raft groups of this node, their logs, the key-value state machine of the
// partitions, linearizable reads, and the one write path to the disk that everything durable of both lanes shares.
//
// One goroutine, the store loop, owns every Raft group of the node. It takes what arrived since the last iteration,
// lets Raft decide, sends what may be sent, writes what all groups and the eventual lane have to write as one batch
// with one sync, and applies what was committed. DESIGN.md beside this file walks through an iteration.
//
// Invariants:
//
//   - A vote or an acknowledgement of log entries leaves this node only after the batch that holds what it promises,
//     and every batch before it, is durable.
//   - The rows of a committed entry and the applied index that covers it are one batch, and the commit index on disk
//     never falls behind the applied index on disk.
//   - Every proposal ends in exactly one honest outcome: applied with its reply, not applied, or unknown. A lost
//     leadership alone decides nothing.
//   - A read barrier is answered only after a majority confirmed this node's leadership after the barrier was asked
//     for, and after this node has applied what was committed then.
//   - Apply reads the entry and S, nothing else. An entry that it cannot read stops the group; it is never skipped.
//
// The package never routes: a proposal or a barrier that reaches a node which does not lead is refused with the leader's
// id. It never decides who replicates a partition, never reads a wall clock, and never touches the eventual lane's rows,
// whose writers only share its batch (see Store.Commit).
package consensus
