// Package causal tells the order of versions: hybrid logical clocks, dots, version vectors, stamps and the sibling sets
// that merge by them.
//
// It owns the clock of a node (HLC, with a ceiling persisted ahead of use), the algebra of dotted-version-vector sets
// (Almeida, Baquero, Gonçalves, Preguiça, Fonte: "Scalable and Accurate Causality Tracking for Eventually Consistent
// Stores", DAIS 2014), and the byte form of all of these.
//
// Invariants:
//   - A clock never issues a reading twice, nor one below an earlier one, restarts included.
//   - A Vector is sorted by node and has one entry a node. An entry covers every dot of its node up to its time, also
//     dots that the holder never saw; that is why a replica hands on whole sibling sets and never one sibling beside a
//     vector.
//   - A SiblingSet is sorted by dot, and its context covers the dot of every sibling it holds.
//   - A SiblingSet of which the strong lane dropped siblings says up to which log index, wherever it goes.
//   - Merge is commutative, associative and idempotent.
//   - Equal sets have equal bytes, and a decoder accepts no second spelling of a set.
//
// Vectors and sets are immutable values: every method returns a new one, which may share memory with its operands.
// Except for the clock, which persists its ceiling through a function it is given, the package does no I/O, reads no
// wall clock and starts no goroutine.
package causal
