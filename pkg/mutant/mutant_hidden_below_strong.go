//go:build mutant_hidden_below_strong

package mutant

// Planted is the bug that is compiled in.
const Planted = HiddenBelowStrong
