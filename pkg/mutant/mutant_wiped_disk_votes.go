//go:build mutant_wiped_disk_votes

package mutant

// Planted is the bug that is compiled in.
const Planted = WipedDiskVotes
