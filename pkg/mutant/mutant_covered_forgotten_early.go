//go:build mutant_covered_forgotten_early

package mutant

// Planted is the bug that is compiled in.
const Planted = CoveredForgottenEarly
