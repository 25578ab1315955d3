package sim

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPowerCutsRightAfterAnAcknowledgementLoseNothing(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		r := rand.New(rand.NewPCG(c.opts.Seed, 21))
		w := startWriters(ctx, c, 8)
		fired := 0
		for n := range 8 {
			for i := range c.Size() { // some disks are quick, some are slow
				c.SetSyncDelay(i, time.Duration(1+r.IntN(20*r.IntN(2)+1))*time.Millisecond)
			}
			time.Sleep(300 * time.Millisecond)
			by, which := r.IntN(c.Size()), []int{0, 1, 2}
			if n%2 == 0 {
				which = []int{by}
			} else {
				by = -1
			}
			trap, stop := context.WithTimeout(ctx, 2*time.Second)
			ok, err := c.CrashAfter(trap, by, 1+r.IntN(200), 0, which...)
			stop()
			require.NoError(t, err)
			if ok {
				fired++
			}
			for i := range c.Size() {
				if c.Node(i) == nil {
					require.NoError(t, c.Start(ctx, i))
				}
			}
			waitReady(t, ctx, c, 10*time.Second)
		}
		time.Sleep(time.Second)
		w.finish()
		w.requireNothingLost(t, ctx, c)
		_, counts := c.watch.result()
		require.GreaterOrEqual(t, fired, 6)
		require.Greater(t, counts.Disks, fired)
		require.Positive(t, counts.States, "no two states were ever compared")
		require.Positive(t, counts.Entries)
		require.Greater(t, counts.Promises, counts.Disks)
		t.Logf("%d power cuts, %+v", fired, counts)
	})
}
