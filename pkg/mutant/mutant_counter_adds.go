//go:build mutant_counter_adds

package mutant

// Planted is the bug that is compiled in.
const Planted = CounterAdds
