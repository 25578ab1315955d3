//go:build mutant_settle_at_own_position

package mutant

// Planted is the bug that is compiled in.
const Planted = SettleAtOwnPosition
