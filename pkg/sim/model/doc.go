// Package model searches the two-lane protocol for orders of events that break its promise.
//
// It owns an abstract copy of the protocol in which an eventual lane and a Raft group share one key: three replicas, clocks
// that disagree, messages that arrive late or never, elections and one crash that loses what was not synced. Raft itself is
// taken as correct: a replica's log is named by its last entry, replication and elections are one step each. All else is as
// fine-grained as messages are: each delivery, each answer to a Peek, each proposal and each sync is a step of its own.
//
// State is a plain comparable value; Next lists what can happen in it, Search visits every state breadth-first and Walk takes
// one random path. Whenever an operation returns, the history so far, strong operations and eventual writes that a majority
// acknowledged together, must be linearizable as one register; an operation without an answer may have taken effect at any
// time, or never. The stamps of the settled values must rise.
//
// Each rule of the protocol is a switch in Rules, so that tests can show which history becomes possible without it.
//
// The package imports nothing of Caprock and is not part of the binary. What it leaves out is listed in
// docs/consistency.md.
package model
