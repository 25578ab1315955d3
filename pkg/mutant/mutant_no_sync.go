//go:build mutant_no_sync

package mutant

// Planted is the bug that is compiled in.
const Planted = NoSync
