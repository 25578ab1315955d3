//go:build mutant_hint_dropped_silently

package mutant

// Planted is the bug that is compiled in.
const Planted = HintDroppedSilently
