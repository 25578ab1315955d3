//go:build mutant_hint_holder_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = HintHolderForgotten
