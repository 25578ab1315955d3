//go:build mutant_late_dot_accepted

package mutant

// Planted is the bug that is compiled in.
const Planted = LateDotAccepted
