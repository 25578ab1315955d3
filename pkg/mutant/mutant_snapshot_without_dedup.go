//go:build mutant_snapshot_without_dedup

package mutant

// Planted is the bug that is compiled in.
const Planted = SnapshotWithoutDedup
