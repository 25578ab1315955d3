//go:build mutant_context_ignored

package mutant

// Planted is the bug that is compiled in.
const Planted = ContextIgnored
