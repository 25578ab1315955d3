//go:build mutant_tombstone_dropped

package mutant

// Planted is the bug that is compiled in.
const Planted = TombstoneDropped
