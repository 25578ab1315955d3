// Package workload drives a cluster with a closed-loop load and measures how fast it answers.
//
// It owns the generator of operations (pure: a seed decides every key and value), the runner (a fixed number of
// clients, each of which sends its next operation when the last one was answered), the histograms, and the targets:
// HTTP and the Go client's stream. A closed loop measures throughput at a given concurrency; it hides the queueing
// that an open arrival process would see, so its latencies are not those of a user who does not wait.
//
// Invariants: an operation is counted exactly once, either as done (a read that found nothing included), or under the
// code of its error; operations that were cut off by the end of the run are not counted at all, because their latency is unknown.
//
// It never checks what a read returned: that is the business of a consistency checker.
package workload
