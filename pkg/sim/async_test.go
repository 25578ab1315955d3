package sim

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// asyncGrace is after how long an acknowledged write of an async prefix must survive a power cut: the bound after which its sync is asked
// for, the sync itself, and those that are under way before it.
const asyncGrace = 10*time.Millisecond + 3*asyncSync

// asyncSync is how long a sync takes in the test.
const asyncSync = 20 * time.Millisecond

// acked is what was acknowledged of one key, whose values are numbers that rise.
type acked struct {
	value int
	at    time.Time
}

// countUp writes one number after another to a key, through one node after another, until stop is closed. It returns what was
// acknowledged, and the number that it would have written next.
func countUp(ctx context.Context, c *Cluster, key string, from int, stop <-chan struct{}) (all []acked, next int) {
	for i := from; ; i++ {
		select {
		case <-stop:
			return all, i
		default:
		}
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		res, err := c.Execute(ctx, i%c.Size(), &kv.Request{
			Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte(key), Value: []byte(strconv.Itoa(i)), Quorum: kv.Quorum{W: 1 + i%2},
		})
		cancel()
		if err == nil && res.Outcome == kv.OutcomeApplied {
			all = append(all, acked{i, time.Now()})
		}
	}
}

// latest returns the last number that was acknowledged by the time.
func latest(all []acked, by time.Time) (value int) {
	for _, a := range all {
		if !a.at.After(by) {
			value = a.value
		}
	}
	return value
}

// The power of all nodes goes while keys of a prefix with durability=async are written, others beside them. What was acknowledged of the
// others is there, and of the async ones what was acknowledged more than a moment ago; nothing is read that was not written, all
// replicas come to the same, and the keys can be written as before.
func TestPowerCutTakesOnlyTheLastMomentOfAsyncPrefixes(t *testing.T) {
	lost := 0
	for _, survives := range []int{0, 50} {
		t.Run(fmt.Sprintf("unsynced=%d%%", survives), func(t *testing.T) {
			runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
				require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("async:"), Durability: kv.DurabilityAsync}))
				time.Sleep(time.Second)
				for i := range c.Size() {
					c.SetSyncDelay(i, asyncSync)
				}
				keys := []string{"async:a", "async:b", "async:c", "sync:a", "sync:b", "sync:c"}
				from := make([]int, len(keys))
				for i := range from {
					from[i] = 1
				}
				for range 2 {
					lost += cutPower(t, ctx, c, survives, keys, from)
				}
			})
		})
	}
	require.Positive(t, lost, "no write was lost: none was acknowledged before it was durable")
}

// cutPower writes for a while, cuts the power of all nodes and returns how many keys have lost what was acknowledged last.
func cutPower(t *testing.T, ctx context.Context, c *Cluster, survives int, keys []string, from []int) (lost int) {
	t.Helper()
	all := make([][]acked, len(keys))
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i, key := range keys {
		writers.Go(func() { all[i], from[i] = countUp(ctx, c, key, from[i], stop) })
	}
	time.Sleep(time.Second)
	close(stop)
	cut := time.Now()
	require.NoError(t, c.Crash(survives, 0, 1, 2))
	writers.Wait()
	require.NoError(t, c.StartAll(ctx))
	waitReady(t, ctx, c, 20*time.Second)
	for i, key := range keys {
		res, err := c.Execute(ctx, 0, &kv.Request{Op: kv.OpGet, Level: kv.LevelEventual, Key: []byte(key), Quorum: kv.Quorum{R: 3}})
		require.NoError(t, err)
		got, err := strconv.Atoi(string(res.Value))
		require.NoError(t, err)
		require.Less(t, got, from[i], "%s was never written so", key)
		last := latest(all[i], cut)
		floor := last
		if i < len(keys)/2 {
			floor = latest(all[i], cut.Add(-asyncGrace))
		}
		require.GreaterOrEqual(t, got, floor, "%s: what was acknowledged is lost", key)
		if got < last {
			lost++
		}
		res, err = put(ctx, c, i%3, kv.LevelStrong, key, strconv.Itoa(from[i]))
		require.NoError(t, err)
		require.Equal(t, kv.OutcomeApplied, res.Outcome)
		from[i]++
		for at := range c.Size() {
			res, err := get(ctx, c, at, kv.LevelStrong, key)
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(from[i]-1), string(res.Value))
		}
	}
	return lost
}
