//go:build mutant_repair_writes_nothing

package mutant

// Planted is the bug that is compiled in.
const Planted = RepairWritesNothing
