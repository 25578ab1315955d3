package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// TestInterleavedWritersWhoNeverReadMakeOneSiblingEach has two clients give each write the context of their last one's answer,
// asking the nodes in turn.
func TestInterleavedWritersWhoNeverReadMakeOneSiblingEach(t *testing.T) {
	inTunedBubble(t, 1, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("s:"), Resolver: kv.ResolverSiblings}))
		time.Sleep(time.Second)
		var contexts [2][]byte
		for i := range 2000 {
			res, err := c.Execute(ctx, i%3, &kv.Request{
				Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte("s:a"), Value: fmt.Appendf(nil, "%d", i), Context: contexts[i%2],
			})
			require.NoError(t, err)
			contexts[i%2] = res.Context
			if i%100 > 1 {
				continue
			}
			res, err = get(ctx, c, i/2%3, kv.LevelEventual, "s:a")
			require.NoError(t, err)
			require.LessOrEqual(t, len(res.Siblings), 2, "after %d writes", i)
		}
		time.Sleep(5 * time.Second)
		for i := range 3 {
			res, err := get(ctx, c, i, kv.LevelLocal, "s:a")
			require.NoError(t, err)
			require.Len(t, res.Siblings, 2, "at node %d", i+1)
			for _, s := range res.Siblings {
				require.Contains(t, []string{"1998", "1999"}, string(s.Value))
			}
		}
	})
}
