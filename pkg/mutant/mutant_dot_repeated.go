//go:build mutant_dot_repeated

package mutant

// Planted is the bug that is compiled in.
const Planted = DotRepeated
