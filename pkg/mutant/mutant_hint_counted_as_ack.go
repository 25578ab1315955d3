//go:build mutant_hint_counted_as_ack

package mutant

// Planted is the bug that is compiled in.
const Planted = HintCountedAsAck
