//go:build mutant_base_guessed

package mutant

// Planted is the bug that is compiled in.
const Planted = BaseGuessed
