package antientropy

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// envKeys raises the number of keys that are compared: CAPROCK_ANTIENTROPY_KEYS=1000000 go test -run Volume.
const envKeys = "CAPROCK_ANTIENTROPY_KEYS"

// One key in a hundred differs. What an exchange carries is held against what has to be carried: those keys with their sets.
func TestExchangeVolumeIsLessThanThreeTimesWhatDiffers(t *testing.T) {
	keys := 30_000
	if n, err := strconv.Atoi(os.Getenv(envKeys)); err == nil {
		keys = n
	}
	g := group(t, 2, DefaultConfig())
	set := func(n int, value string) causal.SiblingSet { return sibling(uint64(n+1), value) }
	value := fmt.Sprintf("%0100d", 7)
	differing := 0
	for first := 0; first < keys; first += 1000 {
		for side, r := range g {
			b := r.engine.NewBatch()
			for i := first; i < min(first+1000, keys); i++ {
				key := fmt.Appendf(nil, "user/profile/%08d", i)
				held := set(i, value)
				if i%100 == 7 && side == 1 {
					held = causal.Merge(held, set(i+keys, value))
				}
				b.SetSiblings(0, key, held)
				if i%100 == 7 && side == 1 {
					differing += len(keySet{key: key, set: held}.append(nil))
				}
			}
			require.NoError(t, r.engine.ApplyNoSync(b))
			b.Close()
		}
	}
	for _, r := range g {
		_, err := r.engine.Digests(t.Context(), 0) // as each node does for itself, however long it takes
		require.NoError(t, err)
	}
	for from, to := range []kv.NodeID{2, 1} {
		// Back to what one side lacks, once it asks and once it is asked.
		if from == 1 {
			b := g[0].engine.NewBatch()
			for i := 7; i < keys; i += 100 {
				b.SetSiblings(0, fmt.Appendf(nil, "user/profile/%08d", i), set(i, value))
			}
			require.NoError(t, g[0].engine.ApplyNoSync(b))
			b.Close()
		}
		g[from].carried.Store(0)
		require.Equal(t, keys/100, exchangeWith(t, g[from], 0, to))
		carried := g[from].carried.Load()
		ratio := float64(carried) / float64(differing)
		t.Logf("%d keys, %d differ, asked by node %d: %d bytes carried for %d that differ, %.2f times", keys, keys/100, from+1, carried, differing, ratio)
		require.Less(t, ratio, 3.0)
		g[from].asked.Store(0)
		require.Zero(t, exchangeWith(t, g[from], 0, to))
		require.Equal(t, int64(1), g[from].asked.Load())
	}
}
