package consensus

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// alter changes a row of a node's S as no entry did.
func (c *cluster) alter(id kv.NodeID, key, value string) {
	c.t.Helper()
	n := c.nodes[id]
	row, _, err := n.engine.State().Strong(1, []byte(key))
	require.NoError(c.t, err)
	row.Value, row.Deleted = []byte(value), false
	b := n.engine.NewBatch()
	defer b.Close()
	b.SetStrong(1, []byte(key), row)
	require.NoError(c.t, n.engine.ApplySync(b))
}

// damage flips a bit in a row of S while the node is down.
func (c *cluster) damage(id kv.NodeID, key string) {
	c.t.Helper()
	n := c.nodes[id]
	require.NoError(c.t, c.stop(id))
	db, err := pebble.Open("data", &pebble.Options{FS: n.fs, FormatMajorVersion: pebble.FormatNewest})
	require.NoError(c.t, err)
	at := append([]byte{1, 0, 0, 0, 1, 0x20}, key...)
	row, closer, err := db.Get(at)
	require.NoError(c.t, err)
	row = bytes.Clone(row)
	require.NoError(c.t, closer.Close())
	row[len(row)/2] ^= 1
	require.NoError(c.t, db.Set(at, row, pebble.Sync))
	require.NoError(c.t, db.Close())
	c.start(id)
}

// check has the group checked from a node.
func (c *cluster) check(id kv.NodeID) CheckResult {
	c.t.Helper()
	res, err := c.nodes[id].store.Check(c.timeout(30*time.Second), 1)
	require.NoError(c.t, err)
	require.True(c.t, res.Done)
	return res
}

// violations sums up what all nodes have found since they run.
func (c *cluster) violations() float64 {
	sum := 0.0
	for _, id := range c.ids {
		if s, _ := c.nodes[id].life(); s != nil {
			sum += float64(s.Violations())
		}
	}
	return sum
}

// equalChecks is how often a node that led has found all states equal since it runs.
func (c *cluster) equalChecks(id kv.NodeID) float64 {
	return testutil.ToFloat64(c.nodes[id].store.metrics.checks.WithLabelValues(checkEqual))
}

// awaitSound waits until a quarantine that has begun on the node is over.
func (c *cluster) awaitSound(id kv.NodeID, limit time.Duration) {
	c.t.Helper()
	for start := time.Now(); time.Since(start) < limit; time.Sleep(20 * time.Millisecond) {
		if s, _ := c.nodes[id].life(); s != nil {
			if generation, ok := s.Sound(1); ok && generation > 0 {
				return
			}
		}
	}
	c.t.Fatalf("node %d is not rebuilt after %v: %+v", id, limit, c.status(id))
}

// checked runs f with three nodes that hold some keys in one group and hash them only when asked.
func checked(t *testing.T, size int, f func(c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, size, time.Millisecond)
		tinyLogs(&c.cfg)
		c.cfg.CheckTicks = 0
		defer c.close()
		c.startAll()
		c.bootstrap(1)
		c.awaitLeader(1, 5*time.Second)
		c.overwrite(60, 20)
		f(c)
	})
}

func TestEqualReplicasAgree(t *testing.T) {
	checked(t, 3, func(c *cluster) {
		for _, id := range c.ids {
			res := c.check(id)
			require.Equal(t, c.ids, res.Agree)
			require.Empty(t, res.Differ)
			require.Empty(t, res.Silent)
		}
		require.Zero(t, c.violations())
	})
}

func TestAlteredFollowerIsFoundQuarantinedAndRebuilt(t *testing.T) {
	checked(t, 3, func(c *cluster) {
		victim := c.follower()
		c.alter(victim, value(3), "not what was written")
		require.Equal(t, []kv.NodeID{victim}, c.check(c.leader(1)).Differ)
		require.Equal(t, 1.0, c.violations(), "counted once, by the leader")
		c.awaitSound(victim, 10*time.Second)
		c.awaitCaughtUp(victim, 5*time.Second)
		require.Equal(t, uint64(1), c.status(victim).SnapshotsReceived)
		require.Equal(t, c.ids, c.check(victim).Agree)
		c.overwrite(60, 20)
		c.awaitCaughtUp(victim, 5*time.Second)
		require.Equal(t, 1.0, c.violations())
	})
}

func TestAlteredLeaderStepsAsideAndAnswersNothing(t *testing.T) {
	checked(t, 3, func(c *cluster) {
		victim := c.leader(1)
		store := c.nodes[victim].store
		c.alter(victim, value(3), "not what was written")
		c.pace(20) // bytes a second: it will take a while
		result := make(chan CheckResult, 1)
		go func() {
			res, _ := store.Check(c.timeout(time.Minute), 1)
			result <- res
		}()
		for start := time.Now(); c.status(victim).Quarantine == ""; time.Sleep(time.Millisecond) {
			require.Less(t, time.Since(start), 5*time.Second)
		}
		require.Error(t, store.ReadBarrier(c.timeout(time.Second), 1), "it must not read")
		_, err := store.Put(c.timeout(time.Second), 0, WriteOp{Key: []byte("k")})
		require.Error(t, err)
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		start := time.Now()
		for c.leader(1) == victim || c.leader(1) == kv.NoNode {
			require.Less(t, time.Since(start), time.Second, "handing over takes no election timeout")
			time.Sleep(time.Millisecond)
		}
		c.overwrite(20, 20)
		require.NotEmpty(t, c.status(victim).Quarantine, "nothing can have been fetched yet")
		for range 100 {
			require.ErrorIs(t, store.ReadBarrier(c.timeout(time.Second), 1), ErrQuarantined)
			require.NotEqual(t, victim, c.leader(1))
			time.Sleep(50 * time.Millisecond)
		}
		c.pace(1 << 30)
		c.awaitSound(victim, 30*time.Second)
		c.awaitCaughtUp(victim, 5*time.Second)
		require.Equal(t, 1.0, c.violations())
		<-result
	})
}

func TestQuarantineOutlivesRestarts(t *testing.T) {
	checked(t, 3, func(c *cluster) {
		rng := rand.New(rand.NewPCG(1, 2))
		victim := c.follower()
		c.alter(victim, value(3), "not what was written")
		c.pace(20)
		require.Equal(t, []kv.NodeID{victim}, c.check(c.leader(1)).Differ)
		for start := time.Now(); c.status(victim).Quarantine == ""; time.Sleep(time.Millisecond) {
			require.Less(t, time.Since(start), 10*time.Second)
		}
		time.Sleep(100 * time.Millisecond) // the note is on its way to the disk
		for round := range 4 {
			c.overwrite(30, 20)
			if round%2 == 0 {
				c.powerCut(0, rng, victim)
			} else {
				require.NoError(t, c.stop(victim))
			}
			c.start(victim)
			require.NotEmpty(t, c.status(victim).Quarantine)
			time.Sleep(3 * time.Second)
			require.Error(t, c.nodes[victim].store.ReadBarrier(c.timeout(time.Second), 1))
			c.pace(20)
		}
		c.pace(1 << 30)
		c.awaitSound(victim, time.Minute)
		c.awaitCaughtUp(victim, 5*time.Second)
		require.Equal(t, c.ids, c.check(victim).Agree)
	})
}

func TestPowerCutsWhileAReplicaIsRebuiltLoseNothing(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			checked(t, 3, func(c *cluster) {
				rng := rand.New(rand.NewPCG(seed, 7))
				victim := c.follower()
				c.alter(victim, value(3), "not what was written")
				require.Equal(t, []kv.NodeID{victim}, c.check(c.leader(1)).Differ)
				for range 5 {
					c.overwrite(rng.IntN(5), 20)
					time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
					c.powerCut(rng.IntN(101), rng, victim)
					c.start(victim)
				}
				for start := time.Now(); c.status(victim).Quarantine != ""; time.Sleep(20 * time.Millisecond) {
					require.Less(t, time.Since(start), time.Minute)
				}
				c.awaitCaughtUp(victim, 20*time.Second)
				require.Equal(t, c.ids, c.check(victim).Agree)
			})
		})
	}
}

func TestWithoutAMajorityNobodyIsQuarantined(t *testing.T) {
	for _, size := range []int{2, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			checked(t, size, func(c *cluster) {
				for _, id := range c.ids {
					c.alter(id, value(3), fmt.Sprint("as node ", id, " has it"))
				}
				res := c.check(c.leader(1))
				require.Equal(t, c.ids, res.Split)
				require.Empty(t, res.Differ)
				require.Equal(t, 1.0, c.violations())
				time.Sleep(10 * time.Second)
				for _, id := range c.ids {
					require.Empty(t, c.status(id).Quarantine)
					require.NoError(t, c.nodes[id].store.ReadBarrier(c.timeout(time.Second), 1))
				}
			})
		})
	}
}

func TestMinorityIsFoundWhileOneOfFiveIsAway(t *testing.T) {
	checked(t, 5, func(c *cluster) {
		others := c.others(c.leader(1))
		away, victim := others[0], others[1]
		require.NoError(t, c.stop(away))
		c.alter(victim, value(3), "not what was written")
		ctx := c.timeout(5 * time.Second)
		res, err := c.nodes[c.leader(1)].store.Check(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, []kv.NodeID{victim}, res.Differ)
		require.Equal(t, []kv.NodeID{away}, res.Silent)
		c.awaitSound(victim, 10*time.Second)
		c.awaitCaughtUp(victim, 5*time.Second)
	})
}

func TestLeadersCheckByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.cfg.CheckTicks = 100
		defer c.close()
		c.startAll()
		c.bootstrap(1, 2, 3)
		c.awaitLeader(1, 5*time.Second)
		c.overwrite(10, 10)
		victim := c.follower()
		c.alter(victim, value(3), "not what was written")
		c.awaitSound(victim, 15*time.Second)
		c.awaitCaughtUp(victim, 5*time.Second)
		time.Sleep(time.Minute)
		total := 0.0
		for _, n := range c.nodes {
			total += testutil.ToFloat64(n.store.metrics.checks.WithLabelValues(checkEqual))
		}
		require.Greater(t, total, 12.0)
		require.Equal(t, 1.0, c.violations())
	})
}

func TestUnreadableRowQuarantinesAndIsRebuilt(t *testing.T) {
	for _, met := range []string{"by a check", "by an entry", "by a reader"} {
		t.Run(met, func(t *testing.T) {
			checked(t, 3, func(c *cluster) {
				victim := c.follower()
				n := c.nodes[victim]
				c.damage(victim, value(3))
				switch met {
				case "by a check":
					c.check(c.leader(1))
				case "by an entry":
					_, err := c.nodes[c.leader(1)].store.Delete(c.timeout(time.Second), 0, WriteOp{Key: []byte(value(3))})
					require.NoError(t, err)
				case "by a reader":
					_, _, err := n.engine.State().Strong(1, []byte(value(3)))
					require.ErrorIs(t, err, storage.ErrCorruption)
					n.store.Distrust(1, err)
				}
				c.awaitSound(victim, 20*time.Second)
				c.awaitCaughtUp(victim, 5*time.Second)
				require.Zero(t, c.violations(), "damage that shows itself is no silent difference")
				require.Equal(t, c.ids, c.check(victim).Agree)
			})
		})
	}
}
