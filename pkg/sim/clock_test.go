package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Found by the nemesis (register, seed 10; set, seed 12): nodes whose wall clocks had been ahead, and were right again,
// refused each other's requests for as long as they had been ahead, strong reads included.
func TestClocksThatWereWrongAndAreRightAgainStopNobody(t *testing.T) {
	for _, wrong := range [][]int{{0}, {0, 1}} {
		t.Run(fmt.Sprintf("nodes=%d", len(wrong)), func(t *testing.T) {
			runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
				for _, i := range wrong {
					c.SetSkew(i, 6*time.Minute)
				}
				for i := range c.Size() { // whoever is wrong stamps something
					for _, level := range bothLanes {
						_, _ = put(ctx, c, i, level, fmt.Sprintf("during-%d", i), "1") // the outcome does not matter here
					}
				}
				for _, i := range wrong {
					c.SetSkew(i, 0)
				}
				time.Sleep(time.Second)
				for i := range c.Size() {
					for _, level := range bothLanes {
						key := fmt.Sprintf("after-%s-%d", level, i)
						_, err := put(ctx, c, i, level, key, "1")
						require.NoError(t, err, "%s put at n%d", level, i+1)
						for j := range c.Size() {
							res, err := get(ctx, c, j, level, key)
							require.NoError(t, err, "%s get at n%d", level, j+1)
							require.Equal(t, "1", string(res.Value))
						}
					}
				}
			})
		})
	}
}

func TestNodeWithAWrongClockDoesNotStopTheOthers(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		c.SetSkew(0, 8*time.Minute)
		time.Sleep(2 * time.Second)
		for i := range c.Size() {
			res, err := put(ctx, c, i, kv.LevelStrong, fmt.Sprintf("strong-%d", i), "1")
			require.NoError(t, err, "strong writes do not depend on anyone's clock")
			require.Equal(t, kv.OutcomeApplied, res.Outcome)
		}
		for i := 1; i < c.Size(); i++ {
			_, err := put(ctx, c, i, kv.LevelEventual, fmt.Sprintf("eventual-%d", i), "1")
			require.NoError(t, err)
		}
	})
}
