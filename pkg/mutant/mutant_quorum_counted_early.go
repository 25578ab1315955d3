//go:build mutant_quorum_counted_early

package mutant

// Planted is the bug that is compiled in.
const Planted = QuorumCountedEarly
