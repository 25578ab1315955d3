package live

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func planOf(t *testing.T, seed uint64, nodes int, attached bool, names ...string) []Step {
	t.Helper()
	decks, err := choose(names, nodes, attached)
	require.NoError(t, err)
	p := newPlanner(rand.New(rand.NewPCG(seed, 1)), planConfig{nodes: nodes, decks: decks, attached: attached, ahead: skewMax})
	steps := make([]Step, 200)
	for i := range steps {
		steps[i] = p.next()
	}
	return steps
}

func TestTheSameSeedGivesTheSamePlan(t *testing.T) {
	for _, nodes := range []int{1, 2, 3, 4, 5, 9} {
		require.Equal(t, planOf(t, 7, nodes, false, "all"), planOf(t, 7, nodes, false, "all"))
		require.NotEqual(t, planOf(t, 7, nodes, false, "all"), planOf(t, 8, nodes, false, "all"))
	}
}

func TestTheOrderInWhichNemesesAreNamedDoesNotMatter(t *testing.T) {
	require.Equal(t, planOf(t, 7, 3, false, "kill", "partition", "clock"), planOf(t, 7, 3, false, "clock", "partition", "kill", "kill"))
}

func TestEveryFaultGetsItsTurnBeforeOneComesAgain(t *testing.T) {
	steps := planOf(t, 3, 3, false, "partition", "kill", "slow")
	for round := 0; round+3 <= len(steps); round += 3 {
		var kinds []string
		for _, s := range steps[round : round+3] {
			kind := s.Fault
			if len(s.Cuts) > 0 {
				kind = "partition"
			}
			kinds = append(kinds, kind)
		}
		slices.Sort(kinds)
		require.Equal(t, []string{"kill", "partition", "slow"}, kinds)
	}
	var partitions []string
	for _, s := range steps {
		if len(s.Cuts) > 0 && len(partitions) < 5 {
			partitions = append(partitions, s.Fault)
		}
	}
	slices.Sort(partitions)
	require.Equal(t, []string{PartitionBridge, PartitionFlapping, PartitionHalves, PartitionOneWay, PartitionRing}, partitions)
}

func TestAClusterIsWithoutMajorityForAShortTimeOnly(t *testing.T) {
	for _, nodes := range []int{1, 2, 3, 4, 5, 7} {
		without := 0
		for _, s := range planOf(t, 5, nodes, false, "all") {
			require.GreaterOrEqual(t, s.Hold, holdMin)
			require.LessOrEqual(t, s.Hold, holdMax)
			require.GreaterOrEqual(t, s.Calm, calmMin)
			silenced := 0
			if s.Fault == Kill || s.Fault == Pause || s.Fault == Power || s.Fault == DiskError || s.Disk == diskFull {
				silenced = len(s.Nodes)
			}
			if 2*(nodes-silenced) <= nodes || 2*largest(nodes, s.Cuts) <= nodes {
				require.LessOrEqual(t, s.Hold, holdNoMajorityMax, "%+v", s)
				without++
			}
		}
		require.Positive(t, without, "it happens now and then, with %d nodes", nodes)
	}
}

func TestClocksGoAheadOnlyALittleWhereReplicasMustCatchUpWithThem(t *testing.T) {
	p := newPlanner(rand.New(rand.NewPCG(1, 1)), planConfig{nodes: 3, decks: [][]string{{Clock}}, ahead: aheadDefault})
	ahead, behind := time.Duration(0), time.Duration(0)
	for range 500 {
		skew := p.next().Skew
		ahead, behind = max(ahead, skew), min(behind, skew)
	}
	require.LessOrEqual(t, ahead, aheadDefault)
	require.Greater(t, ahead, aheadDefault/2)
	require.Less(t, behind, -9*time.Minute)
}

func TestVictimsAreNodesOfTheCluster(t *testing.T) {
	for _, nodes := range []int{1, 2, 3, 5, 9} {
		for _, s := range planOf(t, 9, nodes, false, "all") {
			require.NotEmpty(t, s.Nodes, "%+v", s)
			require.True(t, slices.IsSorted(s.Nodes))
			require.Len(t, slices.Compact(slices.Clone(s.Nodes)), len(s.Nodes))
			require.True(t, s.Nodes[0] >= 0 && s.Nodes[len(s.Nodes)-1] < nodes)
			switch s.Fault {
			case Clock:
				require.NotZero(t, s.Skew)
				require.LessOrEqual(t, s.Skew.Abs(), 10*time.Minute)
			case Slow:
				require.Positive(t, s.Delay)
			case DiskFull, DiskError:
				require.NotEmpty(t, s.Disk)
			}
		}
	}
}

func TestAnAttachedClusterOnlyGetsFaultsThatNeedNoProcess(t *testing.T) {
	for _, s := range planOf(t, 9, 3, true, "all") {
		require.NotContains(t, []string{Kill, Pause, Power, DiskError}, s.Fault)
		require.NotEqual(t, diskFull, s.Disk, "the node might stop, and nobody could start it again")
	}
}

func TestShapesOfPartitions(t *testing.T) {
	connected := func(cuts []Cut, a, b int) bool {
		return !slices.Contains(cuts, Cut{From: a, To: b}) && !slices.Contains(cuts, Cut{From: b, To: a})
	}
	views := func(nodes int, cuts []Cut) [][]int {
		out := make([][]int, nodes)
		for i := range nodes {
			for j := range nodes {
				if connected(cuts, i, j) {
					out[i] = append(out[i], j)
				}
			}
		}
		return out
	}
	for _, nodes := range []int{2, 3, 4, 5, 6, 7, 9} {
		for _, s := range planOf(t, 21, nodes, false, "partition") {
			require.NotEmpty(t, s.Cuts, "%+v", s)
			seen := views(nodes, s.Cuts)
			distinct := slices.Clone(seen)
			slices.SortFunc(distinct, slices.Compare)
			distinct = slices.CompactFunc(distinct, slices.Equal)
			switch s.Fault {
			case PartitionHalves, PartitionFlapping:
				require.Len(t, distinct, 2, "two groups")
				require.Len(t, slices.Concat(distinct...), nodes, "that share nobody")
			case PartitionRing:
				for _, v := range seen {
					require.True(t, nodes == 2 || 2*len(v) > nodes, "a majority each: %v", seen)
				}
				require.True(t, nodes == 2 || len(distinct) == nodes, "no two the same: %v", seen)
			case PartitionBridge:
				bridges := 0
				for _, v := range seen {
					if len(v) == nodes {
						bridges++
					}
				}
				require.Equal(t, nodes > 2, bridges == 1, "%v", seen)
			case PartitionOneWay:
				require.Len(t, s.Cuts, nodes-1)
				for _, c := range s.Cuts {
					require.NotContains(t, s.Cuts, Cut{From: c.To, To: c.From}, "one direction only")
				}
			}
		}
	}
}

func TestADiskIsWipedOnceThereIsSomethingOnIt(t *testing.T) {
	for seed := range uint64(20) {
		decks := [][]string{{Kill}, {Wipe}, {Slow}}
		p := newPlanner(rand.New(rand.NewPCG(seed, 1)), planConfig{nodes: 3, decks: decks, wipeAfter: 10})
		for i := range 13 {
			s := p.next()
			require.True(t, s.Fault != Wipe || i >= 10, "step %d", i)
			require.True(t, p.more())
		}
		require.Len(t, p.gone, 1)
		p = newPlanner(rand.New(rand.NewPCG(seed, 1)), planConfig{nodes: 3, decks: decks[1:2], wipeAfter: 10})
		require.True(t, p.more())
		require.Equal(t, Wipe, p.next().Fault)
		require.False(t, p.more(), "it comes once, and there is nothing else")
	}
}

func TestOneDiskIsWipedInARunAndItsNodeIsLeftAlone(t *testing.T) {
	for _, names := range [][]string{{"wipe", "partition", "kill", "power", "clock"}, {"wipe"}, {"wipe", "disk-error"}} {
		for _, nodes := range []int{3, 4, 5} {
			gone, after := -1, 0
			for _, s := range planOf(t, 9, nodes, false, append(names, "slow")...) {
				if gone >= 0 {
					after++
					require.NotContains(t, s.Nodes, gone, "%+v", s)
					require.NotEqual(t, Wipe, s.Fault)
					require.NotEmpty(t, s.Nodes)
				}
				if s.Fault == Wipe {
					require.Len(t, s.Nodes, 1)
					gone = s.Nodes[0]
				}
				silences := s.Fault == Kill || s.Fault == Power || s.Fault == DiskError
				if gone >= 0 && silences && 2*(nodes-1-len(s.Nodes)) <= nodes {
					require.LessOrEqual(t, s.Hold, holdNoMajorityMax, "%+v", s)
				}
			}
			require.Positive(t, after)
		}
	}
}
