//go:build mutant_send_before_persist

package mutant

// Planted is the bug that is compiled in.
const Planted = SendBeforePersist
