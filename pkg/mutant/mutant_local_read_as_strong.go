//go:build mutant_local_read_as_strong

package mutant

// Planted is the bug that is compiled in.
const Planted = LocalReadAsStrong
