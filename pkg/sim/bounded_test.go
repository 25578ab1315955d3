package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

func boundedly(key string, limit time.Duration) *kv.Request {
	return &kv.Request{Op: kv.OpGet, Level: kv.LevelBounded, Key: []byte(key), MaxStaleness: limit}
}

// mustPut puts a key, again until it succeeds.
func mustPut(t *testing.T, ctx context.Context, c *Cluster, at int, level kv.Level, key, value string) {
	t.Helper()
	until(t, 20*time.Second, "a put", func() bool {
		_, err := put(ctx, c, at, level, key, value)
		return err == nil
	})
}

// What a replica was proven to hold stays true when it is cut off, and grows older.
func TestReplicaThatIsCutOffAnswersBoundedReadsUntilItsProofIsTooOld(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		const limit = 4 * time.Second
		lone := int(c.opts.Seed) % 3
		for i := range 8 {
			mustPut(t, ctx, c, i%3, kv.LevelStrong, fmt.Sprint("k", i), "old")
			until(t, 5*time.Second, "the replica to answer alone: nothing is written eventually", func() bool {
				res, err, _ := timed(ctx, c, lone, boundedly(fmt.Sprint("k", i), 10*time.Millisecond))
				require.Nil(t, err)
				require.Equal(t, kv.LevelBounded, res.Level)
				return string(res.Value) == "old" && slices.Equal(res.Replicas, []kv.NodeID{c.nodes[lone].id})
			})
		}
		c.Cut([]int{lone}, others(lone))
		cut := time.Now()
		var mu sync.Mutex // guards acked
		acked := make([]time.Time, 8)
		var writing sync.WaitGroup
		defer writing.Wait()
		writing.Go(func() {
			for i := 0; i < len(acked) && time.Since(cut) < limit; {
				if _, err := put(ctx, c, others(lone)[i%2], kv.LevelStrong, fmt.Sprint("k", i), "new"); err != nil {
					time.Sleep(100 * time.Millisecond)
					continue
				}
				mu.Lock()
				acked[i] = time.Now()
				mu.Unlock()
				i++
			}
		})
		served, refused := 0, 0
		for time.Since(cut) < limit+3*time.Second {
			i := served % 8
			key := fmt.Sprint("k", i)
			begun := time.Now()
			res, err, took := timed(ctx, c, lone, boundedly(key, limit))
			if err == nil {
				served++
				require.LessOrEqual(t, res.Staleness, limit)
				require.LessOrEqual(t, time.Since(cut), limit+time.Second)
				mu.Lock()
				at := acked[i]
				mu.Unlock()
				if !at.IsZero() && string(res.Value) != "new" {
					require.False(t, at.Before(begun.Add(-res.Staleness)), "it says %v and lacks what is %v old", res.Staleness, begun.Sub(at))
				}
			} else {
				refused++
				require.Contains(t, []kv.Code{kv.CodeQuorumUnavailable, kv.CodeNoLeader}, err.Code, err.Detail)
				require.LessOrEqual(t, took, 1100*time.Millisecond, err.Detail)
				require.Greater(t, err.Staleness, limit, err.Detail)
				require.Equal(t, 2, err.Required)
				require.Equal(t, 1, err.Alive)
				weaker := boundedly(key, limit)
				weaker.Fallback = kv.LevelLocal
				res, err, took := timed(ctx, c, lone, weaker)
				require.Nil(t, err)
				require.Equal(t, kv.LevelLocal, res.Level)
				require.LessOrEqual(t, took, 1100*time.Millisecond)
			}
			time.Sleep(20 * time.Millisecond)
		}
		require.Greater(t, served, 20, "a proof outlasts the cut by half of what is allowed at least")
		require.Positive(t, refused)
		writing.Wait()
		require.False(t, acked[7].IsZero(), "the others did not go on: the run proves nothing")
		c.Heal()
		waitReady(t, ctx, c, 30*time.Second)
		for i := range 8 {
			res, err, _ := timed(ctx, c, lone, boundedly(fmt.Sprint("k", i), 10*time.Millisecond))
			require.Nil(t, err)
			require.Equal(t, "new", string(res.Value))
		}
	})
}

// The replica that holds nothing is each of the three in turn, and so is the one that is asked.
func TestBoundedReadsSeeEventualWritesAcknowledgedBeforeTheBound(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		for reader := range 3 {
			for without := range 3 {
				key := fmt.Sprintf("{%d-%d}k", reader, without)
				writer := (without + 1) % 3
				_, err, _ := timed(ctx, c, reader, boundedly(key, time.Minute))
				require.Nil(t, err) // there is a proof, and it is clean or not
				hushed(c, writer, without, func() {
					_, err := eventualPut(ctx, c, writer, key, "v", 2, false)
					require.NoError(t, err)
				})
				require.Empty(t, heldAt(t, c, without, key), "the script went wrong")
				time.Sleep(50 * time.Millisecond)
				res, err, _ := timed(ctx, c, reader, boundedly(key, 40*time.Millisecond))
				require.Nil(t, err)
				require.Equal(t, "v", string(res.Value), "read at n%d what n%d does not hold", reader+1, without+1)
				list, err, _ := timed(ctx, c, reader, &kv.Request{
					Op: kv.OpList, Level: kv.LevelBounded, MaxStaleness: 40 * time.Millisecond, List: &kv.ListQuery{Prefix: []byte(key), Limit: 10},
				})
				require.Nil(t, err)
				require.Len(t, list.Listed, 1, "listed at n%d what n%d does not hold", reader+1, without+1)
				require.LessOrEqual(t, list.Staleness, 40*time.Millisecond)
			}
		}
	})
}

// Once the log has taken in what was written eventually, a replica answers alone again.
func TestReplicaAnswersBoundedReadsAloneOnceEverythingIsSettled(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		_, err := eventualPut(ctx, c, 0, "k", "v", 3, false)
		require.NoError(t, err)
		res, failed, _ := timed(ctx, c, 1, boundedly("k", time.Millisecond))
		require.Nil(t, failed)
		require.Equal(t, "v", string(res.Value))
		require.Len(t, res.Replicas, 2, "a majority")
		_, err = strongDo(ctx, c, 2, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
		require.NoError(t, err)
		until(t, 20*time.Second, "the replica to answer alone", func() bool {
			res, err, _ := timed(ctx, c, 1, boundedly("k", time.Millisecond))
			require.Nil(t, err)
			require.Equal(t, "v", string(res.Value))
			return len(res.Replicas) == 1
		})
	})
}

// Nodes that hold nothing of a key, and batches, get the same answers.
func TestBoundedReadsFindTheirWayFromAnyNode(t *testing.T) {
	runEach(t, fewSeeds(), 5, func(t *testing.T, ctx context.Context, c *Cluster) {
		var keys []string
		for i := range 10 {
			keys = append(keys, fmt.Sprint("k", i))
			mustPut(t, ctx, c, i%5, kv.LevelStrong, keys[i], "v")
		}
		away := 0
		for at := range 5 {
			batch := make([]kv.Request, len(keys))
			for i, key := range keys {
				res, err, _ := timed(ctx, c, at, boundedly(key, time.Second))
				require.Nil(t, err)
				require.Equal(t, "v", string(res.Value))
				require.LessOrEqual(t, res.Staleness, time.Second)
				if !slices.Contains(ownersOf(t, c, key), c.names[at]) {
					away++
					require.NotEqual(t, c.nodes[at].id, res.Coordinator)
				}
				batch[i] = *boundedly(key, time.Second)
			}
			for i, a := range c.ExecuteEach(ctx, at, batch) {
				require.Nil(t, a.Err)
				require.Equal(t, "v", string(a.Response.Value), keys[i])
				require.Equal(t, kv.LevelBounded, a.Response.Level)
			}
		}
		require.Positive(t, away, "every node holds everything: the run proves nothing")
		_, err, _ := timed(ctx, c, 0, &kv.Request{Op: kv.OpPut, Level: kv.LevelBounded, Key: []byte("k"), Value: []byte("v")})
		require.Equal(t, kv.CodeBadRequest, err.Code)
	})
}

// ownersOf returns the names of those who replicate the key.
func ownersOf(t *testing.T, c *Cluster, key string) []string {
	t.Helper()
	for _, p := range c.Node(0).Partitions() {
		if p.Partition == ring.PartitionOf([]byte(key), c.opts.Partitions) {
			return p.Replicas
		}
	}
	t.Fatalf("no partition has %s", key)
	return nil
}
