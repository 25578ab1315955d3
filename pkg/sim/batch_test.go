package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func batchKey(i int) []byte { return fmt.Appendf(nil, "b:%03d", i) }

// batchOf is a put and a get of each key, and for every third key a second put before the get.
func batchOf(levels []kv.Level, keys int, value string) (out []kv.Request) {
	for _, put := range []string{value, value + "-again"} {
		for i := range keys {
			if put == value || i%3 == 0 {
				out = append(out, kv.Request{Op: kv.OpPut, Level: levels[i%len(levels)], Key: batchKey(i), Value: []byte(put)})
			}
		}
	}
	for i := range keys {
		out = append(out, kv.Request{Op: kv.OpGet, Level: levels[i%len(levels)], Key: batchKey(i)})
	}
	return out
}

func wantOf(i int, value string) string {
	if i%3 == 0 {
		return value + "-again"
	}
	return value
}

// Any node serves a batch of keys of which it owns some, and operations on one key take effect in their order.
func TestBatchOfAnyLevelsAtAnyNodeKeepsTheOrderOfEachKey(t *testing.T) {
	inTunedBubble(t, 1, 5, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		for name, levels := range map[string][]kv.Level{
			"eventual": {kv.LevelEventual}, "local": {kv.LevelLocal}, "mixed": {kv.LevelStrong, kv.LevelEventual, kv.LevelUnset},
		} {
			for at := range c.Size() {
				value := fmt.Sprintf("%s-%d", name, at)
				requests := batchOf(levels, 60, value)
				for i := range requests {
					requests[i].Key = append([]byte(name), requests[i].Key...)
				}
				for i, a := range c.ExecuteEach(ctx, at, requests) {
					require.Nil(t, a.Err, "operation %d of %s at node %d", i, name, at+1)
					r := &requests[i]
					if r.Op == kv.OpGet && r.Level != kv.LevelLocal {
						var key int
						_, err := fmt.Sscanf(string(r.Key[len(name):]), "b:%03d", &key)
						require.NoError(t, err)
						require.Equal(t, wantOf(key, value), string(a.Response.Value), "%s at node %d", r.Key, at+1)
					}
				}
			}
		}
	})
}

// Of a batch that meets replicas out of reach each operation says what became of it, and what was acknowledged is found later.
func TestBatchAcrossACutSaysOfEachOperationWhatBecameOfIt(t *testing.T) {
	inTunedBubble(t, 1, 5, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		c.Cut([]int{0, 1}, []int{2, 3, 4})
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		requests := batchOf([]kv.Level{kv.LevelEventual}, 100, "v")[:100]
		acked, refused, unknown := 0, 0, 0
		applied := map[int]bool{}
		for i, a := range c.ExecuteEach(limited, 0, requests) {
			switch {
			case a.Err == nil:
				acked++
				applied[i] = true
			case a.Err.Outcome == kv.OutcomeNotApplied:
				refused++
			default:
				unknown++
				require.Equal(t, kv.OutcomeUnknown, a.Err.Outcome)
			}
		}
		require.Positive(t, acked)
		require.Positive(t, unknown)
		t.Logf("%d acknowledged, %d refused, %d unknown", acked, refused, unknown)
		c.Heal()
		waitReady(t, ctx, c, time.Minute)
		time.Sleep(30 * time.Second) // all believe all alive again
		for i := range requests {
			res, err := get(ctx, c, 3, kv.LevelEventual, string(batchKey(i)))
			require.NoError(t, err)
			require.True(t, res.Found || !applied[i], "%s was acknowledged", batchKey(i))
		}
	})
}
