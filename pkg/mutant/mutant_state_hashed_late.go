//go:build mutant_state_hashed_late

package mutant

// Planted is the bug that is compiled in.
const Planted = StateHashedLate
