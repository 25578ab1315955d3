//go:build mutant_unsettled_returned

package mutant

// Planted is the bug that is compiled in.
const Planted = UnsettledReturned
