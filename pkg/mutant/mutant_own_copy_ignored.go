//go:build mutant_own_copy_ignored

package mutant

// Planted is the bug that is compiled in.
const Planted = OwnCopyIgnored
