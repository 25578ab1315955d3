package sim

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
)

// loseEventual takes all rows of the eventual lane of node i away underneath it, with all that tells of them, and starts it
// anew on what is left.
func loseEventual(t *testing.T, ctx context.Context, c *Cluster, i int) {
	t.Helper()
	require.NoError(t, c.Node(i).Inspect(func(e *storage.Engine) error {
		for p := range kv.PartitionID(repairPartitions) {
			if err := e.LoseAllSiblings(p); err != nil {
				return err
			}
		}
		return nil
	}))
	c.watch.forget(c.nodes[i].id) // what it had acknowledged is gone, and is meant to be
	require.NoError(t, c.Crash(100, i))
	require.NoError(t, c.Start(ctx, i))
}

// healingPartitions returns how many of node i's partitions say that they heal.
func healingPartitions(c *Cluster, i int) (n int) {
	for _, p := range c.Node(i).Partitions() {
		if p.Repair != nil && p.Repair.State == "healing" {
			n++
		}
	}
	return n
}

// Of the two replicas that acknowledged a write one loses its rows and the other is down. A read of two replicas then finds
// two, and neither has the write: it must not be answered from them (design.md §7).
func TestReplicaThatLostItsRowsAnswersForNothingUntilItHasHealed(t *testing.T) {
	for _, seed := range seeds()[:min(2, len(seeds()))] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
				const lost, holder, lacking = 0, 1, 2
				const keys = 12
				require.NoError(t, c.Crash(100, lacking))
				for i := range keys {
					res, err := put(ctx, c, holder, kv.LevelEventual, string(repairKey(i)), "value")
					require.NoError(t, err)
					require.Equal(t, 2, res.Acks)
				}
				require.NoError(t, c.Crash(100, holder))
				loseEventual(t, ctx, c, lost)
				require.NoError(t, c.Start(ctx, lacking))
				require.NoError(t, c.WaitReady(ctx, kv.LevelStrong))

				missed := func() {
					for i := range keys {
						for _, at := range []int{lost, lacking} {
							_, err := get(ctx, c, at, kv.LevelEventual, string(repairKey(i)))
							require.ErrorContains(t, err, "lost rows", "%s at n%d: two replicas that lack it cannot say that it is not there", repairKey(i), at+1)
						}
					}
					_, err := put(ctx, c, lacking, kv.LevelEventual, "beside", "value")
					require.ErrorContains(t, err, "lost rows", "nor can they acknowledge")
					require.Equal(t, repairPartitions, healingPartitions(c, lost))
				}
				missed()
				time.Sleep(5 * time.Second) // it is compared with the one that lacks them as well
				missed()
				require.NoError(t, c.Crash(100, lost))
				require.NoError(t, c.Start(ctx, lost))
				require.NoError(t, c.WaitReady(ctx, kv.LevelStrong))
				missed() // a restart heals nothing

				require.NoError(t, c.Start(ctx, holder))
				requireConverged(t, ctx, c)
				until(t, time.Minute, "a replica heals for ever", func() bool { return healingPartitions(c, lost) == 0 })
				require.NoError(t, c.Crash(100, holder))
				for i := range keys {
					for _, at := range []int{lost, lacking} {
						res, err := get(ctx, c, at, kv.LevelEventual, string(repairKey(i)))
						require.NoError(t, err)
						require.Equal(t, "value", string(res.Value))
					}
				}
			})
		})
	}
}

// While one replica heals, the two others are a quorum: nothing fails and nothing waits for it.
func TestTwoReplicasServeWhileTheThirdHeals(t *testing.T) {
	slowly := func(cfg *node.Config) { cfg.AntiEntropy.Interval = 30 * time.Second }
	inTunedBubble(t, 1, 3, slowly, func(t *testing.T, ctx context.Context, c *Cluster) {
		putAll(t, ctx, c, 40)
		requireConverged(t, ctx, c)
		loseEventual(t, ctx, c, 0)
		waitReady(t, ctx, c, Convergence)
		for i := range 40 {
			for at := range 3 {
				res, err := get(ctx, c, at, kv.LevelEventual, string(repairKey(i)))
				require.NoError(t, err)
				require.Equal(t, "value", string(res.Value))
				_, err = put(ctx, c, at, kv.LevelEventual, fmt.Sprintf("beside-%d-%d", i, at), "value")
				require.NoError(t, err)
			}
		}
		require.Equal(t, repairPartitions, healingPartitions(c, 0))
		until(t, 5*time.Minute, "a replica heals for ever", func() bool { return healingPartitions(c, 0) == 0 })
		requireConverged(t, ctx, c)
	})
}

// Nobody is left who has lost nothing: all give what they have, and end.
func TestReplicasThatAllLostRowsGiveEachOtherWhatIsLeft(t *testing.T) {
	inTunedBubble(t, 1, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		putAll(t, ctx, c, 30)
		requireConverged(t, ctx, c)
		until(t, time.Minute, "the watermark stays behind", func() bool {
			for _, r := range repairStates(t, c, 1) {
				if r.Committed == 0 {
					return false
				}
			}
			return true
		})
		for i := range 3 {
			require.NoError(t, c.Node(i).Inspect(func(e *storage.Engine) error {
				for k := i; k < 30; k += 3 { // another third of them is lost on each
					if err := e.LoseSiblings(partitionOf(repairKey(k)), false, true, repairKey(k)); err != nil {
						return err
					}
				}
				for p := range kv.PartitionID(repairPartitions) {
					if err := e.BeginHealing(p); err != nil {
						return err
					}
				}
				return nil
			}))
			c.watch.forget(c.nodes[i].id)
		}
		until(t, time.Minute, "replicas heal for ever", func() bool {
			return healingPartitions(c, 0)+healingPartitions(c, 1)+healingPartitions(c, 2) == 0
		})
		requireConverged(t, ctx, c)
		for i := range 3 {
			require.Len(t, eventualRows(t, c, i), 30)
		}
	})
}

// What only a hint holds keeps the watermark where it is, and a member that keeps none, however dead, does not.
func TestWatermarkWaitsForWhoeverMayKeepHintsAndForNobodyElse(t *testing.T) {
	tune := func(cfg *node.Config) {
		quickRepair(cfg)
		cfg.Quorum = kv.Quorum{N: 3, R: 2, W: 2}
	}
	for _, seed := range seeds()[:min(2, len(seeds()))] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 4, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
				p := kv.PartitionID(0)
				key := ""
				for i := 0; key == ""; i++ {
					if k := repairKey(i); partitionOf(k) == p {
						key = string(k)
					}
				}
				var owners []int
				stranger := -1
				for i := range c.Size() {
					if slices.Contains(c.Node(0).Partitions()[p].Replicas, c.nodes[i].name) {
						owners = append(owners, i)
					} else {
						stranger = i
					}
				}
				require.Len(t, owners, 3)
				a, b, d := owners[0], owners[1], owners[2]
				passed := func(at time.Time) func() bool {
					return func() bool {
						for _, i := range owners {
							if c.Node(i) == nil || !repairStates(t, c, i)[p].Committed.Time().After(at) {
								return false
							}
						}
						return true
					}
				}
				require.NoError(t, c.Crash(100, stranger))
				until(t, time.Minute, "the watermark waits for a member that keeps nothing", passed(time.Now()))
				require.NoError(t, c.Start(ctx, stranger))
				waitReady(t, ctx, c, Convergence)
				time.Sleep(5 * time.Second)

				require.NoError(t, c.Crash(100, b))
				time.Sleep(5 * time.Second)
				res, err := eventualPut(ctx, c, a, key, "value", 3, true)
				require.NoError(t, err)
				require.Equal(t, 1, res.Hinted)
				require.NoError(t, c.Crash(100, stranger))
				loseEventual(t, ctx, c, a)
				loseEventual(t, ctx, c, d)
				require.NoError(t, c.Start(ctx, b))
				time.Sleep(time.Minute)
				for _, i := range owners {
					require.Zero(t, healingOf(c, i, p))
					require.False(t, passed(res.Timestamp)(), "the watermark has passed what only a hint holds")
				}
				require.NoError(t, c.Start(ctx, stranger))
				until(t, time.Minute, "the watermark waits for a holder that has nothing left", passed(res.Timestamp))
				for _, i := range owners {
					res, err := get(ctx, c, i, kv.LevelLocal, key)
					require.NoError(t, err)
					require.Equal(t, "value", string(res.Value), "n%d", i+1)
				}
				// Nothing is left to wait for: the holder may go again.
				time.Sleep(20 * time.Second)
				require.NoError(t, c.Crash(100, stranger))
				until(t, time.Minute, "the watermark waits for a holder that was asked long ago", passed(time.Now()))
			})
		})
	}
}

// healingOf returns 1 if the replica of the partition on node i heals.
func healingOf(c *Cluster, i int, p kv.PartitionID) int {
	if doc := c.Node(i).Partitions()[p]; doc.Repair != nil && doc.Repair.State != "ok" {
		return 1
	}
	return 0
}
