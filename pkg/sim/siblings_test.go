package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
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

// Two clients read and then write the same key with what they had read, a thousand times each and through any node. Whatever
// they do to each other, there is never more than one version of each.
func TestTwoClientsNeverLeaveMoreThanTwoSiblings(t *testing.T) {
	for _, seed := range seeds()[:max(1, len(seeds())/4)] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inBubble(t, seed, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
				require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("two/"), Resolver: kv.ResolverSiblings}))
				time.Sleep(time.Second)
				// Repairs and late copies come in any order.
				c.net.SetAll(Conditions{Duplicate: 0.05, DelayMin: 100 * time.Microsecond, DelayMax: 20 * time.Millisecond, Reorder: true})
				const puts = 1000
				var clients sync.WaitGroup
				pairs := make([]int, 2)
				for client := range 2 {
					r := rand.New(rand.NewPCG(seed, uint64(client)))
					clients.Go(func() { pairs[client] = readAndPut(t, ctx, c, r, client, puts) })
				}
				clients.Wait()
				require.Positive(t, slices.Max(pairs), "the two never met: the run proves nothing")
				c.net.SetAll(Calm())
				requireEqualReplicas(t, ctx, c)
				for i := range 3 {
					for key, set := range eventualRows(t, c, i) {
						require.LessOrEqual(t, len(set.Siblings), 2, "%s on n%d", key, i+1)
					}
				}
			})
		})
	}
}

// readAndPut makes the puts of one client, and returns how often it read two siblings.
func readAndPut(t *testing.T, ctx context.Context, c *Cluster, r *rand.Rand, client, puts int) (pairs int) {
	request := func(at int, q *kv.Request) (kv.Response, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		q.Level, q.Key = kv.LevelEventual, []byte("two/key")
		return c.Execute(ctx, at, q)
	}
	for i := range puts {
		read, err := request(r.IntN(3), &kv.Request{Op: kv.OpGet, Siblings: kv.SiblingsAll})
		require.NoError(t, err)
		require.LessOrEqual(t, len(read.Siblings), 2, "put %d of client %d: %d versions of two writers", i, client, len(read.Siblings))
		if len(read.Siblings) == 2 {
			pairs++
		}
		time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		_, err = request(r.IntN(3), &kv.Request{Op: kv.OpPut, Value: fmt.Appendf(nil, "%d-%d", client, i), Context: read.Context})
		require.NoError(t, err)
	}
	return pairs
}
