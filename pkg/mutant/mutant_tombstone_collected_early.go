//go:build mutant_tombstone_collected_early

package mutant

// Planted is the bug that is compiled in.
const Planted = TombstoneCollectedEarly
