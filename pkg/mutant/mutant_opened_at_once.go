//go:build mutant_opened_at_once

package mutant

// Planted is the bug that is compiled in.
const Planted = OpenedAtOnce
