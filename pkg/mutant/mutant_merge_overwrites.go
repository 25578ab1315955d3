//go:build mutant_merge_overwrites

package mutant

// Planted is the bug that is compiled in.
const Planted = MergeOverwrites
