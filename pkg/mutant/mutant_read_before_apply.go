//go:build mutant_read_before_apply

package mutant

// Planted is the bug that is compiled in.
const Planted = ReadBeforeApply
