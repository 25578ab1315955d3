package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/mutant"
)

// runTimeout bounds one test on one seed. A simulation that hangs has caught nothing; the next seed may.
const runTimeout = 2 * time.Minute

// hangs is the symptom of a test that did not end in time.
const hangs = "hangs"

// simulation is the package of the hunters that name none, whose tests take a seed.
const simulation = "pkg/sim"

// hunters are the tests that look for a bug, the likeliest first: those of the simulation, and, for rules that a simulated fault
// seldom meets, scripted ones of the package that has the rule.
var hunters = map[mutant.Name][]string{
	mutant.NoSync:                  {"TestPowerCutsRightAfterAnAcknowledgementLoseNothing"},
	mutant.SendBeforePersist:       {"TestPowerCutsRightAfterAnAcknowledgementLoseNothing"},
	mutant.VoteNotPersisted:        {"TestPowerCutOfTheWholeClusterLosesNothingAcknowledged"},
	mutant.LeaderCountsItself:      {"TestPowerCutsRightAfterAnAcknowledgementLoseNothing"},
	mutant.LocalReadAsStrong:       {"TestStrongRegistersAreLinearizableUnderFaults"},
	mutant.ReadBeforeApply:         {"TestStrongRegistersAreLinearizableUnderFaults"},
	mutant.ReadWithoutQuorum:       {"TestStrongRegistersAreLinearizableUnderFaults"},
	mutant.RepeatedRequestServed:   {"TestStrongRegistersAreLinearizableUnderFaults", "TestConditionalWritesAreLinearizableUnderFaults"},
	mutant.QuorumCountedEarly:      {"TestPowerCutsRightAfterAnAcknowledgementLoseNothing", "TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.OwnCopyIgnored:          {"TestPowerCutsRightAfterAnAcknowledgementLoseNothing", "TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.FailureCountedAsAck:     {"TestAcknowledgedElementsAreThereAtBothLevelsAfterFaults", "TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.DotRepeated:             {"TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.ContextIgnored:          {"TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.MergeOverwrites:         {"TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.BlindWriteCovers:        {"TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.TombstoneDropped:        {"TestSiblingsAreTheCausalMaximaAfterFaults"},
	mutant.LateStampAccepted:       {"TestAcknowledgedElementsAreThereAtBothLevelsAfterFaults"},
	mutant.WipedDiskVotes:          {"TestWipedDiskDoesNotComeBackUnderItsOldName"},
	mutant.ApplyReadsClock:         {"TestStrongRegistersAreLinearizableUnderFaults"},
	mutant.SnapshotNotAtomic:       {"TestPowerCutsAroundTruncationsAndInstallsLoseNothing"},
	mutant.TruncatedTooEarly:       {"TestPowerCutsAroundTruncationsAndInstallsLoseNothing"},
	mutant.NoDedup:                 {"TestRepeatedIncrementsAreCountedExactlyOnceUnderFaults"},
	mutant.SnapshotWithoutDedup:    {"TestRepeatedIncrementsAreCountedExactlyOnceAcrossSnapshots"},
	mutant.BatchInPart:             {"TestAtomicBatchesAreSeenWholeOrNotAtAllUnderFaults"},
	mutant.ExpiryUnchecked:         {"TestValuesExpireInTimeUnderFaults"},
	mutant.FollowerReadsAlone:      {"TestStrongRegistersAreLinearizableUnderFaults", "TestConditionalWritesAreLinearizableUnderFaults"},
	mutant.StateHashedLate:         {"TestStrongRegistersAreLinearizableUnderFaults"},
	mutant.QuarantineForgotten:     {"TestAlteredStateIsFoundQuarantinedAndRebuiltUnderLoad"},
	mutant.TombstoneCollectedEarly: {"TestNodeAwayForThirtyDaysResurrectsNothing"},
	mutant.TreeNotMarked:           {"TestReplicaThatMissedWritesIsMadeEqualByExchange"},
	mutant.LateDotAccepted:         {"TestVersionFromBeforeTheWatermarkSpreadsNowhere"},
	mutant.CounterAdds:             {"TestCountersOfAllNodesAddUp"},
	mutant.ExpiredReturned:         {"TestPoliciesTimeToLiveEndsOnEveryNode"},
	mutant.HintDroppedEarly:        {"TestNodeThatWasAwayGetsEverythingByHints"},
	mutant.HintCountedAsAck:        {"TestHintsForUnreachableReplicasAcknowledgeNothing"},
	mutant.HintBypassesDropRule:    {"TestHintsOfWhatAStrongWriteReplacedAreDroppedAtTheirTarget"},
	mutant.HealingCounted:          {"TestReplicaThatLostItsRowsAnswersForNothingUntilItHasHealed"},
	mutant.HintHolderForgotten:     {"TestWatermarkWaitsForWhoeverMayKeepHintsAndForNobodyElse"},
	mutant.FirstAnswerWins:         {"TestReadsWhoseQuorumOverlapsTheWritesSeeThem"},
	mutant.ListSkipsPageEdge:       {"TestListingsShowWhatBothLanesAcknowledged"},
	mutant.HintDroppedSilently:     {"TestReplicasConvergeAlthoughHintsWereDropped"},
	mutant.RepairWritesNothing:     {"TestReadRepairAloneBringsWhatAReplicaMissed"},
	mutant.ExchangeSkipsTombstones: {"TestNodeAwayForThirtyDaysResurrectsNothing"},
	mutant.SessionUnchecked:        {"TestSessionsReadWhatTheyWroteAndSaw"},
	mutant.SessionReadForgotten:    {"quorum:TestSessionNeverReadsLessThanItHasRead"},
	mutant.SessionWriteForgotten:   {"quorum:TestSessionReadsWhatItWroteFromReplicasThatLackIt"},
	mutant.SessionLaneIgnored:      {"quorum:TestSessionWaitsForTheLogThatItHasSeen"},
	mutant.SessionWriteBelow:       {"quorum:TestSessionsWritesFollowWhatItWroteAndRead"},
	mutant.RepairAfterAnswer:       {"TestBlockingReadRepairMakesReadsMonotonic"},
	mutant.NoFence:                 {"consensus:TestAppendedWritesFenceTheirKeysUntilTheyAreReplaced"},
	mutant.PeekOfOne:               {"TestStrongReadsSeeEventualWritesAcknowledgedBefore", mixed},
	mutant.PeekOnce:                {"TestSettledIsOnlyWhatWasKnownBeforeTheLastRound", mixed},
	mutant.SettleWithoutRevision:   {"consensus:TestSettleDoesNothingOnceTheStateHasChanged"},
	mutant.SettleAtOwnPosition:     {"consensus:TestSettleKeepsTheWinnersStampAndExpiryAndCoversItAlone"},
	mutant.SettleCoversLosers:      {"TestSettleTakesInTheWinnerAlone", mixed},
	mutant.RestampNewID:            {"quorum:TestRefusedWriteIsStampedAnewWithItsWriteID"},
	mutant.CoveredBeforeFence:      {"quorum:TestAttemptThatIsHeldAlreadyIsRefusedBelowTheFence"},
	mutant.BaseGuessed:             {"consensus:TestAppendedWritesFenceTheirKeysUntilTheyAreReplaced"},
	mutant.PromiseForgotten:        {"quorum:TestPromiseOfAPeekOutlivesAPowerCut"},
	mutant.UnsettledForgotten:      {"quorum:TestReplicaDoesNotKnowWhatIsUnsettledAfterARestartUntilItHasLooked"},
	mutant.UnsettledReturned:       {"TestWhatAStrongReadAnsweredStaysWhenItsHolderIsGone", mixed},
	mutant.ProofDatedLate:          {"pkg/node:TestProofIsDatedFromBeforeItWasAskedFor"},
	mutant.ProofUnclean:            {"TestBoundedReadsSeeEventualWritesAcknowledgedBeforeTheBound", mixed},
	mutant.ProofNeverOld:           {"TestReplicaThatIsCutOffAnswersBoundedReadsUntilItsProofIsTooOld"},
	mutant.ProofCheckedBefore:      {"pkg/node:TestReadThatWasHeldUpIsReadAgain"},
	mutant.ProofOutlivesReplica:    {"pkg/node:TestProofOfAReplicaThatWasRebuiltIsNone"},
	mutant.PeekSkippedEarly:        {"TestStrongReadsFindWhatIsLeftWhileAPrefixDrains", switched},
	mutant.SweepBeforeAcks:         {"TestWritesOfNodesThatDidNotLearnOfADrainingAreNotLost", switched},
	mutant.OpenedAtOnce:            {"TestNothingIsWrittenEventuallyBeforeEveryNodeLooksForItAgain", switched},
	mutant.LateEpochAccepted:       {"quorum:TestLateWriteOfAnOlderPolicyGetsNoAcknowledgement"},
	mutant.TombstoneAboveLive:      {"quorum:TestOnlyWhatNobodyNeedsIsCollected"},
	mutant.SentBeforeKept:          {"quorum:TestPowerCutOfACoordinatorTakesNoAcknowledgedSiblingAlong"},
	mutant.HiddenBelowStrong:       {"quorum:TestConcurrentVersionsBelowAStrongWriteStayBesideIt", "TestNothingAcknowledgedInEitherLaneVanishesWhereVersionsAreKept"},
	mutant.CounterBaseForgotten:    {"quorum:TestCounterIsTheLastStrongValueAndWhatThatHasNotReplaced"},
	mutant.CoveredForgottenEarly:   {"consensus:TestCoveredIDsAreForgottenBelowTheWatermarkOnly"},
}

// mixed has operations of both lanes on the same keys.
const mixed = "TestStrongOperationsAreLinearizableWithEventualWritesOfTheSameKeys"

// switched has them while the lanes of the keys are switched.
const switched = "TestStrongAndEventualOperationsAreLinearizableWhileLanesAreSwitched"

// place returns the package and the name of a hunter.
func place(hunter string) (pkg, test string) {
	if pkg, test, found := strings.Cut(hunter, ":"); found {
		return pkg, test
	}
	return simulation, hunter
}

// programOf returns the path of a package's tests in a directory of them.
func programOf(dir, pkg string) string { return filepath.Join(dir, path.Base(pkg)+".test") }

// result is how a hunt ended.
type result struct {
	caught bool
	// seed and test say where it was caught; symptom is the first thing that was seen of it, or why the hunt failed.
	seed    int
	test    string
	symptom string
}

func (r result) line(name mutant.Name, took time.Duration) string {
	if r.caught {
		return fmt.Sprintf("caught    %-24s seed %-3d %s: %s (%s)", name, r.seed, r.test, r.symptom, took.Round(time.Second))
	}
	return fmt.Sprintf("SURVIVED  %-24s %s (%s)", name, r.symptom, took.Round(time.Second))
}

// build builds the tests of the hunters' packages into the directory, with the bug that the build tag plants; "" plants none.
func build(ctx context.Context, dir, tag string, hunters []string) error {
	var pkgs []string
	for _, h := range hunters {
		pkg, _ := place(h)
		pkgs = append(pkgs, pkg)
	}
	slices.Sort(pkgs)
	for _, pkg := range slices.Compact(pkgs) {
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", tag, "-o", programOf(dir, pkg), "./"+pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s does not build: %w: %s", pkg, err, out)
		}
	}
	return nil
}

// hunt builds the tests with the bug and runs them on one seed after another. clean has them without any.
func hunt(ctx context.Context, dir, clean string, name mutant.Name, seeds int) result {
	bad := filepath.Join(dir, string(name))
	defer os.RemoveAll(bad)
	if err := os.Mkdir(bad, 0o700); err != nil {
		return result{symptom: err.Error()}
	}
	if err := build(ctx, bad, "mutant_"+string(name), hunters[name]); err != nil {
		return result{symptom: err.Error()}
	}
	return chase(ctx, bad, clean, hunters[name], seeds)
}

// chase runs the tests until one fails with the bug and passes without it: a test that fails either way has caught nothing.
// Scripted tests outside the simulation have their one chance.
func chase(ctx context.Context, bad, clean string, tests []string, seeds int) result {
	for seed := 1; seed <= seeds; seed++ {
		for _, hunter := range tests {
			pkg, test := place(hunter)
			if pkg != simulation && seed > 1 {
				continue
			}
			caught, symptom := try(ctx, bad, pkg, test, seed)
			if !caught && (symptom == "" || symptom == hangs) {
				continue
			}
			got := result{caught: caught, seed: seed, test: test, symptom: symptom}
			if !caught {
				return got
			}
			fails, why := try(ctx, clean, pkg, test, seed)
			if fails || why != "" {
				got.caught = false
				got.symptom = fmt.Sprintf("%s on seed %d fails without the bug too: %s", test, seed, why)
			}
			return got
		}
	}
	return result{symptom: fmt.Sprintf("%d seeds", seeds)}
}

// try runs one test on one seed. Without a catch a symptom says why the hunt cannot go on.
func try(ctx context.Context, dir, pkg, test string, seed int) (caught bool, symptom string) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	args := []string{"-test.run", "^" + test + "$", "-test.v"}
	if pkg == simulation {
		args = append(args, fmt.Sprintf("-seed=%d", seed))
	}
	cmd := exec.CommandContext(ctx, programOf(dir, pkg), args...)
	cmd.Dir = filepath.FromSlash(pkg)
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return false, hangs
	case err == nil && !bytes.Contains(out, []byte("--- PASS: "+test+" ")):
		return false, test + " is no test of " + pkg
	case err == nil:
		return false, ""
	}
	if _, ran := errors.AsType[*exec.ExitError](err); !ran {
		return false, fmt.Sprintf("%s cannot be run: %v", test, err)
	}
	return true, firstSymptom(out)
}

// Lines of a failed test that say what was wrong: the text of an anomaly, of an assertion, or of a panic.
var symptoms = []*regexp.Regexp{
	regexp.MustCompile(`at [0-9hms.]+s: (.+?)(?: at [0-9hms.]+s: |\]?$)`),
	regexp.MustCompile(`(?m)^panic: (.+)$`),
	regexp.MustCompile(`(?m)^\s+\w+_test\.go:\d+: (\S.+)$`),
	regexp.MustCompile(`(?m)^\s+(?:Error|Messages):\s+(\S.+)$`),
}

const symptomBytesMax = 140

func firstSymptom(out []byte) string {
	for _, re := range symptoms {
		for _, m := range re.FindAllSubmatch(out, -1) {
			s := strings.TrimSpace(string(m[1]))
			if strings.HasPrefix(s, "replay: ") {
				continue // which says how, and not what
			}
			if len(s) > symptomBytesMax {
				s = s[:symptomBytesMax] + "…"
			}
			return s
		}
	}
	return "it failed"
}
