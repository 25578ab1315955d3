// Package client is the Go client of Caprock: what applications, the command line and the load generator use.
//
// It owns one stream to each endpoint, over which it multiplexes all operations: a sender takes whatever is pending and
// sends it as one message, so that the price of a message is paid once for all the operations in it. It owns the choice
// of endpoint, failover, retries, and the deadline of every operation. It learns from answers which node works on which
// partition, and sends operations straight there.
//
// Invariants:
//   - An operation is answered exactly once, by its result, its deadline, or the closing of the client.
//   - A write is applied at most once. It is sent again when it is certain that it was not applied: it never left this
//     process, or the answer said so. A strong write has an id besides, by which the partition's group recognises a
//     repetition; it is sent again within its deadline also when nobody knows what became of it. Whatever is still not
//     known at the end has kv.OutcomeUnknown, and whether to write again is the caller's decision.
//   - Once the outcome of an attempt was unknown, no refusal of a later one makes it known.
//   - No operation outlives its deadline, whatever the network does.
//   - What is outstanding is bounded; beyond the bound the caller waits.
//
// It never caches values, and never weakens a consistency level. Every error is a *kv.Error.
package client
