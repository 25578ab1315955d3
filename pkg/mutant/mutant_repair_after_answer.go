//go:build mutant_repair_after_answer

package mutant

// Planted is the bug that is compiled in.
const Planted = RepairAfterAnswer
