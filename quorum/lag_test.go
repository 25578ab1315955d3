package quorum

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// A repair has carried to two replicas that a version is gone; only the third has applied what it was taken into.
func TestReadFindsTheStateThatAVersionWasTakenInto(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		_, err := c.put(1, "k", "v", nil, 3)
		require.NoError(t, err)
		set := c.nodes[3].held("k")
		s := set.Siblings[0]
		pruned := set.Prune(func(causal.Sibling) bool { return false }, 9)
		for _, id := range []kv.NodeID{1, 2} {
			done := make(chan error, 1)
			w := WriteRequest{Partition: 3, Epoch: 1, Key: []byte("k"), Set: pruned}
			c.nodes[id].store.Write(w, func(_ WriteReply, err error) { done <- err })
			require.NoError(t, <-done)
		}
		c.nodes[3].strong("k", storage.Strong{Revision: 9, Stamp: s.Stamp, Value: s.Value, Covered: []causal.Dot{s.ID}})
		c.setLink(1, 3, link{delay: 1}) // the second is nearer
		for range 4 {
			got, err := c.get(1, "k", 2)
			require.NoError(t, err)
			require.True(t, got.Found)
			require.Equal(t, "v", string(got.Value))
			require.True(t, got.Settled)
		}
		require.Positive(t, testutil.ToFloat64(c.nodes[1].coord.metrics.lagging))
	})
}
