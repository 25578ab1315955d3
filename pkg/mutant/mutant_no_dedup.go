//go:build mutant_no_dedup

package mutant

// Planted is the bug that is compiled in.
const Planted = NoDedup
