package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/verify"
	"github.com/caprockdb/caprock/ring"
)

// quickRepair lets anti-entropy do in seconds what takes minutes and hours in production.
func quickRepair(cfg *node.Config) {
	c := &cfg.AntiEntropy
	c.Interval, c.WatermarkInterval, c.WatermarkLag = time.Second, 2*time.Second, 6*time.Second
	c.ScrubInterval = 30 * time.Second
}

// repairPartitions is the number of partitions of a simulated cluster in these tests.
const repairPartitions = 4

func repairKey(i int) []byte { return fmt.Appendf(nil, "key-%d", i) }

func partitionOf(key []byte) kv.PartitionID { return ring.PartitionOf(key, repairPartitions) }

// eventualRows returns the rows of the eventual lane of node i.
func eventualRows(t *testing.T, c *Cluster, i int) map[string]causal.SiblingSet {
	t.Helper()
	out := map[string]causal.SiblingSet{}
	require.NoError(t, c.Node(i).Inspect(func(e *storage.Engine) error {
		for p := range kv.PartitionID(repairPartitions) {
			if err := e.State().ScanSiblings(p, nil, func(key []byte, set causal.SiblingSet) (bool, error) {
				out[string(key)] = set
				return true, nil
			}); err != nil {
				return err
			}
		}
		return nil
	}))
	return out
}

// repairStates returns what node i remembers of the repair of each partition.
func repairStates(t *testing.T, c *Cluster, i int) (out [repairPartitions]storage.RepairState) {
	t.Helper()
	require.NoError(t, c.Node(i).Inspect(func(e *storage.Engine) error {
		for p := range out {
			out[p] = e.State().Repair(kv.PartitionID(p))
		}
		return nil
	}))
	return out
}

func putAll(t *testing.T, ctx context.Context, c *Cluster, keys int) {
	t.Helper()
	for i := range keys {
		_, err := put(ctx, c, i%c.Size(), kv.LevelEventual, string(repairKey(i)), "value")
		require.NoError(t, err)
	}
}

// until waits for a condition for so long.
func until(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for began := time.Now(); !holds(); time.Sleep(500 * time.Millisecond) {
		require.Less(t, time.Since(began), limit, what)
	}
}

func TestReplicaThatMissedWritesIsMadeEqualByExchange(t *testing.T) {
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
				require.NoError(t, c.Crash(100, 2))
				for i := range 60 {
					_, err := put(ctx, c, i%2, kv.LevelEventual, string(repairKey(i)), "value")
					require.NoError(t, err)
				}
				time.Sleep(5 * time.Second) // what was sent to the dead is given up
				require.NoError(t, c.Start(ctx, 2))
				requireConverged(t, ctx, c)
				require.Len(t, eventualRows(t, c, 2), 60)
				for i := range 3 {
					for _, p := range c.Node(i).Partitions() {
						require.Equal(t, "ok", p.Repair.State)
					}
				}
			})
		})
	}
}

func TestRowsThatAreLostOrDamagedUnderneathComeBack(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
				const keys = 60
				putAll(t, ctx, c, keys)
				requireConverged(t, ctx, c)
				if seed%2 == 0 {
					// Once the watermark is past them, versions are taken from replicas that have lost nothing only.
					until(t, time.Minute, "the watermark stays behind", func() bool {
						for i := range 3 {
							for _, r := range repairStates(t, c, i) {
								if time.Since(r.Committed.Time()) > 20*time.Second {
									return false
								}
							}
						}
						return true
					})
				}
				require.NoError(t, c.Node(1).Inspect(func(e *storage.Engine) error {
					for i := range keys {
						// Of every fifth key the row is gone, of the next one a bit has turned, and the one after that is gone
						// with its hash.
						if i%5 > 2 {
							continue
						}
						if err := e.LoseSiblings(partitionOf(repairKey(i)), i%5 == 1, i%5 == 2, repairKey(i)); err != nil {
							return err
						}
					}
					return nil
				}))
				time.Sleep(2 * time.Minute) // a scrub is due, and its repair done
				requireConverged(t, ctx, c)
				require.Len(t, eventualRows(t, c, 1), keys)
				until(t, time.Minute, "a replica heals for ever", func() bool {
					for _, r := range repairStates(t, c, 1) {
						if r.Healing {
							return false
						}
					}
					return true
				})
			})
		})
	}
}

// thirtyDays is longer than any store of hints keeps any.
const thirtyDays = 30 * 24 * time.Hour

// deletedWhileAway deletes keys while node 2 is away for thirty days, and returns once it is back.
func deletedWhileAway(t *testing.T, ctx context.Context, c *Cluster, keys int) {
	t.Helper()
	putAll(t, ctx, c, keys)
	requireConverged(t, ctx, c)
	require.NoError(t, c.Crash(100, 2))
	for i := range keys {
		_, err := c.Execute(ctx, i%2, &kv.Request{Op: kv.OpDelete, Level: kv.LevelEventual, Key: repairKey(i)})
		require.NoError(t, err)
	}
	time.Sleep(20 * time.Second)
	for i := range 3 {
		c.SetSkew(i, thirtyDays) // all clocks alike: time has passed
	}
	time.Sleep(20 * time.Second)
	require.Len(t, eventualRows(t, c, 0), keys, "nothing is collected while a replica is away")
	old, err := c.Total("kvstore_hints_dropped_total", "age")
	require.NoError(t, err)
	require.Equal(t, float64(keys), old, "no store of hints keeps any for as long")
	require.NoError(t, c.Start(ctx, 2))
	limit, cancel := context.WithTimeout(ctx, Convergence)
	defer cancel()
	waitReady(t, limit, c, Convergence)
	_, difference, err := c.WaitConverged(limit) // perhaps to nothing, if the tombstones are collected by then
	require.NoError(t, err)
	require.True(t, difference.Valid, "replicas differ: %v", difference.Anomalies)
}

func requireGone(t *testing.T, ctx context.Context, c *Cluster, keys int, nodes ...int) {
	t.Helper()
	for i := range keys {
		for _, n := range nodes {
			for _, level := range []kv.Level{kv.LevelLocal, kv.LevelEventual} {
				if level == kv.LevelEventual && len(nodes) < c.Size() {
					continue
				}
				res, err := get(ctx, c, n, level, string(repairKey(i)))
				require.NoError(t, err)
				require.False(t, res.Found, "%s was deleted and is back on n%d", repairKey(i), n+1)
			}
		}
	}
}

func TestNodeAwayForThirtyDaysResurrectsNothing(t *testing.T) {
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
				const keys = 30
				deletedWhileAway(t, ctx, c, keys)
				requireGone(t, ctx, c, keys, 0, 1, 2)
				until(t, 2*time.Minute, "tombstones stay for ever", func() bool {
					return len(eventualRows(t, c, 0))+len(eventualRows(t, c, 1))+len(eventualRows(t, c, 2)) == 0
				})
				requireGone(t, ctx, c, keys, 0, 1, 2)
			})
		})
	}
}

// A disk of before the deletes, put back underneath a node, is what the watermark cannot know of; the other replicas must not
// take what it brings.
func TestVersionFromBeforeTheWatermarkSpreadsNowhere(t *testing.T) {
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
				const keys = 10
				putAll(t, ctx, c, keys)
				requireConverged(t, ctx, c)
				old := eventualRows(t, c, 2)
				require.Len(t, old, keys)
				for i := range keys {
					_, err := c.Execute(ctx, i%2, &kv.Request{Op: kv.OpDelete, Level: kv.LevelEventual, Key: repairKey(i)})
					require.NoError(t, err)
				}
				until(t, 2*time.Minute, "tombstones stay for ever", func() bool {
					return len(eventualRows(t, c, 0))+len(eventualRows(t, c, 1))+len(eventualRows(t, c, 2)) == 0
				})
				require.NoError(t, c.Node(2).Inspect(func(e *storage.Engine) error {
					b := e.NewBatch()
					defer b.Close()
					for key, set := range old {
						b.SetSiblings(partitionOf([]byte(key)), []byte(key), set)
					}
					return e.ApplySync(b)
				}))
				time.Sleep(30 * time.Second)
				require.Empty(t, eventualRows(t, c, 0))
				require.Empty(t, eventualRows(t, c, 1))
				requireGone(t, ctx, c, keys, 0, 1)
			})
		})
	}
}

// With a watermark that rises all the time, tombstones go and late versions are discarded while faults go on.
func TestSiblingsAreTheCausalMaximaBehindARisingWatermark(t *testing.T) {
	verified{workload: verify.WorkloadCausal, nodes: 3, faults: Faults(), lane: 41, tune: quickRepair}.run(t)
}

func TestElementsOutliveARisingWatermarkAndPowerCuts(t *testing.T) {
	faults := []Fault{FaultPower, FaultBlackout, FaultKill, FaultCut, FaultNoise, FaultOneWay}
	verified{workload: verify.WorkloadSet, nodes: 3, faults: faults, lane: 42, tune: quickRepair}.run(t)
}

// Rows without a value that were just removed behind the watermark are missing by right: a crash right after it makes no replica
// heal, which would count for nothing while another one is away.
func TestCrashRightAfterACollectionIsNoLoss(t *testing.T) {
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			tune := func(cfg *node.Config) {
				quickRepair(cfg)
				cfg.AntiEntropy.Interval, cfg.AntiEntropy.WatermarkInterval = 4*time.Second, 30*time.Second
			}
			inTunedBubble(t, seed, 3, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
				const keys, dead = 100, 60 // a partition without any row is another matter
				putAll(t, ctx, c, keys)
				for i := range dead {
					_, err := c.Execute(ctx, i%3, &kv.Request{Op: kv.OpDelete, Level: kv.LevelEventual, Key: repairKey(i)})
					require.NoError(t, err)
				}
				victim := int(seed % 3)
				for began := time.Now(); len(eventualRows(t, c, victim)) == keys; time.Sleep(10 * time.Millisecond) {
					require.Less(t, time.Since(began), 2*time.Minute)
				}
				require.NoError(t, c.Crash(100, victim))
				require.NoError(t, c.Crash(100, (victim+1)%3)) // with whom it could be compared
				require.NoError(t, c.Start(ctx, victim))
				waitReady(t, ctx, c, Convergence)
				time.Sleep(10 * time.Second)
				for p, r := range repairStates(t, c, victim) {
					require.False(t, r.Healing, "partition %d", p)
				}
				_, err := eventualPut(ctx, c, victim, "after", "v", 2, false)
				require.NoError(t, err)
			})
		})
	}
}
