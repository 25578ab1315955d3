//go:build mutant_settle_covers_losers

package mutant

// Planted is the bug that is compiled in.
const Planted = SettleCoversLosers
