//go:build mutant_promise_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = PromiseForgotten
