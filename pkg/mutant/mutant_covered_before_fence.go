//go:build mutant_covered_before_fence

package mutant

// Planted is the bug that is compiled in.
const Planted = CoveredBeforeFence
