//go:build mutant_peek_of_one

package mutant

// Planted is the bug that is compiled in.
const Planted = PeekOfOne
