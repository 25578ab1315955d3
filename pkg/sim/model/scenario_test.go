package model

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// rewrite writes the transcripts anew: go test ./pkg/sim/model -run EachRule -rewrite.
var rewrite = flag.Bool("rewrite", false, "write the transcripts under testdata anew")

// scenario is a mix of operations in which a history becomes possible that only the rule prevents.
type scenario struct {
	name string
	off  func(*Rules)
	mix  Config
	// large mixes are searched, as far as that goes, only when CAPROCK_MODEL_WALKS is set.
	large bool
}

func after(id uint8) uint8   { return id + 1 }
func strongOp(i uint8) uint8 { return writesMax + i }

// designed are the seven scenarios of the design, each of which broke a simpler version of the protocol.
func designed() []scenario {
	return []scenario{
		{name: "equal-clocks", off: func(r *Rules) { r.NodeBreaksTies = false }, mix: Config{
			Writes: []Op{{At: 1}, {At: 2, After: after(0)}},
			Strong: []Op{{Kind: Get, After: after(1)}},
		}},
		{name: "second-entry-too-late", off: func(r *Rules) { r.PutIsOneEntry = false }, mix: Config{
			Writes: []Op{{At: 1, Lost: 4}},
			Strong: []Op{{Kind: Put, After: after(0)}, {Kind: Get, After: after(0)}, {Kind: Get, After: after(strongOp(0))}},
		}},
		{name: "retry-answered-from-dedup-row", off: func(r *Rules) { r.AppendedIsFenced = false }, mix: Config{
			Elections: 1,
			Writes:    []Op{{At: 0, After: after(strongOp(0))}},
			Strong:    []Op{{Kind: Put}, {Kind: Get, At: 1, After: after(0)}},
		}},
		{name: "peek-answered-before-a-write", off: func(r *Rules) { r.PeekPromises = false }, mix: Config{
			Clocks: [replicas]uint8{5, 0, 0},
			Writes: []Op{{At: 1, After: after(strongOp(0)), Lost: 1}},
			Strong: []Op{
				{Kind: Put},
				{Kind: CompareAndSet, After: after(strongOp(0)), Expects: after(strongOp(0))},
				{Kind: Get, After: after(strongOp(1))},
			},
		}},
		{name: "restamped-and-applied-twice", off: func(r *Rules) { r.RestampKeepsID = false }, mix: Config{
			Writes: []Op{{At: 1, Lost: 4}},
			Strong: []Op{{Kind: Get}, {Kind: Put, After: after(strongOp(0))}, {Kind: Get, After: after(strongOp(1))}},
		}},
		{name: "settled-a-refused-stamp", off: func(r *Rules) { r.PeekAgain = false }, mix: Config{
			Clocks: [replicas]uint8{0, 0, 5},
			Writes: []Op{{At: 2, Lost: 2}, {At: 1, After: after(0), Lost: 4}},
			Strong: []Op{{Kind: Get}, {Kind: Get, After: after(strongOp(0))}},
		}},
		{name: "context-covered-a-later-restamp", off: func(r *Rules) { r.ContextCoversDots = false }, mix: Config{
			Clocks: [replicas]uint8{0, 0, 5},
			Writes: []Op{{At: 0}, {At: 2, Lost: 3}},
			Strong: []Op{{Kind: Get, After: after(0)}, {Kind: Get, After: after(strongOp(0))}},
		}},
	}
}

// found are the scenarios that broke the design itself when this model was built (ADR 0009).
func found() []scenario {
	return []scenario{
		{name: "base-of-a-lost-entry", off: func(r *Rules) { r.BaseTermIsCommitted = false }, mix: Config{
			Elections: 2,
			Writes:    []Op{{At: 1, Lost: 1}},
			Strong:    []Op{{Kind: Put, After: after(0)}, {Kind: Get, After: after(strongOp(0))}},
		}},
		{name: "repaired-below-a-higher-stamp", off: func(r *Rules) { r.HigherBeforeCovered = false }, mix: Config{
			Clocks: [replicas]uint8{5, 0, 0}, Repairs: 1,
			Writes: []Op{{At: 0}, {At: 1, After: after(0)}},
			Strong: []Op{{Kind: Get, After: after(1)}},
		}},
		{name: "dropped-before-it-was-applied", off: func(r *Rules) { r.DropsCarryRevision = false }, mix: Config{
			Elections: 1, Repairs: 1,
			Writes: []Op{{At: 1, Lost: 4}},
			Strong: []Op{{Kind: Get, After: after(0)}, {Kind: Put, At: 1}},
		}},
	}
}

// others are what the remaining rules are for.
func others() []scenario {
	return []scenario{
		{name: "peek-of-one-replica", off: func(r *Rules) { r.PeekMajority = false }, mix: Config{
			Writes: []Op{{At: 1}}, Strong: []Op{{Kind: Get, After: after(0)}},
		}},
		{name: "unsettled-value-returned", off: func(r *Rules) { r.SettleBeforeAnswer = false }, mix: Config{
			Writes: []Op{{At: 1, Lost: 4}}, Strong: []Op{{Kind: Get}, {Kind: Get, After: after(strongOp(0))}},
		}},
		{name: "settled-whatever-the-revision", off: func(r *Rules) { r.SettleExpectsRevision = false }, mix: Config{
			Writes: []Op{{At: 1, Lost: 4}},
			Strong: []Op{{Kind: Get, After: after(0)}, {Kind: Put, After: after(0)}, {Kind: Get, After: after(strongOp(1))}},
		}},
		{name: "settled-at-its-own-position", off: func(r *Rules) { r.SettleKeepsStamp = false }, mix: Config{
			Writes: []Op{{At: 1, Lost: 4}, {At: 2, After: after(0), Lost: 2}},
			Strong: []Op{{Kind: Get, After: after(0)}, {Kind: Get, After: after(1)}},
		}},
		{name: "settled-the-losers-too", off: func(r *Rules) { r.SettleCoversWinner = false }, mix: Config{
			Clocks: [replicas]uint8{0, 0, 5},
			Writes: []Op{{At: 2, Lost: 2}, {At: 1, After: after(0), Lost: 4}},
			Strong: []Op{{Kind: Get}, {Kind: Get, After: after(1)}},
		}},
		{name: "base-guessed-ahead", off: func(r *Rules) { r.BaseIsAppended = false }, mix: Config{
			Writes: []Op{{At: 1}}, Strong: []Op{{Kind: Put, After: after(0)}, {Kind: Get, After: after(strongOp(0))}},
		}},
		{name: "promise-lost-in-a-crash", large: true, off: func(r *Rules) { r.PromiseSurvives = false }, mix: Config{
			Clocks: [replicas]uint8{5, 0, 0}, Crashes: 1, Victim: 1,
			Writes: []Op{{At: 2, After: after(strongOp(0)), Lost: 1}},
			Strong: []Op{
				{Kind: Put},
				{Kind: CompareAndSet, After: after(strongOp(0)), Expects: after(strongOp(0))},
				{Kind: Get, After: after(strongOp(1))},
			},
		}},
		{name: "covered-before-the-fence", off: func(r *Rules) { r.FenceBeforeCovered = false }, mix: Config{
			Repairs: 1,
			Writes:  []Op{{At: 2, After: after(strongOp(0))}}, Strong: []Op{{Kind: Put}, {Kind: Get, After: after(0)}},
		}},
		{name: "hint-of-what-was-overwritten", off: func(r *Rules) { r.DropRule = false }, mix: Config{
			Hints:  true,
			Writes: []Op{{At: 1}}, Strong: []Op{{Kind: Put, After: after(0)}, {Kind: Get, After: after(strongOp(0))}},
		}},
	}
}

// statesMax bounds each search; all that are expected to end do so long before.
const statesMax = 400_000

// TestEachRuleIsNeeded switches one rule off at a time, finds the shortest history that breaks the promise and compares
// it with the transcript.
func TestEachRuleIsNeeded(t *testing.T) {
	for _, s := range append(append(designed(), found()...), others()...) {
		t.Run(s.name, func(t *testing.T) {
			c := s.mix
			c.Rules = AllRules()
			s.off(&c.Rules)
			out := Search(&c, statesMax)
			require.NotEmpty(t, out.Wrong, "nothing in %d states, exhausted: %v", out.States, out.Exhausted)
			file := filepath.Join("testdata", s.name+".txt")
			text := c.Describe(&out)
			if *rewrite {
				require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), text)
		})
	}
}

// TestNothingBreaksThePromiseInSmallMixes visits every state of the same mixes with all rules in force. With Rising it is also
// shown that a settled value never reverts.
func TestNothingBreaksThePromiseInSmallMixes(t *testing.T) {
	for _, s := range append(append(designed(), found()...), others()...) {
		t.Run(s.name, func(t *testing.T) {
			c := s.mix
			c.Rules, c.Rising = AllRules(), true
			bound := statesMax
			if s.large {
				if os.Getenv("CAPROCK_MODEL_WALKS") == "" {
					t.Skip("takes a minute: set CAPROCK_MODEL_WALKS")
				}
				bound *= 5
			}
			out := Search(&c, bound)
			require.Empty(t, out.Wrong, "%s", c.Describe(&out))
			require.True(t, out.Exhausted || s.large, "stopped after %d states", out.States)
			require.NotZero(t, out.Returned, "no history was ever finished")
			t.Logf("%d states, all operations returned in %d of them", out.States, out.Returned)
		})
	}
}
