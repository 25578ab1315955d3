//go:build mutant_proof_checked_before

package mutant

// Planted is the bug that is compiled in.
const Planted = ProofCheckedBefore
