//go:build mutant_proof_dated_late

package mutant

// Planted is the bug that is compiled in.
const Planted = ProofDatedLate
