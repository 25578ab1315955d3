//go:build mutant_failure_counted_as_ack

package mutant

// Planted is the bug that is compiled in.
const Planted = FailureCountedAsAck
