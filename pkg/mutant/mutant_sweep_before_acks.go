//go:build mutant_sweep_before_acks

package mutant

// Planted is the bug that is compiled in.
const Planted = SweepBeforeAcks
