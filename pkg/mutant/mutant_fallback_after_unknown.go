//go:build mutant_fallback_after_unknown

package mutant

// Planted is the bug that is compiled in.
const Planted = FallbackAfterUnknown
