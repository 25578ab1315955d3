//go:build mutant_batch_in_part

package mutant

// Planted is the bug that is compiled in.
const Planted = BatchInPart
