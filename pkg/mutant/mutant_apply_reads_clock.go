//go:build mutant_apply_reads_clock

package mutant

// Planted is the bug that is compiled in.
const Planted = ApplyReadsClock
