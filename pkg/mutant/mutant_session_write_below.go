//go:build mutant_session_write_below

package mutant

// Planted is the bug that is compiled in.
const Planted = SessionWriteBelow
