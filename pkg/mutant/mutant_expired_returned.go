//go:build mutant_expired_returned

package mutant

// Planted is the bug that is compiled in.
const Planted = ExpiredReturned
