//go:build mutant_session_read_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = SessionReadForgotten
