package ring

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func plainNodes(n int) []Node {
	var out []Node
	for i := range n {
		out = append(out, Node{ID: kv.NodeID(i + 1)})
	}
	return out
}

// drawNodes draws a cluster: sometimes flat, sometimes in zones, sometimes in zones of data centers, sometimes weighted.
func drawNodes(t *rapid.T, least, most int) []Node {
	var out []Node
	zones := rapid.SampledFrom([]int{1, 1, 2, 3, 4, 5}).Draw(t, "zones")
	dcs := rapid.SampledFrom([]int{1, 1, 2, 3}).Draw(t, "dcs")
	weighted := rapid.Bool().Draw(t, "weighted")
	for i := range rapid.IntRange(least, most).Draw(t, "nodes") {
		zone := rapid.IntRange(0, zones-1).Draw(t, "zone")
		n := Node{ID: kv.NodeID(i + 1), Zone: fmt.Sprint("z", zone), DC: fmt.Sprint("d", zone%dcs)}
		if weighted {
			n.Weight = rapid.IntRange(0, 4).Draw(t, "weight")
		}
		out = append(out, n)
	}
	return out
}

func drawConfig(t *rapid.T, replicasMax int) Config {
	return Config{
		Partitions: rapid.SampledFrom([]int{1, 3, 16, 32, 61}).Draw(t, "partitions"),
		Replicas:   rapid.IntRange(1, replicasMax).Draw(t, "replicas"),
		Vnodes:     rapid.SampledFrom([]int{1, 8, 64}).Draw(t, "vnodes"),
	}
}

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

// countsBy returns how many of the owners each domain holds.
func countsBy(owners []kv.NodeID, nodes []Node, domain func(Node) string) map[string]int {
	out := map[string]int{}
	for _, n := range nodes {
		out[domain(n)] += 0
		if slices.Contains(owners, n.ID) {
			out[domain(n)]++
		}
	}
	return out
}

func zoneOf(n Node) string { return n.DC + "/" + n.Zone }
func dcOf(n Node) string   { return n.DC }

// checkSpread fails if a replica could move to another domain and leave the partition more evenly spread.
func checkSpread(t failer, p int, counts, room map[string]int) {
	t.Helper()
	for from, c := range counts {
		for to, d := range counts {
			if c > d+1 && d < room[to] {
				t.Fatalf("partition %d: %d replicas in %s and %d in %s, which has room for %d", p, c, from, d, to, room[to])
			}
		}
	}
}

// checkPlacement checks every invariant of the package that does not depend on an earlier map.
func checkPlacement(t failer, m Map, nodes []Node, cfg Config, above, below int) {
	t.Helper()
	if err := m.Validate(); err != nil {
		t.Fatalf("%v", err)
	}
	if len(m.Partitions) != cfg.Partitions || m.Replicas != cfg.Replicas {
		t.Fatalf("the map is not for the configuration")
	}
	zoneRoom := map[string]int{}
	for _, n := range nodes {
		zoneRoom[zoneOf(n)]++
	}
	for p := range m.Partitions {
		owners := m.Partitions[p].Replicas
		counts := countsBy(owners, nodes, zoneOf)
		total := 0
		for zone, c := range counts {
			total += c
			if len(zoneRoom) >= cfg.Replicas && c > 1 {
				t.Fatalf("partition %d has %d replicas in zone %s of %d zones", p, c, zone, len(zoneRoom))
			}
		}
		if total != cfg.Replicas {
			t.Fatalf("partition %d has owners that are no nodes: %v", p, owners)
		}
		checkSpread(t, p, counts, zoneRoom)
	}
	l, err := newLayout(nodes, cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for i, load := range loadsOf(m, l) {
		if load > l.ceil[i]+above || load < l.floor[i]-below {
			t.Fatalf("node %d has %d replicas; its share is %d to %d", l.ids[i], load, l.floor[i], l.ceil[i])
		}
	}
}

func loadsOf(m Map, l *layout) loads {
	out := make(loads, len(l.ids))
	for p := range m.Partitions {
		for _, n := range m.Partitions[p].Replicas {
			out[slices.Index(l.ids, n)]++
		}
	}
	return out
}

func leadsOf(m Map) map[kv.NodeID]int {
	out := map[kv.NodeID]int{}
	for p := range m.Partitions {
		out[m.Partitions[p].Replicas[0]]++
	}
	return out
}

func TestPlaceKeepsEveryInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 12)
		cfg := drawConfig(t, min(len(nodes), 5))
		m, err := Place(nodes, cfg)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if m.Epoch != 1 {
			t.Fatalf("epoch %d", m.Epoch)
		}
		// A fresh placement hits every share exactly.
		checkPlacement(t, m, nodes, cfg, 0, 0)
		r := rand.New(rand.NewPCG(1, 2))
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		again, err := Place(nodes, cfg)
		if err != nil || len(Diff(m, again)) > 0 {
			t.Fatalf("the order in which nodes are listed matters")
		}
	})
}

// TestSharesFollowWeights checks the shares of clusters small enough to work out by hand.
func TestSharesFollowWeights(t *testing.T) {
	for _, c := range []struct {
		name        string
		nodes       []Node
		q, n        int
		floor, ceil loads
	}{
		{"equal", plainNodes(3), 16, 3, loads{16, 16, 16}, loads{16, 16, 16}},
		{"five for three", plainNodes(5), 16, 3, loads{9, 9, 9, 9, 9}, loads{10, 10, 10, 10, 10}},
		{"by weight", []Node{{ID: 1, Weight: 2}, {ID: 2}, {ID: 3}}, 16, 1, loads{8, 4, 4}, loads{8, 4, 4}},
		{
			"a node cannot hold a partition twice",
			[]Node{{ID: 1, Weight: 9}, {ID: 2}, {ID: 3}},
			16, 2,
			loads{16, 8, 8},
			loads{16, 8, 8},
		},
		{
			"a zone of one node holds one of everything",
			[]Node{{ID: 1, Zone: "a"}, {ID: 2, Zone: "b"}, {ID: 3, Zone: "b"}},
			16, 2,
			loads{16, 8, 8},
			loads{16, 8, 8},
		},
	} {
		l, err := newLayout(c.nodes, Config{Partitions: c.q, Replicas: c.n, Vnodes: 64})
		require.NoError(t, err, c.name)
		require.Equal(t, c.floor, l.floor, c.name)
		require.Equal(t, c.ceil, l.ceil, c.name)
	}
}

func TestDataCentersAreSpreadWhereZonesLeaveAChoice(t *testing.T) {
	var nodes []Node
	for i := range 12 {
		// Two data centers of three zones with two nodes each.
		nodes = append(nodes, Node{ID: kv.NodeID(i + 1), DC: fmt.Sprint("d", i%2), Zone: fmt.Sprint("z", i%6)})
	}
	for replicas := 1; replicas <= 6; replicas++ {
		m, err := Place(nodes, Config{Partitions: 64, Replicas: replicas, Vnodes: 64})
		require.NoError(t, err)
		for p := range m.Partitions {
			counts := countsBy(m.Partitions[p].Replicas, nodes, dcOf)
			require.LessOrEqual(t, max(counts["d0"], counts["d1"])-min(counts["d0"], counts["d1"]), 1)
		}
	}
}

func TestPreferredLeadersAreSpread(t *testing.T) {
	for _, q := range []int{16, 64, 100} {
		for n := 3; n <= 9; n++ {
			m, err := Place(plainNodes(n), Config{Partitions: q, Replicas: 3, Vnodes: 64})
			require.NoError(t, err)
			leads := leadsOf(m)
			for _, node := range plainNodes(n) {
				require.InDelta(t, float64(q)/float64(n), leads[node.ID], 1, "q=%d, %d nodes: %v", q, n, leads)
			}
		}
	}
}

func TestLeadersFollowWeights(t *testing.T) {
	nodes := []Node{{ID: 1, Weight: 2}, {ID: 2}, {ID: 3}}
	m, err := Place(nodes, Config{Partitions: 64, Replicas: 3, Vnodes: 64})
	require.NoError(t, err)
	require.Equal(t, map[kv.NodeID]int{1: 32, 2: 16, 3: 16}, leadsOf(m))
}

// TestLostNodesPartitionsFallToManyOthers guards the point of vnodes: replicas of a node pair with all others.
func TestLostNodesPartitionsFallToManyOthers(t *testing.T) {
	cfg := Config{Partitions: 256, Replicas: 3, Vnodes: 64}
	m, err := Place(plainNodes(10), cfg)
	require.NoError(t, err)
	after, err := Rebalance(m, plainNodes(9), cfg)
	require.NoError(t, err)
	takers := map[kv.NodeID]int{}
	for _, move := range Diff(m, after) {
		for _, n := range move.Add {
			takers[n]++
		}
	}
	require.Len(t, takers, 9)
}

func TestPlaceRefusesWhatCannotBePlaced(t *testing.T) {
	ok := DefaultConfig()
	for name, c := range map[string]struct {
		nodes []Node
		cfg   Config
	}{
		"too few nodes":     {plainNodes(2), ok},
		"no nodes":          {nil, ok},
		"a node twice":      {append(plainNodes(3), Node{ID: 3}), ok},
		"no node":           {append(plainNodes(3), Node{}), ok},
		"a negative weight": {append(plainNodes(3), Node{ID: 9, Weight: -1}), ok},
		"a huge weight":     {append(plainNodes(3), Node{ID: 9, Weight: WeightMax + 1}), ok},
		"no partitions":     {plainNodes(3), Config{Replicas: 3, Vnodes: 64}},
		"no replicas":       {plainNodes(3), Config{Partitions: 16, Vnodes: 64}},
		"no vnodes":         {plainNodes(3), Config{Partitions: 16, Replicas: 3}},
		"many partitions":   {plainNodes(3), Config{Partitions: PartitionsMax + 1, Replicas: 3, Vnodes: 64}},
	} {
		_, err := Place(c.nodes, c.cfg)
		require.Error(t, err, name)
	}
	m, err := Place(plainNodes(3), ok)
	require.NoError(t, err)
	_, err = Rebalance(m, plainNodes(3), Config{Partitions: 17, Replicas: 3, Vnodes: 64})
	require.ErrorContains(t, err, "cannot change")
	_, err = Rebalance(m, plainNodes(2), ok)
	require.ErrorContains(t, err, "at least as many nodes")
	m.Partitions[3].Replicas = m.Partitions[3].Replicas[:2]
	_, err = Rebalance(m, plainNodes(3), ok)
	require.ErrorContains(t, err, "partition 3")
}

func BenchmarkPlace(b *testing.B) {
	for _, size := range []struct{ q, n int }{{16, 3}, {256, 12}, {1024, 48}} {
		b.Run(fmt.Sprintf("q=%d/nodes=%d", size.q, size.n), func(b *testing.B) {
			for b.Loop() {
				if _, err := Place(plainNodes(size.n), Config{Partitions: size.q, Replicas: 3, Vnodes: 64}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
