//go:build mutant_repeated_request_served

package mutant

// Planted is the bug that is compiled in.
const Planted = RepeatedRequestServed
