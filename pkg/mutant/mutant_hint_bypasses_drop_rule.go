//go:build mutant_hint_bypasses_drop_rule

package mutant

// Planted is the bug that is compiled in.
const Planted = HintBypassesDropRule
