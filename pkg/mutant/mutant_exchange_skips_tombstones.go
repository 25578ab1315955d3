//go:build mutant_exchange_skips_tombstones

package mutant

// Planted is the bug that is compiled in.
const Planted = ExchangeSkipsTombstones
