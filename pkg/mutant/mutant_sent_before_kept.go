//go:build mutant_sent_before_kept

package mutant

// Planted is the bug that is compiled in.
const Planted = SentBeforeKept
