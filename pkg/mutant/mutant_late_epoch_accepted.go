//go:build mutant_late_epoch_accepted

package mutant

// Planted is the bug that is compiled in.
const Planted = LateEpochAccepted
