//go:build mutant_no_fence

package mutant

// Planted is the bug that is compiled in.
const Planted = NoFence
