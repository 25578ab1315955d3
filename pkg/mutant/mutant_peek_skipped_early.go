//go:build mutant_peek_skipped_early

package mutant

// Planted is the bug that is compiled in.
const Planted = PeekSkippedEarly
