package ring

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

// added counts the replicas that have to be copied to get from one map to another.
func added(from, to Map) int {
	total := 0
	for _, m := range Diff(from, to) {
		total += len(m.Add)
	}
	return total
}

func holding(m Map, n kv.NodeID) int {
	total := 0
	for p := range m.Partitions {
		if m.Owns(kv.PartitionID(p), n) {
			total++
		}
	}
	return total
}

func place(t failer, nodes []Node, cfg Config) Map {
	t.Helper()
	m, err := Place(nodes, cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return m
}

func rebalance(t failer, m Map, nodes []Node, cfg Config) Map {
	t.Helper()
	before := m.Clone()
	out, err := Rebalance(m, nodes, cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if !mapsEqual(before, m) {
		t.Fatalf("Rebalance changed its input")
	}
	if out.Epoch != m.Epoch+1 {
		t.Fatalf("epoch %d after %d", out.Epoch, m.Epoch)
	}
	return out
}

func mapsEqual(a, b Map) bool {
	return a.Epoch == b.Epoch && a.Replicas == b.Replicas && slices.EqualFunc(a.Partitions, b.Partitions,
		func(x, y Partition) bool { return slices.Equal(x.Replicas, y.Replicas) })
}

func TestNothingMovesWhenNothingChanged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 12)
		cfg := drawConfig(t, min(len(nodes), 5))
		m := place(t, nodes, cfg)
		again := rebalance(t, m, nodes, cfg)
		again.Epoch = m.Epoch
		if !mapsEqual(m, again) {
			t.Fatalf("moved: %+v", Diff(m, again))
		}
	})
}

func TestAddedNodeTakesItsShareAndNothingElseMoves(t *testing.T) {
	for _, q := range []int{16, 64, 256} {
		for n := 3; n <= 9; n++ {
			cfg := Config{Partitions: q, Replicas: 3, Vnodes: 64}
			m := place(t, plainNodes(n), cfg)
			after := rebalance(t, m, plainNodes(n+1), cfg)
			checkPlacement(t, after, plainNodes(n+1), cfg, 1, 1)
			share := q * 3 / (n + 1)
			newcomer := kv.NodeID(n + 1)
			require.InDelta(t, share, holding(after, newcomer), 1)
			require.Equal(t, holding(after, newcomer), added(m, after), "a replica moved between old nodes")
			for _, move := range Diff(m, after) {
				require.Len(t, move.Add, 1)
				require.Len(t, move.Remove, 1)
			}
		}
	}
}

func TestRemovedNodesPartitionsAloneMove(t *testing.T) {
	for _, q := range []int{16, 64, 256} {
		for n := 4; n <= 9; n++ {
			cfg := Config{Partitions: q, Replicas: 3, Vnodes: 64}
			m := place(t, plainNodes(n), cfg)
			for gone := range n {
				nodes := slices.Delete(plainNodes(n), gone, gone+1)
				after := rebalance(t, m, nodes, cfg)
				checkPlacement(t, after, nodes, cfg, 1, 1)
				for _, move := range Diff(m, after) {
					require.Equal(t, []kv.NodeID{kv.NodeID(gone + 1)}, move.Remove, "q=%d, %d nodes", q, n)
					require.Len(t, move.Add, 1)
				}
			}
		}
	}
}

// TestChangesMoveLittle changes clusters of every shape one node at a time, as a cluster lives, and checks the
// invariants and the amount moved at each step.
func TestChangesMoveLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 3, 10)
		cfg := drawConfig(t, min(len(nodes), 5))
		m := place(t, nodes, cfg)
		next := kv.NodeID(len(nodes) + 1)
		for range rapid.IntRange(1, 5).Draw(t, "changes") {
			before := m
			if rapid.Bool().Draw(t, "add") || len(nodes) == cfg.Replicas {
				newcomer := drawNodes(t, 1, 1)[0]
				newcomer.ID = next
				next++
				nodes = append(slices.Clone(nodes), newcomer)
				m = rebalance(t, m, nodes, cfg)
				checkPlacement(t, m, nodes, cfg, 1, 1)
				// Chains through full nodes are rare: only where zones leave no direct way.
				if moved, took := added(before, m), holding(m, newcomer.ID); moved > took+took/2+4 {
					t.Fatalf("added a node that took %d replicas, moved %d", took, moved)
				}
				continue
			}
			i := rapid.IntRange(0, len(nodes)-1).Draw(t, "gone")
			gone := nodes[i].ID
			nodes = slices.Delete(slices.Clone(nodes), i, i+1)
			m = rebalance(t, m, nodes, cfg)
			checkPlacement(t, m, nodes, cfg, 1, 1)
			if moved, had := added(before, m), holding(before, gone); moved > had+had/2+4 {
				t.Fatalf("removed a node that had %d replicas, moved %d", had, moved)
			}
		}
	})
}

func TestReplicationFactorCanChange(t *testing.T) {
	cfg := Config{Partitions: 32, Replicas: 3, Vnodes: 64}
	nodes := plainNodes(6)
	m := place(t, nodes, cfg)
	cfg.Replicas = 5
	wider := rebalance(t, m, nodes, cfg)
	checkPlacement(t, wider, nodes, cfg, 1, 1)
	require.Equal(t, 64, added(m, wider), "nothing moves, everything gets two more owners")
	cfg.Replicas = 3
	narrow := rebalance(t, wider, nodes, cfg)
	checkPlacement(t, narrow, nodes, cfg, 1, 1)
	require.LessOrEqual(t, added(wider, narrow), 2)
}

func TestLeadersStayWhereTheyCan(t *testing.T) {
	cfg := Config{Partitions: 60, Replicas: 3, Vnodes: 64}
	m := place(t, plainNodes(5), cfg)
	after := rebalance(t, m, plainNodes(6), cfg)
	changed := 0
	for p := range m.Partitions {
		if m.Partitions[p].Replicas[0] != after.Partitions[p].Replicas[0] {
			changed++
		}
	}
	// The sixth node should lead ten. Where a moved replica was the first one, its partition changes leaders too.
	require.InDelta(t, 10, leadsOf(after)[6], 1)
	require.LessOrEqual(t, changed, 20)
}
