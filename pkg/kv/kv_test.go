package kv

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPartitionsAndGroupsTranslateBothWays(t *testing.T) {
	for _, p := range []PartitionID{0, 1, 15, 65535} {
		g := p.Group()
		require.NotEqual(t, MetaGroup, g)
		back, ok := g.Partition()
		require.True(t, ok)
		require.Equal(t, p, back)
	}
	_, ok := MetaGroup.Partition()
	require.False(t, ok)
}

func TestLevelsAreSpelledAsTheContractSpellsThem(t *testing.T) {
	for level, name := range map[Level]string{LevelStrong: "strong", LevelEventual: "eventual", LevelLocal: "local"} {
		got, err := ParseLevel(name)
		require.NoError(t, err)
		require.Equal(t, level, got)
		require.Equal(t, name, level.String())
		require.True(t, level.Valid())
	}
	for _, unknown := range []string{"", "Strong", "quorum", "strong "} {
		got, err := ParseLevel(unknown)
		require.Equal(t, CodeUnknownConsistency, CodeOf(err), unknown)
		require.ErrorContains(t, err, "strong, eventual, local", "the error names what there is")
		require.Equal(t, LevelUnset, got)
	}
	require.False(t, LevelUnset.Valid())
	require.False(t, Level(99).Valid())
	require.Equal(t, "", LevelUnset.String())
	require.Equal(t, "invalid", Level(99).String())
}

func TestOutcomesAndOperationsHaveNames(t *testing.T) {
	require.Equal(t, "not_applied", Outcome(0).String(), "an error made before anything was sent is honest by default")
	require.Equal(t, "applied", OutcomeApplied.String())
	require.Equal(t, "unknown", OutcomeUnknown.String())
	require.Equal(t, "invalid", Outcome(9).String())
	require.Equal(t, "get put delete", fmt.Sprint(OpGet, OpPut, OpDelete))
	require.Equal(t, "invalid", Op(0).String())
	require.Equal(t, "invalid", Op(9).String())
	require.False(t, OpGet.IsWrite())
	require.True(t, OpPut.IsWrite() && OpDelete.IsWrite())
}

// resolveTwin is Resolve without cleverness: it looks for the quorum by its definition.
func resolveTwin(q, defaults Quorum, replicas int) (Quorum, bool) {
	pick := func(asked, fallback, limit int) int {
		if asked != 0 {
			return asked
		}
		if fallback > limit {
			return limit
		}
		return fallback
	}
	n := pick(q.N, defaults.N, replicas)
	r, w := pick(q.R, defaults.R, n), pick(q.W, defaults.W, n)
	inRange := func(v, high int) bool {
		for i := 1; i <= high; i++ {
			if i == v {
				return true
			}
		}
		return false
	}
	return Quorum{N: n, R: r, W: w}, inRange(n, replicas) && inRange(r, n) && inRange(w, n)
}

func TestResolvedQuorumsAgreeWithTheDumbTwin(t *testing.T) {
	number := rapid.IntRange(-2, 8)
	rapid.Check(t, func(t *rapid.T) {
		q := Quorum{number.Draw(t, "n"), number.Draw(t, "r"), number.Draw(t, "w")}
		defaults := Quorum{number.Draw(t, "default n"), number.Draw(t, "default r"), number.Draw(t, "default w")}
		replicas := rapid.IntRange(1, 7).Draw(t, "replicas")
		want, ok := resolveTwin(q, defaults, replicas)
		got, err := q.Resolve(defaults, replicas)
		if ok != (err == nil) {
			t.Fatalf("%+v of %d replicas by %+v: %v", q, replicas, defaults, err)
		}
		if err != nil {
			if CodeOf(err) != CodeBadQuorum || got != (Quorum{}) {
				t.Fatalf("%v, %+v", err, got)
			}
			return
		}
		if got != want || got.N > replicas || got.R > got.N || got.W > got.N || got.R < 1 || got.W < 1 {
			t.Fatalf("%+v, want %+v", got, want)
		}
	})
}

func TestAnyTwoMajoritiesOverlap(t *testing.T) {
	for n := 1; n < 20; n++ {
		require.Greater(t, 2*Majority(n), n)
		require.LessOrEqual(t, 2*(Majority(n)-1), n, "one fewer need not overlap")
	}
}

func TestValidateRefusesWhatItsLevelCannotHonour(t *testing.T) {
	limits := Limits{KeyBytesMax: 4, ValueBytesMax: 8}
	key := []byte("k")
	version := Condition{Kind: ConditionVersion, Version: 1}
	for _, c := range []struct {
		name string
		r    Request
		want Code
	}{
		{"strong get", Request{Op: OpGet, Level: LevelStrong, Key: key}, ""},
		{"strong put", Request{Op: OpPut, Level: LevelStrong, Key: key, Value: []byte("12345678")}, ""},
		{"conditional put", Request{Op: OpPut, Level: LevelStrong, Key: key, Condition: version}, ""},
		{"conditional delete", Request{Op: OpDelete, Level: LevelStrong, Key: key, Condition: Condition{Kind: ConditionExists}}, ""},
		{"eventual get with r", Request{Op: OpGet, Level: LevelEventual, Key: key, Quorum: Quorum{N: 3, R: 2}}, ""},
		{"eventual put with w", Request{Op: OpPut, Level: LevelEventual, Key: key, Quorum: Quorum{N: 3, W: 2}}, ""},
		{"eventual put with a context", Request{Op: OpPut, Level: LevelEventual, Key: key, Context: key}, ""},
		{"local get", Request{Op: OpGet, Level: LevelLocal, Key: key}, ""},
		{"get that resolves siblings", Request{Op: OpGet, Level: LevelEventual, Key: key, Siblings: SiblingsResolve}, ""},

		{"bounded get", Request{Op: OpGet, Level: LevelBounded, Key: key, MaxStaleness: time.Second}, ""},
		{"bounded get that leaves the bound to us", Request{Op: OpGet, Level: LevelBounded, Key: key}, ""},
		{"bounded listing", Request{Op: OpList, Level: LevelBounded, MaxStaleness: time.Second, List: &ListQuery{Limit: 1}}, ""},
		{"bounded get that may fall back", Request{Op: OpGet, Level: LevelBounded, Key: key, Fallback: LevelLocal}, ""},

		{"bounded put", Request{Op: OpPut, Level: LevelBounded, Key: key}, CodeBadRequest},
		{"bounded delete", Request{Op: OpDelete, Level: LevelBounded, Key: key}, CodeBadRequest},
		{"bounded batch", Request{Op: OpBatch, Level: LevelBounded, Key: key}, CodeBadRequest},
		{"a bound too small", Request{Op: OpGet, Level: LevelBounded, Key: key, MaxStaleness: time.Microsecond}, CodeBadRequest},
		{"a bound too large", Request{Op: OpGet, Level: LevelBounded, Key: key, MaxStaleness: 2 * time.Hour}, CodeBadRequest},
		{"a negative bound", Request{Op: OpGet, Level: LevelBounded, Key: key, MaxStaleness: -time.Second}, CodeBadRequest},
		{"a bound at another level", Request{Op: OpGet, Level: LevelEventual, Key: key, MaxStaleness: time.Second}, CodeBadRequest},
		{"r at bounded", Request{Op: OpGet, Level: LevelBounded, Key: key, Quorum: Quorum{R: 1}}, CodeBadRequest},
		{"a session at bounded", Request{Op: OpGet, Level: LevelBounded, Key: key, Session: key}, CodeBadRequest},
		{"falling back to bounded", Request{Op: OpGet, Level: LevelStrong, Key: key, Fallback: LevelBounded}, CodeBadRequest},
		{"no operation", Request{Level: LevelStrong, Key: key}, CodeBadRequest},
		{"an unknown operation", Request{Op: 9, Level: LevelStrong, Key: key}, CodeBadRequest},
		{"no key", Request{Op: OpGet, Level: LevelStrong}, CodeBadRequest},
		{"a long key", Request{Op: OpGet, Level: LevelStrong, Key: []byte("12345")}, CodeKeyTooLarge},
		{"a large value", Request{Op: OpPut, Level: LevelStrong, Key: key, Value: []byte("123456789")}, CodeValueTooLarge},
		{"no level", Request{Op: OpGet, Key: key}, CodeUnknownConsistency},
		{"an unknown level", Request{Op: OpGet, Level: 9, Key: key}, CodeUnknownConsistency},
		{"a condition on a read", Request{Op: OpGet, Level: LevelStrong, Key: key, Condition: version}, CodeBadRequest},
		{"a condition at eventual", Request{Op: OpPut, Level: LevelEventual, Key: key, Condition: version}, CodeConditionNeedsStrong},
		{"a condition at local", Request{Op: OpPut, Level: LevelLocal, Key: key, Condition: version}, CodeConditionNeedsStrong},
		{"w at strong", Request{Op: OpPut, Level: LevelStrong, Key: key, Quorum: Quorum{W: 2}}, CodeBadRequest},
		{"r at strong", Request{Op: OpGet, Level: LevelStrong, Key: key, Quorum: Quorum{R: 2}}, CodeBadRequest},
		{"a context at strong", Request{Op: OpPut, Level: LevelStrong, Key: key, Context: key}, CodeBadRequest},
		{"a context on a read", Request{Op: OpGet, Level: LevelEventual, Key: key, Context: key}, CodeBadRequest},
		{"w on a read", Request{Op: OpGet, Level: LevelEventual, Key: key, Quorum: Quorum{W: 1}}, CodeBadRequest},
		{"r on a write", Request{Op: OpPut, Level: LevelEventual, Key: key, Quorum: Quorum{R: 1}}, ""},
		{"siblings on a write", Request{Op: OpPut, Level: LevelEventual, Key: key, Siblings: SiblingsAll}, CodeBadRequest},
		{"siblings on a strong write", Request{Op: OpPut, Level: LevelStrong, Key: key, Siblings: SiblingsAll}, CodeBadRequest},
		{"n at local", Request{Op: OpGet, Level: LevelLocal, Key: key, Quorum: Quorum{N: 3}}, CodeBadRequest},
	} {
		err := c.r.Validate(limits)
		require.Equal(t, c.want, CodeOf(err), "%s: %v", c.name, err)
		if err != nil {
			require.Equal(t, OutcomeNotApplied, AsError(err).Outcome, c.name)
		}
	}
}

func TestDefaultLimitsAreTheDocumentedOnes(t *testing.T) {
	require.Equal(t, Limits{KeyBytesMax: 4096, ValueBytesMax: 1048576}, DefaultLimits())
}

func TestErrorsKeepTheirCause(t *testing.T) {
	cause := errors.New("disk on fire")
	err := error(Errorf(CodeNotReady, "cannot serve: %w", cause))
	require.ErrorIs(t, err, cause)
	require.Equal(t, "NOT_READY: cannot serve: disk on fire", err.Error())
	wrapped := fmt.Errorf("while starting: %w", err)
	require.Equal(t, CodeNotReady, CodeOf(wrapped))
	require.True(t, AsError(wrapped).Retryable)
}

func TestErrorsKeepEachOfSeveralCauses(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	err := error(Errorf(CodeNotReady, "%w: %w", first, fmt.Errorf("around: %w", second)))
	require.ErrorIs(t, err, first)
	require.ErrorIs(t, err, second)
	require.EqualError(t, err, "NOT_READY: first: around: second")
	require.Nil(t, errors.Unwrap(Errorf(CodeNotReady, "no cause: %d", 1)))
}

func TestRetryableFollowsFromTheCode(t *testing.T) {
	for code, want := range map[Code]bool{
		CodeOverloaded: true, CodeNoLeader: true, CodeQuorumUnavailable: true, CodeNotReady: true, CodeDeadlineExceeded: true,
		CodeBadRequest: false, CodeVersionMismatch: false, CodeKeyNotFound: false, CodeInternal: false, CodeLevelFenced: false,
	} {
		require.Equal(t, want, Errorf(code, "x").Retryable, code)
	}
}

func TestUnclassifiedErrorsProveNothing(t *testing.T) {
	require.Nil(t, AsError(nil))
	require.Equal(t, Code(""), CodeOf(nil))
	boom := errors.New("boom")
	e := AsError(boom)
	require.Equal(t, CodeInternal, e.Code)
	require.Equal(t, OutcomeUnknown, e.Outcome)
	require.ErrorIs(t, e, boom)
}

func TestWithOutcomeLeavesTheOriginalAlone(t *testing.T) {
	e := Errorf(CodeDeadlineExceeded, "late")
	require.Equal(t, OutcomeUnknown, e.WithOutcome(OutcomeUnknown).Outcome)
	require.Equal(t, OutcomeNotApplied, e.Outcome)
}
