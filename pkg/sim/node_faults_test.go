package sim_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/sim"
	"github.com/caprockdb/caprock/pkg/storage"
)

// inCluster runs the scenario on three simulated nodes that have fault injectors.
func inCluster(t *testing.T, scenario func(ctx context.Context, c *sim.Cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c, err := sim.NewCluster(sim.Options{
			Nodes: 3, Partitions: 4, Seed: 1, Tune: func(cfg *node.Config) { cfg.Dev = true },
		})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, c.StartAll(ctx))
		defer func() { require.NoError(t, c.Close()) }()
		require.NoError(t, c.WaitReady(ctx, kv.LevelUnset))
		scenario(ctx, c)
	})
}

var levels = []kv.Level{kv.LevelStrong, kv.LevelEventual}

// keys are enough for every partition to have some.
func keys(prefix string) (out []string) {
	for i := range 12 {
		out = append(out, fmt.Sprintf("%s%d", prefix, i))
	}
	return out
}

func request(op kv.Op, l kv.Level, key string) *kv.Request {
	return &kv.Request{Op: op, Level: l, Key: []byte(l.String() + key), Value: []byte("v")}
}

func TestNodeWithoutSpaceRefusesWritesReadsOnAndRecovers(t *testing.T) {
	inCluster(t, func(ctx context.Context, c *sim.Cluster) {
		each := func(i int, op kv.Op, prefix string, check func(kv.Response, error)) {
			for _, l := range levels {
				for _, key := range keys(prefix) {
					check(c.Execute(ctx, i, request(op, l, key)))
				}
			}
		}
		works := func(_ kv.Response, err error) { require.NoError(t, err) }
		found := func(r kv.Response, err error) {
			require.NoError(t, err)
			require.True(t, r.Found)
		}
		each(0, kv.OpPut, "before", works)

		injector := c.Node(0).Faults()
		require.NoError(t, injector.Set(node.FaultSet{Disk: storage.DiskFault{Mode: storage.DiskLow}}))
		time.Sleep(2500 * time.Millisecond)
		each(0, kv.OpPut, "refused", func(_ kv.Response, err error) {
			require.Equal(t, kv.CodeOverloaded, kv.CodeOf(err))
			e := kv.AsError(err)
			require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
			require.True(t, e.Retryable)
			require.Positive(t, e.RetryAfter)
			require.Contains(t, e.Detail, "disk of node n1")
		})
		each(0, kv.OpGet, "before", found)
		each(1, kv.OpGet, "refused", func(r kv.Response, err error) {
			require.NoError(t, err)
			require.False(t, r.Found, "a refused write was applied")
		})
		status := c.Node(0).Status()
		require.NotEqual(t, "ok", status.Disk.Writes)
		require.Zero(t, status.Leaders["n1"], "leaders stay where they cannot write")

		// The others go on, and what they write reaches this node's log but not its eventual rows.
		each(1, kv.OpPut, "meanwhile", works)
		each(0, kv.OpGet, "meanwhile", found)
		for _, key := range keys("meanwhile") {
			r := request(kv.OpGet, kv.LevelEventual, key)
			r.Level = kv.LevelLocal
			res, err := c.Execute(ctx, 0, r)
			require.NoError(t, err)
			require.False(t, res.Found, "a peer's write got past the watermark")
		}

		injector.Clear()
		time.Sleep(1500 * time.Millisecond)
		each(0, kv.OpPut, "after", works)
		each(2, kv.OpGet, "after", found)
		require.Equal(t, "ok", c.Node(0).Status().Disk.Writes)
	})
}

func TestDiskErrorOfTheLogStopsTheNodeWhichSaysWhy(t *testing.T) {
	inCluster(t, func(ctx context.Context, c *sim.Cluster) {
		require.NoError(t, c.Node(0).Faults().Set(node.FaultSet{Disk: storage.DiskFault{Mode: storage.DiskError}}))
		time.Sleep(time.Second)
		_, err := c.Execute(ctx, 0, request(kv.OpPut, kv.LevelEventual, "k"))
		require.Error(t, err)
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Stop(0), storage.ErrStopped)
		_, err = c.Execute(ctx, 1, request(kv.OpPut, kv.LevelStrong, "k"))
		require.NoError(t, err, "the others go on")
		require.NoError(t, c.Start(ctx, 0))
		require.NoError(t, c.WaitReady(ctx, kv.LevelUnset))
	})
}

func TestClockFaultMovesTheStampsOfThisNodeOnly(t *testing.T) {
	inCluster(t, func(ctx context.Context, c *sim.Cluster) {
		const skew = 200 * time.Millisecond
		stamp := func(i int, key string) time.Duration {
			r, err := c.Execute(ctx, i, request(kv.OpPut, kv.LevelEventual, key))
			require.NoError(t, err)
			return time.Until(r.Timestamp)
		}
		require.Less(t, stamp(0, "a"), skew/2)
		require.NoError(t, c.Node(0).Faults().Set(node.FaultSet{Clock: skew}))
		require.Greater(t, stamp(0, "b"), skew/2)
	})
}
