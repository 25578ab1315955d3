//go:build mutant_settle_without_revision

package mutant

// Planted is the bug that is compiled in.
const Planted = SettleWithoutRevision
