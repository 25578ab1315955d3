package quorum

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// An entry is applied right after the state was read, and others of the log are replaced, which begins the fences anew.
func TestFenceThatIsLiftedBecauseItsEntryWasAppliedStillHolds(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		s := c.nodes[1].store
		lifted := false
		s.deps.Sound = func(kv.GroupID) (uint64, bool) {
			lifted = true // the state is being read
			return 0, true
		}
		s.deps.Fence = func(kv.GroupID, []byte) causal.Stamp {
			if lifted {
				return causal.Stamp{}
			}
			return causal.Stamp{Base: causal.Position{Term: 1, Index: 2}}
		}
		out := <-writeAsync(s, arriving("k", 2, time.Now().UnixMilli(), "v"))
		require.NoError(t, out.err)
		require.False(t, out.reply.Accepted, "the entry that is applied replaces it")
	})
}
