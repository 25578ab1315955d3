package sim

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestCountersOfAllNodesAddUp(t *testing.T) {
	inTunedBubble(t, 1, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("n:"), Resolver: kv.ResolverCounter}))
		time.Sleep(time.Second)
		sum := 0
		for i := range 60 {
			if i == 20 {
				require.NoError(t, c.Crash(100, 2))
			}
			at := i % 3
			if i >= 20 {
				at = i % 2
			}
			_, err := put(ctx, c, at, kv.LevelEventual, "n:a", strconv.Itoa(i))
			require.NoError(t, err)
			sum += i
		}
		require.NoError(t, c.Start(ctx, 2))
		require.NoError(t, c.WaitReady(ctx, kv.LevelEventual))
		for i := range 3 {
			res, err := get(ctx, c, i, kv.LevelEventual, "n:a")
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(sum), string(res.Value), "at node %d", i+1)
		}
	})
}

func TestPoliciesTimeToLiveEndsOnEveryNode(t *testing.T) {
	inTunedBubble(t, 1, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("s:"), TTL: 3 * time.Second}))
		require.Error(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("s:"), Resolver: "newest"}))
		require.Error(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("s:"), Resolver: kv.ResolverExpr, Expr: "a.value <"}))
		time.Sleep(time.Second)
		for i := range 3 {
			require.Len(t, c.Node(i).Policies(), 1, "a policy is in force everywhere within a second")
		}
		for _, level := range []kv.Level{kv.LevelStrong, kv.LevelEventual, kv.LevelLocal} {
			key := "s:" + level.String()
			_, err := put(ctx, c, 0, level, key, "v")
			require.NoError(t, err)
		}
		time.Sleep(2 * time.Second)
		for i := range 3 {
			res, err := get(ctx, c, i, kv.LevelEventual, "s:eventual")
			require.NoError(t, err)
			require.True(t, res.Found)
		}
		time.Sleep(1100 * time.Millisecond)
		for i := range 3 {
			for _, level := range []kv.Level{kv.LevelStrong, kv.LevelEventual, kv.LevelLocal} {
				res, err := get(ctx, c, i, level, "s:"+level.String())
				require.NoError(t, err)
				require.False(t, res.Found, "an expired value is read at node %d, level %s", i+1, level)
			}
		}
		until(t, time.Minute, "the rows of expired values go once the watermark has passed them", func() bool {
			return len(eventualRows(t, c, 0))+len(eventualRows(t, c, 1))+len(eventualRows(t, c, 2)) == 0
		})
	})
}
