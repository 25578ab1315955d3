//go:build mutant_unsettled_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = UnsettledForgotten
