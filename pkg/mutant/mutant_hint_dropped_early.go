//go:build mutant_hint_dropped_early

package mutant

// Planted is the bug that is compiled in.
const Planted = HintDroppedEarly
