package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/verify"
)

// shortLogs lets nodes keep so little of their logs that who was away for a moment needs a snapshot, and snapshots come
// in many pieces.
func shortLogs(cfg *node.Config) {
	c := &cfg.Consensus
	c.LogTailBytes, c.LogBytesMax, c.LogHoldTicks = 512, 4<<10, 5
	c.WindowBytes = 1 << 10
	c.SnapshotChunkBytes = 2 << 10
	c.SnapshotIdle = 2 * time.Second
}

// received returns how many snapshots node i has installed since it started.
func received(c *Cluster, i int) (n uint64) {
	if nd := c.Node(i); nd != nil {
		for _, p := range nd.Partitions() {
			n += p.SnapshotsReceived
		}
	}
	return n
}

// overwriteKeys writes the keys again and again through node i, and returns how many writes were applied.
func overwriteKeys(ctx context.Context, c *Cluster, i, writes, keys int) int {
	var applied atomic.Int64
	var wg sync.WaitGroup
	const writers = 8
	for w := range writers {
		wg.Go(func() {
			for n := w; n < writes && ctx.Err() == nil; n += writers {
				if _, err := put(ctx, c, i, kv.LevelStrong, fmt.Sprintf("key-%d", n%keys), fmt.Sprintf("%060d", n)); err == nil {
					applied.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int(applied.Load())
}

func requireConverged(t *testing.T, ctx context.Context, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, Convergence)
	defer cancel()
	waitReady(t, ctx, c, Convergence)
	_, difference, err := c.WaitConverged(ctx)
	require.NoError(t, err)
	require.True(t, difference.Valid, "replicas differ: %v", difference.Anomalies)
	require.Positive(t, difference.Keys)
}

func TestNodeThatMissedThousandsOfOverwritesCatchesUp(t *testing.T) {
	inTunedBubble(t, 1, 3, shortLogs, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.Equal(t, 200, overwriteKeys(ctx, c, 0, 200, 100))
		require.NoError(t, c.Crash(0, 2))
		require.Greater(t, overwriteKeys(ctx, c, 0, 4000, 100), 3900, "two of three go on")
		for _, p := range c.Node(0).Partitions() {
			require.Less(t, p.LogBytes, uint64(8<<10), "the log waits for nobody beyond its limit")
		}
		require.NoError(t, c.Start(ctx, 2))
		requireConverged(t, ctx, c)
		require.GreaterOrEqual(t, received(c, 2), uint64(4), "a snapshot a partition")
		require.Positive(t, overwriteKeys(ctx, c, 2, 100, 100))
	})
}

// Power cuts right after an acknowledgement find logs that were truncated too early, and snapshots of which a part is
// not on the disk yet: what the node says next, it could not say again.
func TestPowerCutsAroundTruncationsAndInstallsLoseNothing(t *testing.T) {
	all := seeds()
	for _, seed := range all[:(len(all)+1)/2] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, shortLogs, func(t *testing.T, ctx context.Context, c *Cluster) {
				rng := rand.New(rand.NewPCG(seed, 21))
				installs := uint64(0)
				for range 6 {
					victim := rng.IntN(3)
					require.NoError(t, c.Crash(0, victim))
					overwriteKeys(ctx, c, (victim+1)%3, 300, 50)
					require.NoError(t, c.Start(ctx, victim))
					installs += cutAfterInstall(t, ctx, c, victim, rng)
					// And one somewhere in the middle of ordinary writes.
					writing, stop := context.WithCancel(ctx)
					var wg sync.WaitGroup
					wg.Go(func() { overwriteKeys(writing, c, (victim+1)%3, 1000, 50) })
					limit, cancel := context.WithTimeout(ctx, 3*time.Second)
					_, err := c.CrashAfter(limit, victim, 20+rng.IntN(60), 0, victim)
					cancel()
					require.NoError(t, err)
					stop()
					wg.Wait()
					if c.Node(victim) == nil {
						require.NoError(t, c.Start(ctx, victim))
					}
					waitReady(t, ctx, c, 30*time.Second)
				}
				require.Positive(t, installs, "no snapshot was installed")
				requireConverged(t, ctx, c)
			})
		})
	}
}

// cutAfterInstall waits until the node has installed a snapshot and cuts its power after one of the next things that it
// promises. It returns how many it had installed.
func cutAfterInstall(t *testing.T, ctx context.Context, c *Cluster, victim int, rng *rand.Rand) (n uint64) {
	t.Helper()
	for range 5000 {
		if n = received(c, victim); n > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	limit, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(30))*time.Millisecond)
	defer cancel()
	sprung, err := c.CrashAfter(limit, victim, 1+rng.IntN(2), 0, victim)
	require.NoError(t, err)
	if !sprung {
		require.NoError(t, c.Crash(0, victim))
	}
	require.NoError(t, c.Start(ctx, victim), "what the power cut left cannot be opened")
	return n
}

func TestStrongRegistersWithShortLogsAreLinearizableUnderFaults(t *testing.T) {
	verified{workload: verify.WorkloadRegister, nodes: 3, faults: Faults(), lane: 11, tune: shortLogs}.run(t)
}
