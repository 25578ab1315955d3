//go:build mutant_proof_outlives_replica

package mutant

// Planted is the bug that is compiled in.
const Planted = ProofOutlivesReplica
