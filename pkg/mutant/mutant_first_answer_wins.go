//go:build mutant_first_answer_wins

package mutant

// Planted is the bug that is compiled in.
const Planted = FirstAnswerWins
