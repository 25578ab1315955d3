package sim

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A prefix is switched between lanes while it is written. Each client writes its own keys at both levels in turn, so that it knows what a
// strong read must find: the last write that was acknowledged.
func TestSwitchingLanesUnderLoadLosesNothing(t *testing.T) {
	inTunedBubble(t, 1, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		var fenced, acknowledged atomic.Int64
		stop := make(chan struct{})
		var clients sync.WaitGroup
		for client := range 4 {
			clients.Go(func() {
				// perhaps is a write that was refused when one of its attempts was under way: it may show until another one is acknowledged.
				key, last, perhaps := fmt.Sprintf("p:%d", client), "", ""
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					level := []kv.Level{kv.LevelStrong, kv.LevelEventual}[i%2]
					value := fmt.Sprintf("%d/%d", client, i)
					if _, err := put(ctx, c, i%3, level, key, value); err == nil {
						last, perhaps = value, ""
						acknowledged.Add(1)
					} else {
						require.Equal(t, kv.CodeLevelFenced, kv.AsError(err).Code, "%v", err)
						if kv.AsError(err).Outcome != kv.OutcomeNotApplied {
							require.Equal(t, kv.LevelEventual, level)
							perhaps = value
						}
						fenced.Add(1)
					}
					got, err := get(ctx, c, (i+1)%3, kv.LevelStrong, key)
					if err != nil {
						require.Equal(t, kv.CodeLevelFenced, kv.AsError(err).Code, "%v", err)
						continue
					}
					if perhaps != "" && string(got.Value) == perhaps {
						last = perhaps
					}
					require.Equal(t, last, string(got.Value))
				}
			})
		}
		for _, lanes := range []string{kv.LanesStrongOnly, kv.LanesMixed, kv.LanesEventualOnly, kv.LanesMixed} {
			time.Sleep(1200 * time.Millisecond)
			require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("p:"), Lanes: lanes}))
		}
		close(stop)
		clients.Wait()
		require.Positive(t, fenced.Load())
		require.Greater(t, acknowledged.Load(), int64(50))
		require.Error(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("p:"), Lanes: kv.LanesStrongOnly, Default: kv.LevelEventual}))
	})
}
