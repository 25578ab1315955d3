//go:build mutant_leader_counts_itself

package mutant

// Planted is the bug that is compiled in.
const Planted = LeaderCountsItself
