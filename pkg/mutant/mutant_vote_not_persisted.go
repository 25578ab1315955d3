//go:build mutant_vote_not_persisted

package mutant

// Planted is the bug that is compiled in.
const Planted = VoteNotPersisted
