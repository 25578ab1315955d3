//go:build mutant_truncated_too_early

package mutant

// Planted is the bug that is compiled in.
const Planted = TruncatedTooEarly
