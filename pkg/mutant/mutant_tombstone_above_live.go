//go:build mutant_tombstone_above_live

package mutant

// Planted is the bug that is compiled in.
const Planted = TombstoneAboveLive
