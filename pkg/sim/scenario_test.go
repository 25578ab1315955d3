package sim

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func draw(t *testing.T, s Scenario, seed uint64) Plan {
	t.Helper()
	p, err := s.Draw(rand.New(rand.NewPCG(seed, 0)))
	require.NoError(t, err)
	return p
}

func everything(nodes int) Scenario {
	return Scenario{Nodes: nodes, Length: time.Minute, Faults: append(Faults(), FaultWipe), WipesMax: 1}
}

func TestEqualSeedsMakeEqualPlans(t *testing.T) {
	for seed := range uint64(50) {
		one, two := draw(t, everything(3), seed), draw(t, everything(3), seed)
		require.Equal(t, one, two)
		require.Equal(t, one.String(), two.String())
		require.Len(t, strings.Split(one.String(), "\n"), len(one.Steps), "one line a step")
		require.NotEqual(t, one, draw(t, everything(3), seed+1))
	}
}

func TestEveryKindOfFaultIsDrawn(t *testing.T) {
	seen := map[Fault]int{}
	for seed := range uint64(50) {
		for _, s := range draw(t, everything(5), seed).Steps {
			seen[s.Fault]++
		}
	}
	for _, f := range append(Faults(), FaultWipe) {
		require.Greater(t, seen[f], 10, f)
	}
}

func TestRingOfThreeIsABridge(t *testing.T) {
	for _, s := range draw(t, Scenario{Nodes: 3, Length: time.Minute, Faults: []Fault{FaultRing}}, 1).Steps {
		require.Equal(t, FaultBridge, s.Fault)
	}
}

func TestStepsStayWithinTheirBounds(t *testing.T) {
	for seed := range uint64(300) {
		p := draw(t, everything(3+int(seed%3)), seed)
		require.NotEmpty(t, p.Steps)
		for _, s := range p.Steps {
			require.GreaterOrEqual(t, s.At, calmMin)
			require.Positive(t, s.For)
			require.Less(t, s.For, faultMax)
			require.LessOrEqual(t, s.At+s.For, p.Length)
			require.Contains(t, []int{0, 50, 100}, s.Survives)
			require.LessOrEqual(t, max(s.Skew, -s.Skew), skewMax)
			require.LessOrEqual(t, s.Delay, noiseDelayMax)
			require.LessOrEqual(t, max(s.Loss, s.Duplicate), noisePercentMax)
			for i, at := range s.Flaps {
				require.Less(t, at, s.For)
				if i > 0 {
					require.GreaterOrEqual(t, at-s.Flaps[i-1], flapMin)
					require.Less(t, at-s.Flaps[i-1], flapMax)
				}
			}
			for _, n := range s.Nodes {
				require.Less(t, n, p.Nodes)
			}
		}
	}
}

func TestPlansNeverCostMoreThanPermitted(t *testing.T) {
	overlaps := 0
	for seed := range uint64(300) {
		for permitted := range 2 {
			scenario := everything(3)
			scenario.WipesMax = permitted
			steps := draw(t, scenario, seed).Steps
			var wiped []int
			for i, a := range steps {
				if a.Fault.stops() && a.Fault != FaultBlackout {
					require.NotContains(t, wiped, a.Nodes[0], "what is gone cannot be stopped")
				}
				if a.Fault == FaultWipe {
					wiped = append(wiped, a.Nodes[0])
				}
				for _, b := range steps[i+1:] {
					if b.At < a.At+a.For {
						overlaps++
						require.False(t, a.Fault.stops() && b.Fault.stops(), "%s beside %s", a, b)
					}
				}
			}
			require.LessOrEqual(t, len(wiped), permitted)
		}
	}
	require.Greater(t, overlaps, 300, "faults that never meet prove less")
}

func TestClocksAreSetNoFurtherAheadThanPermitted(t *testing.T) {
	var ahead, behind time.Duration
	for seed := range uint64(100) {
		scenario := Scenario{Nodes: 3, Length: time.Minute, Faults: []Fault{FaultSkew}, AheadMax: 20 * time.Second}
		p := draw(t, scenario, seed)
		for _, s := range p.Steps {
			ahead, behind = max(ahead, s.Skew), min(behind, s.Skew)
			require.GreaterOrEqual(t, p.Caught(), s.At+s.For+s.Skew)
		}
	}
	require.LessOrEqual(t, ahead, 20*time.Second)
	require.Greater(t, ahead, 15*time.Second)
	require.Less(t, behind, -9*time.Minute)
}

// Half of the clocks that are set wrong are then set far wrong, and nothing else of the plan changes.
func TestFarSkewsAreHours(t *testing.T) {
	far, near := 0, 0
	var ahead, behind time.Duration
	for seed := range uint64(100) {
		scenario := Scenario{Nodes: 3, Length: time.Minute, Faults: Faults()}
		plain := draw(t, scenario, seed)
		scenario.FarSkews = true
		for i, s := range draw(t, scenario, seed).Steps {
			ahead, behind = max(ahead, s.Skew), min(behind, s.Skew)
			if s.Fault == FaultSkew {
				if s.Skew != plain.Steps[i].Skew {
					far++
				} else {
					near++
				}
				s.Skew = plain.Steps[i].Skew
			}
			require.Equal(t, plain.Steps[i], s)
		}
	}
	require.InDelta(t, 1, float64(far)/float64(near), 0.5)
	for _, most := range []time.Duration{ahead, -behind} {
		require.Greater(t, most, 2*time.Hour)
		require.LessOrEqual(t, most, 3*time.Hour)
	}
}

// sees returns whom each node hears from and reaches, itself included.
func sees(nodes int, s Step) [][]int {
	cut := map[pair]bool{}
	s.cuts(nodes, cut)
	out := make([][]int, nodes)
	for i := range nodes {
		for j := range nodes {
			if !cut[pair{i, j}] && !cut[pair{j, i}] {
				out[i] = append(out[i], j)
			}
		}
	}
	return out
}

func TestCutsSeparateWhomTheySay(t *testing.T) {
	require.Equal(t, [][]int{{0}, {1, 2}, {1, 2}}, sees(3, Step{Fault: FaultCut, Nodes: []int{0}}))
	require.Equal(t, [][]int{{0, 2}, {1, 3, 4}, {0, 2}, {1, 3, 4}, {1, 3, 4}},
		sees(5, Step{Fault: FaultHalves, Nodes: []int{0, 2}}))
	require.Equal(t, [][]int{{0, 1}, {0, 1, 2}, {1, 2}}, sees(3, Step{Fault: FaultBridge, Nodes: []int{1, 0, 2}}))
	require.Equal(t, [][]int{{0, 1, 2}, {0, 1, 2}, {0, 1, 2, 3, 4}, {2, 3, 4}, {2, 3, 4}},
		sees(5, Step{Fault: FaultBridge, Nodes: []int{2, 0, 1, 3, 4}}))
	for nodes := ringNodesMin; nodes <= 7; nodes++ {
		seen := sees(nodes, Step{Fault: FaultRing, Nodes: rand.New(rand.NewPCG(1, 1)).Perm(nodes)})
		for i, whom := range seen {
			require.Greater(t, len(whom), nodes/2, "n%d of %d sees a majority", i+1, nodes)
			require.Less(t, len(whom), nodes)
			for j := range i {
				require.False(t, slices.Equal(whom, seen[j]), "n%d and n%d of %d see the same", i+1, j+1, nodes)
			}
		}
	}
	cut := map[pair]bool{}
	(&Step{Fault: FaultOneWay, Nodes: []int{2, 0}}).cuts(3, cut)
	require.Equal(t, map[pair]bool{{2, 0}: true}, cut)
}

func TestScenariosThatCannotBeDrawnAreRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, s := range []Scenario{
		{Nodes: 2, Length: time.Minute, Faults: Faults()},
		{Nodes: 3, Length: time.Second, Faults: Faults()},
		{Nodes: 3, Length: time.Minute},
		{Nodes: 3, Length: time.Minute, Faults: []Fault{"moths"}},
		{Nodes: 3, Length: time.Minute, Faults: Faults(), WipesMax: 3},
	} {
		_, err := s.Draw(r)
		require.Error(t, err)
	}
}

func TestOneNodeRotsInAPlan(t *testing.T) {
	for seed := range uint64(20) {
		met := map[int]bool{}
		p := draw(t, Scenario{Nodes: 3, Length: time.Minute, Faults: append(Faults(), FaultRot, FaultRot, FaultRot)}, seed)
		for _, s := range p.Steps {
			if s.Fault == FaultRot {
				met[s.Nodes[0]] = true
				require.Equal(t, s.Nodes, p.rotten())
			}
		}
		require.LessOrEqual(t, len(met), 1, "what two have lost may be lost by right")
	}
}
