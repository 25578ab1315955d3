package ring

import (
	"encoding/json"
	"fmt"
	"math/big"
	"math/bits"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

// TestPartitionOfIsPinned holds the one choice that can never be changed: where a key's data lies. If it fails, the
// code is wrong, not the test.
func TestPartitionOfIsPinned(t *testing.T) {
	for _, c := range []struct {
		key      string
		hash     uint64
		p16, p64 kv.PartitionID
		p65536   kv.PartitionID
	}{
		{"", 0xef46db3751d8e999, 14, 59, 61254},
		{"a", 0xd24ec4f1a98c6e5b, 13, 52, 53838},
		{"account:balance", 0xe0bdfe4d1325ee23, 14, 56, 57533},
		{"user:1", 0xd9c7c4609e6080f3, 13, 54, 55751},
		{"hello", 0x26c7827d889f6da3, 2, 9, 9927},
	} {
		require.Equal(t, c.hash, xxhash.Sum64String(c.key), c.key)
		require.Equal(t, c.p16, PartitionOf([]byte(c.key), 16), c.key)
		require.Equal(t, c.p64, PartitionOf([]byte(c.key), 64), c.key)
		require.Equal(t, c.p65536, PartitionOf([]byte(c.key), 65536), c.key)
	}
}

func TestWhatBeginsWithATagLiesInItsPartition(t *testing.T) {
	for _, prefix := range []string{"{t}", "a{t}", "a{t}b", "{t}{u}"} {
		require.True(t, HasTag([]byte(prefix)), prefix)
		for i := range 100 {
			key := fmt.Appendf([]byte(prefix), "%d{x}", i)
			require.Equal(t, PartitionOf([]byte(prefix), 64), PartitionOf(key, 64), "%s", key)
		}
	}
	for _, prefix := range []string{"", "t", "{t", "t}", "{}", "}{", "{}{t}"} {
		require.False(t, HasTag([]byte(prefix)), prefix)
	}
}

func TestTagsShareAPartition(t *testing.T) {
	for key, want := range map[string]string{
		"plain":                "plain",
		"{user1}.following":    "user1",
		"a{user1}b{user2}":     "user1",
		"foo{}{bar}":           "foo{}{bar}",
		"foo{{bar}}zap":        "{bar",
		"{":                    "{",
		"}{":                   "}{",
		"}x{y}":                "y",
		"{unclosed":            "{unclosed",
		"":                     "",
		"{\x00}":               "\x00",
		strings.Repeat("x", 9): "xxxxxxxxx",
	} {
		require.Equal(t, want, string(hashed([]byte(key))), "%q", key)
	}
	require.Equal(t, PartitionOf([]byte("{t}1"), 1024), PartitionOf([]byte("2{t}"), 1024))
}

// TestPartitionsAreEqualRangesOfTheHash compares with exact arithmetic.
func TestPartitionsAreEqualRangesOfTheHash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		q := rapid.IntRange(1, PartitionsMax).Draw(t, "q")
		h := new(big.Int).SetUint64(xxhash.Sum64(hashed(key)))
		want := h.Mul(h, big.NewInt(int64(q))).Rsh(h, 64).Int64()
		p := PartitionOf(key, q)
		if int64(p) != want {
			t.Fatalf("%d, want %d", p, want)
		}
		hash := xxhash.Sum64(hashed(key))
		if hash < tokenOf(int(p), q) || int(p) < q-1 && hash >= tokenOf(int(p)+1, q) {
			t.Fatalf("hash %x is not in the range of partition %d of %d", hash, p, q)
		}
	})
	require.Zero(t, PartitionOf([]byte("k"), 0))
	require.Zero(t, PartitionOf([]byte("k"), 1))
}

func TestTokensAreTheFirstHashesOfTheirRanges(t *testing.T) {
	for _, q := range []int{1, 2, 3, 16, 61, 1000, PartitionsMax} {
		for p := range min(q, 100) {
			first := tokenOf(p, q)
			hi, _ := bits.Mul64(first, uint64(q))
			require.EqualValues(t, p, hi, "q=%d", q)
			if p > 0 {
				hi, _ = bits.Mul64(first-1, uint64(q))
				require.EqualValues(t, p-1, hi, "q=%d", q)
			}
		}
	}
}

func TestKeysSpreadEvenly(t *testing.T) {
	const q, keys = 16, 64_000
	var count [q]int
	for i := range keys {
		count[PartitionOf(fmt.Appendf(nil, "user:%d", i), q)]++
	}
	for p, c := range count {
		require.InEpsilon(t, keys/q, c, 0.1, "partition %d", p)
	}
}

// diffTwin looks at every node of every partition.
func diffTwin(from, to Map) map[string]bool {
	out := map[string]bool{}
	for p := range max(len(from.Partitions), len(to.Partitions)) {
		for n := kv.NodeID(0); n < 20; n++ {
			was, is := from.Owns(kv.PartitionID(p), n), to.Owns(kv.PartitionID(p), n)
			if was != is {
				out[fmt.Sprint(p, n, is)] = true
			}
		}
	}
	return out
}

func TestDiffAgreesWithTheNaiveTwin(t *testing.T) {
	drawMap := func(t *rapid.T, name string) Map {
		m := Map{Epoch: 1, Replicas: 3}
		for range rapid.IntRange(0, 6).Draw(t, name) {
			owners := rapid.SliceOfNDistinct(rapid.IntRange(1, 9), 0, 5, rapid.ID).Draw(t, name)
			var p Partition
			for _, o := range owners {
				p.Replicas = append(p.Replicas, kv.NodeID(o))
			}
			m.Partitions = append(m.Partitions, p)
		}
		return m
	}
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawMap(t, "from"), drawMap(t, "to")
		got := map[string]bool{}
		last := -1
		for _, m := range Diff(from, to) {
			if int(m.Partition) <= last {
				t.Fatalf("not in order of partitions")
			}
			last = int(m.Partition)
			for _, n := range m.Add {
				got[fmt.Sprint(m.Partition, n, true)] = true
			}
			for _, n := range m.Remove {
				got[fmt.Sprint(m.Partition, n, false)] = true
			}
		}
		require.Equal(t, diffTwin(from, to), got)
	})
}

func TestMapAnswersForPartitionsThatDoNotExist(t *testing.T) {
	m := Map{Epoch: 1, Replicas: 1, Partitions: []Partition{{Replicas: []kv.NodeID{7}}}}
	require.Nil(t, m.Owners(1))
	require.False(t, m.Owns(1, 7))
	require.True(t, m.Owns(0, 7))
	require.Zero(t, m.PartitionOf([]byte("k")))
	require.Zero(t, (&Map{}).PartitionOf([]byte("k")))
}

func TestCloneSharesNothing(t *testing.T) {
	m := place(t, plainNodes(4), DefaultConfig())
	c := m.Clone()
	require.True(t, mapsEqual(m, c))
	c.Partitions[0].Replicas[0] = 99
	require.NotEqual(t, kv.NodeID(99), m.Partitions[0].Replicas[0])
}

func TestMapSurvivesJSON(t *testing.T) {
	m := place(t, plainNodes(4), DefaultConfig())
	b, err := json.Marshal(m)
	require.NoError(t, err)
	require.Contains(t, string(b), `{"epoch":1,"replicas":3,"partitions":[{"replicas":[`)
	var got Map
	require.NoError(t, json.Unmarshal(b, &got))
	require.True(t, mapsEqual(m, got))
	require.NoError(t, got.Validate())
}

func TestValidateRefusesBrokenMaps(t *testing.T) {
	good := func() Map { return place(t, plainNodes(4), DefaultConfig()) }
	for name, damage := range map[string]func(*Map){
		"no epoch":          func(m *Map) { m.Epoch = 0 },
		"no replicas":       func(m *Map) { m.Replicas = 0 },
		"no partitions":     func(m *Map) { m.Partitions = nil },
		"an owner missing":  func(m *Map) { m.Partitions[5].Replicas = m.Partitions[5].Replicas[1:] },
		"an owner twice":    func(m *Map) { m.Partitions[5].Replicas[0] = m.Partitions[5].Replicas[1] },
		"an owner too many": func(m *Map) { m.Partitions[5].Replicas = append(m.Partitions[5].Replicas, 99) },
		"no node":           func(m *Map) { m.Partitions[5].Replicas[2] = kv.NoNode },
	} {
		m := good()
		require.NoError(t, m.Validate())
		damage(&m)
		require.Error(t, m.Validate(), name)
	}
}

func BenchmarkPartitionOf(b *testing.B) {
	key := []byte("account:balance:00000042")
	for b.Loop() {
		PartitionOf(key, 16)
	}
}
