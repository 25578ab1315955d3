//go:build mutant_quarantine_forgotten

package mutant

// Planted is the bug that is compiled in.
const Planted = QuarantineForgotten
