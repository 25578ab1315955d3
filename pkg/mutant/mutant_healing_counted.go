//go:build mutant_healing_counted

package mutant

// Planted is the bug that is compiled in.
const Planted = HealingCounted
