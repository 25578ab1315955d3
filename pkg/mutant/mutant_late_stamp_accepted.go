//go:build mutant_late_stamp_accepted

package mutant

// Planted is the bug that is compiled in.
const Planted = LateStampAccepted
