//go:build mutant_expiry_unchecked

package mutant

// Planted is the bug that is compiled in.
const Planted = ExpiryUnchecked
