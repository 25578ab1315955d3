//go:build mutant_session_unchecked

package mutant

// Planted is the bug that is compiled in.
const Planted = SessionUnchecked
