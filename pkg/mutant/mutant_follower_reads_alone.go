//go:build mutant_follower_reads_alone

package mutant

// Planted is the bug that is compiled in.
const Planted = FollowerReadsAlone
