//go:build mutant_snapshot_not_atomic

package mutant

// Planted is the bug that is compiled in.
const Planted = SnapshotNotAtomic
