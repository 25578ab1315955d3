package antientropy

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// A replica may end its healing only once no write can have been acknowledged by a majority, this replica among them, of which
// everybody it met has lost its copy.
func TestHealingMeetsEveryWriteThatAMajorityAcknowledged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owners := rapid.IntRange(1, 7).Draw(t, "owners")
		h := newHealing(0, false)
		var met []kv.NodeID
		for n := 2; n <= owners; n++ { // this one is 1
			if rapid.Bool().Draw(t, "met") {
				h.met(kv.NodeID(n), rapid.Bool().Draw(t, "sound"), true)
				met = append(met, kv.NodeID(n))
			}
		}
		done := h.next(owners) != healingGoesOn
		// The dumb twin: is there a majority with this replica in it of which no sound one was met? Those that were not met may
		// be sound, so that it matters unless all were met.
		escapes := false
		for set := range 1 << owners {
			members, seen := 0, false
			for n := 1; n <= owners; n++ {
				if set&(1<<(n-1)) != 0 {
					members++
					seen = seen || h.sound[kv.NodeID(n)]
				}
			}
			escapes = escapes || set&1 != 0 && members >= kv.Majority(owners) && !seen
		}
		require.Equal(t, !escapes || len(met) == owners-1, done, "%d owners, met %v, sound %v", owners, met, h.sound)
	})
}

func TestWhoeverLostRowsItselfCountsOnlyWhenAllWereMet(t *testing.T) {
	h := newHealing(0, false)
	h.met(2, false, true)
	h.met(3, false, true)
	require.Equal(t, healingGoesOn, h.next(5))
	h.met(4, true, false)
	h.met(5, true, false)
	require.Equal(t, healingGoesOn, h.next(5), "none of the sound ones is as far")
	h.met(5, true, true)
	require.Equal(t, healingDone, h.next(5))

	h = newHealing(0, false)
	for n := range kv.NodeID(4) {
		h.met(n+2, false, true)
	}
	require.Equal(t, healingTakesAll, h.next(5))
	h.union = true
	require.Equal(t, healingDone, h.next(5))
	h = newHealing(0, false)
	require.Equal(t, healingDone, h.next(1), "there is nobody to ask")
}

// healsBy runs a round of comparisons with the given replicas and reports whether the first one's healing has ended.
func healsBy(t *testing.T, g []*replica, with ...kv.NodeID) bool {
	t.Helper()
	for _, to := range with {
		exchangeWith(t, g[0], 0, to)
	}
	g[0].service.healed(g[0].service.deps.Owned()[0])
	return !g[0].engine.Healing(0)
}

func TestComparisonFromBeforeALossDoesNotCount(t *testing.T) {
	g := group(t, 3, testConfig())
	require.NoError(t, g[1].put(0, []byte("k"), sibling(1, "v")))
	exchangeWith(t, g[0], 0, 2)
	exchangeWith(t, g[0], 0, 3)
	require.NoError(t, g[0].service.Heal(0))
	require.False(t, healsBy(t, g), "what was compared before says nothing")
	require.False(t, healsBy(t, g, 2))
	during := g[0].service.newExchange(g[0].service.deps.Owned()[0], 3)
	require.NoError(t, g[0].engine.BeginHealing(0))
	require.NoError(t, g[0].service.compare(t.Context(), during))
	require.False(t, healsBy(t, g, 2), "more was lost while it was compared with node 3")
	require.True(t, healsBy(t, g, 3))
}

// Replicas that hold the same rows heal as well, with a watermark that the others had not heard of.
func TestReplicaHealsThoughNothingDiffersAndItsWatermarkIsAhead(t *testing.T) {
	g := group(t, 3, testConfig())
	for i, r := range g {
		require.NoError(t, r.put(0, []byte("k"), sibling(1, "v")))
		require.NoError(t, r.engine.ChangeRepair(0, func(s *storage.RepairState) {
			s.Promised = 50
			if i == 0 {
				s.Committed = 50
			}
		}))
	}
	require.NoError(t, g[0].engine.BeginHealing(0))
	require.True(t, healsBy(t, g, 2, 3))
	for _, r := range g {
		require.Equal(t, causal.HLC(50), r.engine.State().Repair(0).Committed)
	}
}

// The hashes of lost rows make replicas look alike until somebody has taken them away.
func TestLookAlikesDoNotEndHealing(t *testing.T) {
	g := group(t, 3, testConfig())
	for _, r := range g {
		require.NoError(t, r.put(0, []byte("k"), sibling(1, "v")))
		_, err := r.engine.Digests(t.Context(), 0)
		require.NoError(t, err)
	}
	require.NoError(t, g[0].engine.LoseSiblings(0, false, false, []byte("k")))
	require.NoError(t, g[0].service.mend(0, func() error {
		require.False(t, healsBy(t, g, 2, 3))
		return g[0].engine.RefoldTree(0)
	}))
	require.False(t, healsBy(t, g))
	require.False(t, healsBy(t, g, 2, 3), "the hash of the lost row was found during the first of these")
	require.True(t, healsBy(t, g, 2))
	require.Len(t, g[0].rows(t, 0), 1)
}
