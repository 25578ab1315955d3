package meta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func withPolicy(t *testing.T, s *State, prefix, lanes string) *State {
	t.Helper()
	next, r := mustApply(t, s, command{PutPolicy: &kv.Policy{Prefix: []byte(prefix), Lanes: lanes}})
	require.Empty(t, r.Code)
	return next
}

func withoutPolicy(t *testing.T, s *State, prefix string) *State {
	t.Helper()
	p := []byte(prefix)
	next, _ := mustApply(t, s, command{DeletePolicy: &p})
	return next
}

// advanced ends the passing of the fence that the key stands by.
func advanced(t *testing.T, s *State, key string) *State {
	t.Helper()
	f := s.FenceOf([]byte(key))
	next, _ := mustApply(t, s, command{Advance: &advance{Prefix: f.Prefix, Epoch: f.Epoch, Floor: 5}})
	require.NotSame(t, s, next, "the fence of %s has nothing to end", key)
	return next
}

func modeOf(s *State, key string) FenceMode { return s.FenceOf([]byte(key)).Mode }

func TestPrefixPassesThroughDrainingAndOpening(t *testing.T) {
	s := withPolicy(t, formed(t), "p:", kv.LanesStrongOnly)
	require.Equal(t, FenceDraining, modeOf(s, "p:a"))
	require.Equal(t, FenceOpen, modeOf(s, "q"))
	require.Len(t, s.SwitchOf([]byte("p:")), 1)
	s = advanced(t, s, "p:a")
	require.Equal(t, FenceClosed, modeOf(s, "p:a"))
	require.Empty(t, s.SwitchOf([]byte("p:")))
	require.Zero(t, s.Floor)
	s = withPolicy(t, s, "p:", kv.LanesEventualOnly)
	require.Equal(t, FenceOpening, modeOf(s, "p:a"))
	s = advanced(t, s, "p:a")
	require.Equal(t, FenceOpen, modeOf(s, "p:a"))
	require.EqualValues(t, 5, s.Floor)
	require.Empty(t, s.Fences)
	require.Equal(t, FenceOpen, modeOf(withPolicy(t, s, "p:", kv.LanesMixed), "p:a"), "no eventual write has to wait between these")
}

func TestStepIsTakenBackAtOnceAndItsEndCountsForNothing(t *testing.T) {
	s := withPolicy(t, formed(t), "p:", kv.LanesStrongOnly)
	late := s.FenceOf([]byte("p:"))
	s = withPolicy(t, s, "p:", kv.LanesMixed)
	require.Equal(t, FenceOpen, modeOf(s, "p:a"))
	s = withPolicy(t, s, "p:", kv.LanesStrongOnly)
	same, _ := mustApply(t, s, command{Advance: &advance{Prefix: late.Prefix, Epoch: late.Epoch}})
	require.Same(t, s, same, "the end of a draining that was taken back ends the next one")
	s = withoutPolicy(t, advanced(t, s, "p:"), "p:")
	require.Equal(t, FenceOpening, modeOf(s, "p:a"), "a policy that is gone opens too")
	require.Len(t, s.Passing(), 1)
	closed := s.FenceOf([]byte("p:")).Epoch
	s = withPolicy(t, s, "p:", kv.LanesStrongOnly)
	require.Equal(t, FenceClosed, modeOf(s, "p:a"))
	require.Greater(t, s.FenceOf([]byte("p:")).Epoch, closed, "whoever relied on it before must see that it is another one")
}

func TestSamePolicySetAgainDisturbsNothing(t *testing.T) {
	s := advanced(t, withPolicy(t, formed(t), "p:", kv.LanesStrongOnly), "p:")
	before := s.FenceOf([]byte("p:"))
	require.Equal(t, before, withPolicy(t, s, "p:", kv.LanesStrongOnly).FenceOf([]byte("p:")))
	require.True(t, s.Agrees())
}

func TestStateOfAnOlderVersionIsBroughtToItsPolicies(t *testing.T) {
	s := withPolicy(t, formed(t), "p:", kv.LanesStrongOnly)
	s.Fences = nil
	require.False(t, s.Agrees())
	s, _ = mustApply(t, s, command{Refence: &struct{}{}})
	require.Equal(t, FenceDraining, modeOf(s, "p:a"))
}

func TestRangeIsClosedOnlyIfAllOfItIs(t *testing.T) {
	s := advanced(t, withPolicy(t, formed(t), "p:", kv.LanesStrongOnly), "p:")
	_, closed := s.ClosedRange([]byte("p:i"))
	require.True(t, closed)
	s = withPolicy(t, s, "p:in:", kv.LanesMixed)
	_, closed = s.ClosedRange([]byte("p:i"))
	require.False(t, closed)
	_, closed = s.ClosedRange([]byte("p:x"))
	require.True(t, closed)
	_, closed = s.ClosedRange(nil)
	require.False(t, closed)
}

// The twin keeps the mode of every key by itself.
func TestFencesMoveEveryKeyByItsLongestPolicyAlone(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	prefixes := []string{"a", "ab", "abc", "b", "bc", "abd"}
	keys := []string{"a", "aa", "ab", "abb", "abc", "abcd", "abd", "b", "bc", "bd", "c"}
	for run := range 300 {
		s := formed(t)
		twin := map[string]FenceMode{}
		for _, k := range keys {
			twin[k] = FenceOpen
		}
		for step := range 30 {
			what := ""
			passing := s.Passing()
			switch p := prefixes[r.IntN(len(prefixes))]; {
			case r.IntN(3) == 0 && len(passing) > 0:
				f := passing[r.IntN(len(passing))]
				for _, k := range keys {
					if g := s.FenceOf([]byte(k)); bytes.Equal(g.Prefix, f.Prefix) && g.Epoch == f.Epoch {
						twin[k] = map[FenceMode]FenceMode{FenceDraining: FenceClosed, FenceOpening: FenceOpen}[twin[k]]
					}
				}
				s = advanced(t, s, string(f.Prefix))
				what = "advance " + string(f.Prefix)
			case r.IntN(4) == 0:
				s = withoutPolicy(t, s, p)
				what = "delete " + p
			default:
				lanes := kv.AllLanes()[r.IntN(3)]
				s = withPolicy(t, s, p, lanes)
				what = p + " " + lanes
			}
			for _, k := range keys {
				twin[k] = twin[k].toward(s.strongOnly([]byte(k)))
				require.Equal(t, twin[k], modeOf(s, k), "run %d, step %d, %s: key %s, fences %v", run, step, what, k, s.Fences)
			}
			require.True(t, s.Agrees())
			require.True(t, slices.IsSortedFunc(s.Fences, func(a, b Fence) int { return bytes.Compare(a.Prefix, b.Prefix) }))
			require.LessOrEqual(t, len(s.Fences), len(prefixes), fmt.Sprint(s.Fences))
		}
	}
}
