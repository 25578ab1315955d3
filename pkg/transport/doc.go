// Package transport carries everything small that nodes say to each other: Raft messages, replica writes and reads,
// forwarded operations, exchanges, commands for group 0, and the replies; and, on links apart, the parts of snapshots.
//
// It owns the Mux, which gathers whatever is pending for a peer into one batch a send, the table of calls that wait for
// a reply, the links to peers and their repair, the byte form of batches, the fault injector of --dev, and the gRPC
// wire. A Wire makes links; the same Mux runs over gRPC and over a simulated network.
//
// Invariants:
//   - Nothing blocks a sender: what does not fit the peer's outbox is dropped (Raft) or refused (requests).
//   - Every call ends exactly once: with its reply, or with an error that says what is known. An error whose outcome is
//     "not applied" means that the request never reached a link, or that the peer refused it; once the frame was handed
//     to a link, all but a reply means "unknown".
//   - A request is handled at most once, whatever the wire repeats. Raft frames may be repeated and overtake each other.
//   - A batch is in the order in which its frames were queued, per class of traffic.
//   - No mutex is held across a send, a callback or a handler.
//
// It never decides who owns what, never retries a request, never reads the wall clock, and interprets neither Raft
// frames nor the payloads of exchanges and metadata commands. DESIGN.md beside this file has the batch format and what
// was rejected.
package transport
