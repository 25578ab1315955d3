//go:build mutant_proof_never_old

package mutant

// Planted is the bug that is compiled in.
const Planted = ProofNeverOld
