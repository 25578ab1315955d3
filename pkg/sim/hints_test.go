package sim

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
)

// hintsOnly leaves hinted handoff to do alone what anti-entropy would do too.
func hintsOnly(cfg *node.Config) { cfg.AntiEntropy.Interval = 24 * time.Hour }

// inHintedBubble is inTunedBubble for each seed.
func inHintedBubble(t *testing.T, nodes int, tune func(*node.Config), scenario func(t *testing.T, ctx context.Context, c *Cluster)) {
	t.Helper()
	for _, seed := range seeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { inTunedBubble(t, seed, nodes, tune, scenario) })
	}
}

func eventualPut(ctx context.Context, c *Cluster, i int, key, value string, w int, sloppy bool) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return c.Execute(ctx, i, &kv.Request{
		Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte(key), Value: []byte(value), Quorum: kv.Quorum{W: w}, Sloppy: sloppy,
	})
}

// hintsLeft sums up what all nodes keep for others.
func hintsLeft(c *Cluster) (hints int) {
	for i := range c.Size() {
		if n := c.Node(i); n != nil {
			for _, h := range n.Status().Hints {
				hints += h.Hints
			}
		}
	}
	return hints
}

// requireEqualReplicas waits until the replicas hold the same rows, for as long as they may take.
func requireEqualReplicas(t *testing.T, ctx context.Context, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, Convergence)
	defer cancel()
	_, res, err := c.WaitConverged(ctx)
	require.NoError(t, err)
	require.True(t, res.Valid, "replicas differ %v after all was mended: %+v", Convergence, res)
}

// A node is away for minutes, and comes back over links that fail again: it gets all it missed by hints alone.
func TestNodeThatWasAwayGetsEverythingByHints(t *testing.T) {
	inHintedBubble(t, 3, hintsOnly, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.Crash(100, 2))
		const keys = 300
		for i := range keys {
			_, err := eventualPut(ctx, c, i%2, fmt.Sprintf("k%03d", i), "v", 2, false)
			if i == 0 && err != nil {
				time.Sleep(time.Second)
				continue // its leader may just have gone
			}
			require.NoError(t, err, "w=2 goes on without a replica")
			time.Sleep(500 * time.Millisecond)
		}
		// Power cuts of the holders cost no hint that is on the disk.
		time.Sleep(10 * time.Second)
		require.Positive(t, hintsLeft(c))
		require.NoError(t, c.Crash(0, 0, 1))
		require.NoError(t, c.startMissing(ctx))
		for range 6 {
			time.Sleep(500 * time.Millisecond)
			c.Cut([]int{2}, []int{0, 1})
			time.Sleep(700 * time.Millisecond)
			c.Heal()
		}
		waitReady(t, ctx, c, Convergence)
		requireEqualReplicas(t, ctx, c)
		require.Zero(t, hintsLeft(c))
		for i := 1; i < keys; i++ {
			res, err := c.Execute(ctx, 2, &kv.Request{Op: kv.OpGet, Level: kv.LevelLocal, Key: fmt.Appendf(nil, "k%03d", i)})
			require.NoError(t, err)
			require.True(t, res.Found)
		}
	})
}

// A node whose peers have just gone keeps hints for them: those are no acknowledgements of theirs.
func TestHintsForUnreachableReplicasAcknowledgeNothing(t *testing.T) {
	inHintedBubble(t, 3, hintsOnly, func(t *testing.T, ctx context.Context, c *Cluster) {
		for round := range 3 {
			lone := round % 3
			require.NoError(t, c.Crash(100, (lone+1)%3, (lone+2)%3))
			for i := range 40 { // gossip takes longer than that to find out
				res, err := eventualPut(ctx, c, lone, fmt.Sprintf("k%d", i), fmt.Sprint(round), 2, false)
				require.Error(t, err, "w=2 was acknowledged by %v of a node that is alone", res.Replicas)
				time.Sleep(25 * time.Millisecond)
			}
			time.Sleep(10 * time.Second)
			require.Positive(t, hintsLeft(c), "nothing was hinted: the run proves nothing")
			require.NoError(t, c.startMissing(ctx))
			waitReady(t, ctx, c, Convergence)
		}
		requireEqualReplicas(t, ctx, c)
	})
}

// What was hinted and then overwritten by a strong write is dropped where it arrives: no row holds it afterwards.
func TestHintsOfWhatAStrongWriteReplacedAreDroppedAtTheirTarget(t *testing.T) {
	// The log reaches the node that was away long before the hints do.
	tune := func(cfg *node.Config) {
		hintsOnly(cfg)
		cfg.Hints.Interval, cfg.Hints.BackoffMax = 30*time.Second, 30*time.Second
	}
	inHintedBubble(t, 3, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
		away := int(c.opts.Seed) % 3
		with := (away + 1) % 3
		require.NoError(t, c.Crash(100, away))
		time.Sleep(5 * time.Second)
		const keys = 20
		for i := range keys {
			_, err := eventualPut(ctx, c, with, fmt.Sprintf("k%02d", i), "old", 2, false)
			require.NoError(t, err)
		}
		for i := range keys {
			_, err := put(ctx, c, with, kv.LevelStrong, fmt.Sprintf("k%02d", i), "new")
			require.NoError(t, err)
		}
		require.Positive(t, hintsLeft(c))
		require.NoError(t, c.Start(ctx, away))
		waitReady(t, ctx, c, 10*time.Second)
		require.Positive(t, hintsLeft(c))
		require.Eventually(t, func() bool { return hintsLeft(c) == 0 }, 2*Convergence, time.Second)
		var kept []string
		require.NoError(t, c.Node(away).Inspect(func(e *storage.Engine) error {
			for p := range c.opts.Partitions {
				err := e.State().ScanSiblings(kv.PartitionID(p), nil, func(key []byte, set causal.SiblingSet) (bool, error) {
					for _, s := range set.Siblings {
						kept = append(kept, fmt.Sprintf("%s=%s", key, s.Value))
					}
					return true, nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		}))
		require.Empty(t, kept, "hints got past what the log has replaced")
	})
}

// Hints beyond the caps are dropped, and what they held arrives all the same.
func TestReplicasConvergeAlthoughHintsWereDropped(t *testing.T) {
	tune := func(cfg *node.Config) { cfg.Hints.BytesMax, cfg.Hints.AgeMax = 2000, time.Minute }
	inHintedBubble(t, 3, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.Crash(100, 2))
		time.Sleep(5 * time.Second)
		for i := range 200 {
			_, err := eventualPut(ctx, c, i%2, fmt.Sprintf("k%03d", i), "v", 2, false)
			require.NoError(t, err)
		}
		require.Positive(t, hintsLeft(c))
		require.Less(t, hintsLeft(c), 150, "the cap was not reached")
		time.Sleep(2 * time.Minute)
		require.Zero(t, hintsLeft(c), "nothing has grown too old")
		require.NoError(t, c.Start(ctx, 2))
		waitReady(t, ctx, c, Convergence)
		requireEqualReplicas(t, ctx, c)
		for i := range 200 {
			res, err := c.Execute(ctx, 2, &kv.Request{Op: kv.OpGet, Level: kv.LevelLocal, Key: fmt.Appendf(nil, "k%03d", i)})
			require.NoError(t, err)
			require.True(t, res.Found)
		}
		totals, err := c.Totals("kvstore_hints_queued_total", "kvstore_hints_dropped_total=bytes", "kvstore_hints_dropped_total=age",
			"kvstore_antientropy_exchanges_total=repaired")
		require.NoError(t, err)
		kept, over, old := totals["kvstore_hints_queued_total"], totals["kvstore_hints_dropped_total=bytes"], totals["kvstore_hints_dropped_total=age"]
		require.Equal(t, 200.0, kept+over, "each write that the node missed was hinted, or dropped and counted: %v", totals)
		require.Equal(t, kept, old, "each hint grew too old, and was counted: %v", totals)
		require.Positive(t, over)
		require.Positive(t, totals["kvstore_antientropy_exchanges_total=repaired"])
	})
}

// While one node is cut off it takes eventual writes at w=1, and the others at w=1 and w=2, without a gap: not one request
// fails, or takes longer than a replica that has just fallen silent costs.
func TestBothSidesOfAPartitionTakeEventualWritesWithoutAGap(t *testing.T) {
	inHintedBubble(t, 3, nil, func(t *testing.T, ctx context.Context, c *Cluster) {
		lone := int(c.opts.Seed) % 3
		done := make(chan struct{})
		var all sync.WaitGroup
		var mu sync.Mutex
		slowest, writes := time.Duration(0), 0
		write := func(at, w int) {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				began := time.Now()
				_, err := eventualPut(ctx, c, at, fmt.Sprintf("k-%d-%d-%d", at, w, i), "v", w, false)
				mu.Lock()
				require.NoError(t, err, "n%d, w=%d, %v into the partition", at+1, w, time.Since(began))
				slowest, writes = max(slowest, time.Since(began)), writes+1
				mu.Unlock()
			}
		}
		for i := range 3 {
			all.Go(func() { write(i, 1) })
			if i != lone {
				all.Go(func() { write(i, 2) })
			}
		}
		time.Sleep(2 * time.Second)
		c.Cut([]int{lone}, []int{(lone + 1) % 3, (lone + 2) % 3})
		time.Sleep(30 * time.Second)
		c.Heal()
		time.Sleep(2 * time.Second)
		close(done)
		all.Wait()
		require.Greater(t, writes, 2000)
		require.Less(t, slowest, 200*time.Millisecond)
		waitReady(t, ctx, c, Convergence)
		requireEqualReplicas(t, ctx, c)
	})
}

// With fewer live owners than W, a sloppy write counts hints on nodes that are no owners; they reach the owners.
func TestSloppyWritesReachTheirReplicas(t *testing.T) {
	tune := func(cfg *node.Config) {
		hintsOnly(cfg)
		cfg.Quorum = kv.Quorum{N: 3, R: 2, W: 2}
	}
	inHintedBubble(t, 5, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.Crash(100, 0, 1))
		time.Sleep(10 * time.Second)
		hinted := 0
		for i := range 60 {
			res, err := eventualPut(ctx, c, 2+i%3, fmt.Sprintf("k%02d", i), "v", 3, true)
			require.NoError(t, err)
			require.Equal(t, res.Acks, len(res.Replicas)+res.Hinted)
			hinted += res.Hinted
		}
		require.Positive(t, hinted)
		require.NoError(t, c.Crash(0, 2, 3, 4))
		require.NoError(t, c.startMissing(ctx))
		waitReady(t, ctx, c, Convergence)
		requireEqualReplicas(t, ctx, c)
		require.Eventually(t, func() bool { return hintsLeft(c) == 0 }, Convergence, time.Second)
	})
}
