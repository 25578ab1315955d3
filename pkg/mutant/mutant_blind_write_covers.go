//go:build mutant_blind_write_covers

package mutant

// Planted is the bug that is compiled in.
const Planted = BlindWriteCovers
