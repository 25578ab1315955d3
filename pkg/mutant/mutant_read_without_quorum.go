//go:build mutant_read_without_quorum

package mutant

// Planted is the bug that is compiled in.
const Planted = ReadWithoutQuorum
