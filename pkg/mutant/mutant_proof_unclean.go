//go:build mutant_proof_unclean

package mutant

// Planted is the bug that is compiled in.
const Planted = ProofUnclean
