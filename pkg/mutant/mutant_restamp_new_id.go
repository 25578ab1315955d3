//go:build mutant_restamp_new_id

package mutant

// Planted is the bug that is compiled in.
const Planted = RestampNewID
