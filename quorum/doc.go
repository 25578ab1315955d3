// Package quorum is the eventual lane: it writes a key's sibling set to n replicas and answers at W durable
// acknowledgements, and reads from R of them and merges.
//
// It owns the coordinator of eventual requests, the vote tracker, the resolvers, read repair, hints, and the local replica's
// accept rule for eventual versions. What it promises:
//
//   - An acknowledgement means durable. A coordinator answers "applied" only when its own copy is among the W durable
//     ones, because its later sibling sets claim to cover all of its earlier dots.
//   - A write that failed is "not_applied" only if nothing of it can be held anywhere; otherwise it is "unknown".
//   - Replicas are asked all at once. A dead one costs nothing but its acknowledgement.
//   - Nothing acknowledged is lost by merging, whatever the order and number of times messages arrive.
//
// It never decides who owns a partition (the caller passes the owners and the epoch), never reads the wall clock (stamps
// come from the causal.Clock), never writes storage directly (the Committer does, in the node's shared batch), and
// keeps no goroutine for a request: replicas answer through callbacks. Those of Run and Tend belong to their caller. DESIGN.md
// explains the flow and what was rejected.
package quorum
