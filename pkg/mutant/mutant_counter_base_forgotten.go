//go:build mutant_counter_base_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = CounterBaseForgotten
