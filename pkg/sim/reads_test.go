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
)

// others returns all nodes of a cluster of three but one.
func others(of int) []int { return []int{(of + 1) % 3, (of + 2) % 3} }

func quorumGet(ctx context.Context, c *Cluster, at int, key string, r int) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.Execute(ctx, at, &kv.Request{Op: kv.OpGet, Level: kv.LevelEventual, Key: []byte(key), Quorum: kv.Quorum{R: r}})
}

func quorumPut(ctx context.Context, c *Cluster, at int, key, value string, w int) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.Execute(ctx, at, &kv.Request{
		Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte(key), Value: []byte(value), Quorum: kv.Quorum{W: w},
	})
}

// everyKey reads a whole listing page by page.
func everyKey(t *testing.T, ctx context.Context, c *Cluster, at int, prefix string, limit int) []string {
	t.Helper()
	var out []string
	var after []byte
	for {
		res, err := c.Execute(ctx, at, &kv.Request{
			Op: kv.OpList, Level: kv.LevelEventual, List: &kv.ListQuery{Prefix: []byte(prefix), After: after, Limit: limit},
		})
		require.NoError(t, err)
		require.Equal(t, kv.LevelEventual, res.Level)
		for _, item := range res.Listed {
			out = append(out, string(item.Key)+"="+string(item.Value))
			after = item.Key
		}
		if !res.More {
			return out
		}
	}
}

func TestListingsShowWhatBothLanesAcknowledged(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		away := int(c.opts.Seed) % 3
		c.Cut([]int{away}, others(away))
		var want []string
		for i := range 60 {
			// Keys that others begin with, one after another, at the edge of a page.
			key := fmt.Sprintf("list/%d", i)
			level := kv.LevelEventual
			if i%5 == 0 {
				level = kv.LevelStrong
			}
			until(t, 10*time.Second, "writes go on at the majority's side", func() bool {
				_, err := put(ctx, c, others(away)[i%2], level, key, "v")
				return err == nil
			})
			want = append(want, key+"=v")
		}
		c.Heal()
		slices.SortFunc(want, func(a, b string) int { // in the order of the keys
			return slices.Compare([]byte(a[:len(a)-2]), []byte(b[:len(b)-2]))
		})
		waitReady(t, ctx, c, 40*time.Second)
		for at := range 3 {
			for _, limit := range []int{1, 7, 1000} {
				require.Equal(t, want, everyKey(t, ctx, c, at, "list/", limit), "asked at node %d, %d a page", at, limit)
			}
		}
	})
}

func TestReadsWhoseQuorumOverlapsTheWritesSeeThem(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		away := int(c.opts.Seed) % 3
		c.Cut([]int{away}, others(away))
		for i := range 20 {
			_, err := quorumPut(ctx, c, others(away)[i%2], fmt.Sprintf("k%d", i), "v", 2)
			require.NoError(t, err)
		}
		c.Heal()
		until(t, 40*time.Second, "the node that was away is asked, and asks", func() bool {
			_, err := quorumGet(ctx, c, away, "none", 2)
			return err == nil
		})
		for i := range 20 {
			got, err := quorumGet(ctx, c, away, fmt.Sprintf("k%d", i), 2)
			require.NoError(t, err)
			require.Equal(t, "v", string(got.Value), "key %d was acknowledged by two of three and read from two", i)
		}
	})
}

func TestBlockingReadRepairMakesReadsMonotonic(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("mono/"), ReadRepair: kv.RepairBlocking}))
		time.Sleep(2 * time.Second) // until every node has applied it
		writer := int(c.opts.Seed) % 3
		for i := range 3 {
			key := fmt.Sprintf("mono/%d", i)
			// One node alone has the write. Once a quorum has shown it, no other may fail to.
			c.Cut([]int{writer}, others(writer))
			_, err := quorumPut(ctx, c, writer, key, "v", 1)
			require.NoError(t, err)
			c.Heal()
			until(t, 40*time.Second, "the writer is reached again", func() bool {
				got, err := quorumGet(ctx, c, writer, key, 2)
				return err == nil && string(got.Value) == "v"
			})
			c.Cut([]int{writer}, others(writer))
			for _, at := range others(writer) {
				got, err := quorumGet(ctx, c, at, key, 2)
				require.NoError(t, err)
				require.Equal(t, "v", string(got.Value), "a quorum had shown it before")
			}
			c.Heal()
			waitReady(t, ctx, c, 40*time.Second)
		}
	})
}

// Neither hints nor exchange do it here: what the reads show a replica to lack, read repair brings, tombstones included, and
// after it every replica alone knows.
func TestReadRepairAloneBringsWhatAReplicaMissed(t *testing.T) {
	tune := func(cfg *node.Config) {
		hintsOnly(cfg)
		cfg.Hints.BytesMax = 1
	}
	inHintedBubble(t, 3, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
		const keys = 40
		putAll(t, ctx, c, keys)
		requireEqualReplicas(t, ctx, c)
		away := int(c.opts.Seed) % 3
		require.NoError(t, c.Crash(100, away))
		time.Sleep(5 * time.Second)
		for i := range keys {
			r := &kv.Request{Op: kv.OpPut, Level: kv.LevelEventual, Key: repairKey(i), Value: []byte("new")}
			if i%4 == 0 {
				r = &kv.Request{Op: kv.OpDelete, Level: kv.LevelEventual, Key: repairKey(i)}
			}
			_, err := c.Execute(ctx, others(away)[i%2], r)
			require.NoError(t, err)
		}
		require.NoError(t, c.Start(ctx, away))
		waitReady(t, ctx, c, Convergence)
		for i := range keys {
			_, err := quorumGet(ctx, c, i%3, string(repairKey(i)), 3)
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		for i := range keys {
			got, err := get(ctx, c, away, kv.LevelLocal, string(repairKey(i)))
			require.NoError(t, err)
			require.Equal(t, i%4 != 0, got.Found, "%s", repairKey(i))
			require.True(t, !got.Found || string(got.Value) == "new", "%s has its old value", repairKey(i))
		}
		repairs, err := c.Total("kvstore_read_repair_total", "")
		require.NoError(t, err)
		require.Equal(t, float64(keys), repairs, "one replica lacked each key once")
		requireEqualReplicas(t, ctx, c)
	})
}
