//go:build mutant_tree_not_marked

package mutant

// Planted is the bug that is compiled in.
const Planted = TreeNotMarked
