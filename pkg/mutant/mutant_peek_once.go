//go:build mutant_peek_once

package mutant

// Planted is the bug that is compiled in.
const Planted = PeekOnce
