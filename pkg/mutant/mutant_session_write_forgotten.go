//go:build mutant_session_write_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = SessionWriteForgotten
