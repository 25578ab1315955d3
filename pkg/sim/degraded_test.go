package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// timed runs a request with ten seconds to go, and returns how long it took.
func timed(ctx context.Context, c *Cluster, at int, r *kv.Request) (kv.Response, *kv.Error, time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	start := time.Now()
	res, err := c.Execute(ctx, at, r)
	return res, kv.AsError(err), time.Since(start)
}

func strongly(op kv.Op, key string, fallback kv.Level) *kv.Request {
	r := &kv.Request{Op: op, Level: kv.LevelStrong, Key: []byte(key), Fallback: fallback}
	if op == kv.OpPut {
		r.Value = []byte("v")
	}
	return r
}

// A node that lost its majority says so within a second, from the moment of the cut on, and what still works. It must not take
// gossip to notice, nor the deadline to pass.
func TestNodeWithoutAMajorityAnswersStrongRequestsWithinASecond(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		lone := int(c.opts.Seed) % 3
		for i := range 24 { // keys of groups that it leads, and of others
			until(t, 10*time.Second, "a put before the cut", func() bool {
				_, err := put(ctx, c, i%3, kv.LevelStrong, fmt.Sprint("k", i), "v")
				return err == nil
			})
		}
		c.Cut([]int{lone}, others(lone))
		for _, wait := range []time.Duration{0, 100 * time.Millisecond, time.Second, 2 * time.Second, 10 * time.Second} {
			time.Sleep(wait)
			began := time.Now()
			for i := range 8 {
				for _, op := range []kv.Op{kv.OpGet, kv.OpPut} {
					if op == kv.OpPut && wait < time.Second {
						continue // one that is sent before the cut is noticed is unknown, and waits for the truth
					}
					_, err, took := timed(ctx, c, lone, strongly(op, fmt.Sprint("k", i), kv.LevelUnset))
					require.NotNil(t, err, "%s of k%d was answered without a majority", op, i)
					require.Contains(t, []kv.Code{kv.CodeQuorumUnavailable, kv.CodeNoLeader}, err.Code, err.Detail)
					require.Equal(t, kv.OutcomeNotApplied, err.Outcome)
					require.Equal(t, 2, err.Required)
					require.Equal(t, 1, err.Alive)
					require.Contains(t, err.Detail, "local still work")
					require.LessOrEqual(t, took, 1100*time.Millisecond, "%s of k%d, %v after the cut: %s", op, i, time.Since(began)+wait, err.Detail)
				}
			}
		}
		c.Heal()
		waitReady(t, ctx, c, 20*time.Second)
		for i := range 8 {
			_, err, _ := timed(ctx, c, lone, strongly(kv.OpGet, fmt.Sprint("k", i), kv.LevelUnset))
			require.Nil(t, err)
		}
	})
}

// Losing a leader is no loss of the majority: requests wait for the election, as if nothing had happened.
func TestRequestsWaitForAnElection(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		gone := int(c.opts.Seed) % 3
		for i := range 12 {
			until(t, 10*time.Second, "a put before the crash", func() bool {
				_, err := put(ctx, c, i%3, kv.LevelStrong, fmt.Sprint("k", i), "v")
				return err == nil
			})
		}
		require.NoError(t, c.Crash(100, gone))
		for i := range 12 {
			_, err, _ := timed(ctx, c, others(gone)[i%2], strongly(kv.OpGet, fmt.Sprint("k", i), kv.LevelUnset))
			require.Nil(t, err)
		}
	})
}

// With a fallback, a node that lost its majority answers at the weaker level, and says so.
func TestFallbackAnswersAtTheWeakerLevelAndSaysSo(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		lone := int(c.opts.Seed) % 3
		until(t, 10*time.Second, "a put before the cut", func() bool {
			_, err := put(ctx, c, lone, kv.LevelStrong, "k", "old")
			return err == nil
		})
		res, err, _ := timed(ctx, c, lone, strongly(kv.OpGet, "k", kv.LevelLocal))
		require.Nil(t, err)
		require.Equal(t, kv.LevelStrong, res.Level, "nothing is degraded without need")

		c.Cut([]int{lone}, others(lone))
		time.Sleep(time.Second)
		res, err, took := timed(ctx, c, lone, strongly(kv.OpGet, "k", kv.LevelLocal))
		require.Nil(t, err)
		require.Equal(t, kv.LevelLocal, res.Level)
		require.True(t, res.Found)
		require.Less(t, took, 2*time.Second)

		res, err, took = timed(ctx, c, lone, strongly(kv.OpPut, "k", kv.LevelLocal))
		require.Nil(t, err)
		require.Equal(t, kv.LevelLocal, res.Level)
		require.Equal(t, 1, res.Acks)
		require.Less(t, took, 2*time.Second)

		_, err, _ = timed(ctx, c, lone, strongly(kv.OpGet, "k", kv.LevelEventual))
		require.NotNil(t, err, "two of three replicas cannot be read")
		require.Contains(t, err.Detail, "level strong: ")
		require.Contains(t, err.Detail, "level eventual: ")
	})
}

// A strong write whose entry left its leader before the network broke may be committed later. Falling back then would write
// twice: the value would come back after another write replaced it.
func TestStrongWriteOfUnknownOutcomeDoesNotFallBack(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		unknown := 0
		for round := range 6 {
			lone := round % 3
			key := fmt.Sprint("k", round)
			until(t, 20*time.Second, "a put before the cut", func() bool {
				_, err := put(ctx, c, lone, kv.LevelStrong, key, "old")
				return err == nil
			})
			c.Cut([]int{lone}, others(lone))
			res, err, took := timed(ctx, c, lone, strongly(kv.OpPut, key, kv.LevelLocal))
			switch {
			case err == nil:
				require.Equal(t, kv.LevelLocal, res.Level, "a node alone commits nothing")
				require.Less(t, took, 6*time.Second)
				local, gerr, _ := timed(ctx, c, lone, strongly(kv.OpGet, key, kv.LevelLocal))
				require.Nil(t, gerr)
				require.Equal(t, "v", string(local.Value))
			case err.Outcome == kv.OutcomeUnknown:
				unknown++
				local, gerr, _ := timed(ctx, c, lone, strongly(kv.OpGet, key, kv.LevelLocal))
				require.Nil(t, gerr)
				require.Equal(t, "old", string(local.Value), "an unknown write was made at the weaker level, too")
			}
			c.Heal()
			waitReady(t, ctx, c, 30*time.Second)
		}
		require.Positive(t, unknown, "no write was unknown: the run proves nothing")
	})
}
