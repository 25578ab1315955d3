package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/verify"
)

// Switching the lanes of a prefix while it is used (ADR 0014).

// setLanes sets the lanes of a prefix through the first node that takes the change.
func setLanes(t *testing.T, ctx context.Context, c *Cluster, at int, prefix, lanes string) {
	t.Helper()
	require.NoError(t, c.Node(at).SetPolicy(ctx, kv.Policy{Prefix: []byte(prefix), Lanes: lanes}))
}

// awaitLanes waits until no switch is under way at any node that is up.
func awaitLanes(t *testing.T, ctx context.Context, c *Cluster, limit time.Duration) {
	t.Helper()
	until(t, limit, "the lanes are switched", func() bool {
		for i := range c.Size() {
			if n := c.Node(i); n != nil && len(n.Switches(ctx)) > 0 {
				return false
			}
		}
		return true
	})
}

// metaLeader returns the node that leads group 0.
func metaLeader(t *testing.T, c *Cluster) int {
	t.Helper()
	for i := range c.Size() {
		if n := c.Node(i); n != nil && n.Status().MetaLeader == c.names[i] {
			return i
		}
	}
	t.Fatal("nobody leads group 0")
	return 0
}

// ledBy returns a key with the prefix whose partition the node leads.
func ledBy(t *testing.T, c *Cluster, i int, prefix string) string {
	t.Helper()
	for at := range 1000 {
		if key := fmt.Sprintf("%s%d", prefix, at); leaderOf(t, c, key) == i {
			return key
		}
	}
	t.Fatalf("n%d leads nothing", i+1)
	return ""
}

func TestStrongReadsFindWhatIsLeftWhileAPrefixDrains(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		away := (metaLeader(t, c) + 1) % 3
		up := others(away)
		key := ledBy(t, c, up[0], "p:")
		// The leader of the key does not hold it.
		hushed(c, up[1], up[0], func() {
			_, err := eventualPut(ctx, c, up[1], key, "v", 2, false)
			require.NoError(t, err)
		})
		require.Empty(t, heldAt(t, c, up[0], key), "the script went wrong")
		c.Cut([]int{away}, up)
		setLanes(t, ctx, c, up[0], "p:", kv.LanesStrongOnly)
		time.Sleep(3 * time.Second)
		states := c.Node(up[0]).PolicyState(ctx, []byte("p:"))
		require.Len(t, states, 1, "a node has not acknowledged")
		require.Equal(t, string(meta.FenceDraining), states[0].Mode)
		require.Equal(t, []string{c.names[away]}, states[0].WaitingFor)
		res, err := strongDo(ctx, c, up[0], &kv.Request{Op: kv.OpGet, Key: []byte(key)})
		require.NoError(t, err)
		require.Equal(t, "v", string(res.Value), "a strong read missed it")
		_, err = eventualPut(ctx, c, up[1], key, "late", 2, false)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		got, err := c.Execute(ctx, up[1], &kv.Request{Op: kv.OpGet, Level: kv.LevelEventual, Key: []byte(key)})
		require.NoError(t, err, "what is read is there in either lane")
		require.Equal(t, "v", string(got.Value))
		c.Heal()
		awaitLanes(t, ctx, c, time.Minute)
		for i := range 3 {
			_, err = c.Execute(ctx, i, &kv.Request{Op: kv.OpGet, Level: kv.LevelEventual, Key: []byte(key)})
			require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
			res, err = strongDo(ctx, c, i, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
			require.NoError(t, err)
			require.Equal(t, "v", string(res.Value))
		}
	})
}

// The node that coordinates the write, and another replica, do not learn of the new policy, and make a majority without the rest.
func TestWritesOfNodesThatDidNotLearnOfADrainingAreNotLost(t *testing.T) {
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 5, hintsOnly, func(t *testing.T, ctx context.Context, c *Cluster) {
				// A partition with a replica at the leader of group 0, which becomes its leader, and two elsewhere.
				lead := metaLeader(t, c)
				var key string
				var apart []int
				for i := 0; key == ""; i++ {
					k := fmt.Sprintf("p:%d", i)
					if leaderOf(t, c, k) != lead {
						require.Less(t, i, 1000)
						continue
					}
					key = k
					for _, name := range ownersOf(t, c, k) {
						if at := slices.Index(c.names, name); at != lead {
							apart = append(apart, at)
						}
					}
				}
				var rest []int
				for i := range 5 {
					if !slices.Contains(apart, i) {
						rest = append(rest, i)
					}
				}
				c.Cut(apart, rest)
				setLanes(t, ctx, c, lead, "p:", kv.LanesStrongOnly)
				_, err := eventualPut(ctx, c, apart[0], key, "v", 2, false)
				require.NoError(t, err, "two replicas know nothing of the policy yet")
				time.Sleep(5 * time.Second)
				c.Heal()
				awaitLanes(t, ctx, c, time.Minute)
				waitReady(t, ctx, c, 10*time.Second)
				for i := range 5 {
					res, err := strongDo(ctx, c, i, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
					require.NoError(t, err)
					require.Equal(t, "v", string(res.Value), "an acknowledged write is lost")
				}
			})
		})
	}
}

// A leader that has not heard that its prefix opens reads nothing but its log.
func TestNothingIsWrittenEventuallyBeforeEveryNodeLooksForItAgain(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		top := metaLeader(t, c)
		away, third := others(top)[0], others(top)[1]
		key := ledBy(t, c, away, "p:")
		setLanes(t, ctx, c, top, "p:", kv.LanesStrongOnly)
		awaitLanes(t, ctx, c, time.Minute)
		_, err := strongDo(ctx, c, top, &kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte("old")})
		require.NoError(t, err)
		// It leads the partition by the third node's voice, and hears nothing of group 0.
		c.Cut([]int{top}, []int{away})
		setLanes(t, ctx, c, top, "p:", kv.LanesMixed)
		time.Sleep(2 * time.Second)
		_, err = eventualPut(ctx, c, top, key, "new", 2, false)
		if err == nil {
			res, err := strongDo(ctx, c, away, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
			require.NoError(t, err)
			require.Equal(t, "new", string(res.Value), "an acknowledged write was not read")
			t.Fatal("a node has not acknowledged that it looks for eventual writes")
		}
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		_, err = eventualPut(ctx, c, third, key, "new", 2, false)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		states := c.Node(top).PolicyState(ctx, []byte("p:"))
		require.Len(t, states, 1)
		require.Equal(t, string(meta.FenceOpening), states[0].Mode)
		require.Equal(t, []string{c.names[away]}, states[0].WaitingFor)
		res, err := strongDo(ctx, c, away, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
		require.NoError(t, err, "strong operations go on meanwhile")
		require.Equal(t, "old", string(res.Value))
		c.Heal()
		awaitLanes(t, ctx, c, time.Minute)
		_, err = eventualPut(ctx, c, top, key, "new", 2, false)
		require.NoError(t, err)
		for i := range 3 {
			res, err := strongDo(ctx, c, i, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
			require.NoError(t, err)
			require.Equal(t, "new", string(res.Value))
		}
	})
}

func TestSwitchGoesOnAfterItsDriverAndTheWholeClusterWereGone(t *testing.T) {
	hints := func(cfg *node.Config) {
		nothingSpreads(cfg)
		cfg.Hints.Interval = time.Second // they are looked after once more when everybody has seen everybody else again
	}
	scenario := func(t *testing.T, ctx context.Context, c *Cluster) {
		for i := range 40 {
			hushed(c, i%3, (i+1)%3, func() {
				_, err := eventualPut(ctx, c, i%3, fmt.Sprintf("p:%d", i), "v", 2, false)
				require.NoError(t, err)
			})
		}
		setLanes(t, ctx, c, 0, "p:", kv.LanesStrongOnly)
		require.NoError(t, c.Crash(50, metaLeader(t, c)))
		time.Sleep(2 * time.Second)
		require.NoError(t, c.Crash(0, upOf(c)...))
		require.NoError(t, c.StartAll(ctx))
		waitReady(t, ctx, c, 10*time.Second)
		until(t, time.Minute, "the policy is there", func() bool { return len(c.Node(0).Policies()) == 1 })
		awaitLanes(t, ctx, c, time.Minute)
		for i := range 40 {
			key := fmt.Sprintf("p:%d", i)
			require.Equal(t, "v", string(stateAt(t, c, leaderOf(t, c, key), key).Value), "%s is not in the log", key)
		}
		until(t, time.Minute, "no version is left beside the log", func() bool {
			for i := range 3 {
				for _, set := range eventualRows(t, c, i) {
					if len(set.Siblings) > 0 {
						return false
					}
				}
			}
			return true
		})
	}
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { inTunedBubble(t, seed, 3, hints, scenario) })
	}
}

func upOf(c *Cluster) (out []int) {
	for i := range c.Size() {
		if c.Node(i) != nil {
			out = append(out, i)
		}
	}
	return out
}

func TestDrainingIsTakenBackAtOnce(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		up := others(2)
		c.Cut([]int{2}, up)
		time.Sleep(5 * time.Second)
		setLanes(t, ctx, c, 0, "p:", kv.LanesStrongOnly)
		_, err := eventualPut(ctx, c, 0, "p:k", "v", 2, false)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		require.NoError(t, c.Node(1).DeletePolicy(ctx, []byte("p:")))
		time.Sleep(time.Second)
		require.Empty(t, c.Node(0).Switches(ctx))
		_, err = eventualPut(ctx, c, 0, "p:k", "v", 2, false)
		require.NoError(t, err)
	})
}

// Of a longer prefix with a policy of its own nothing changes, until that policy is gone.
func TestKeysOfALongerPrefixFollowTheirOwnPolicy(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		setLanes(t, ctx, c, 0, "p:in:", kv.LanesMixed)
		for _, key := range []string{"p:a", "p:in:a"} {
			_, err := eventualPut(ctx, c, 0, key, "v", 2, false)
			require.NoError(t, err)
		}
		setLanes(t, ctx, c, 0, "p:", kv.LanesStrongOnly)
		awaitLanes(t, ctx, c, time.Minute)
		_, err := eventualPut(ctx, c, 1, "p:in:a", "w", 2, false)
		require.NoError(t, err)
		_, err = eventualPut(ctx, c, 1, "p:a", "w", 2, false)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		require.NoError(t, c.Node(0).DeletePolicy(ctx, []byte("p:in:")))
		awaitLanes(t, ctx, c, time.Minute)
		_, err = eventualPut(ctx, c, 1, "p:in:a", "x", 2, false)
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
		res, err := strongDo(ctx, c, 2, &kv.Request{Op: kv.OpGet, Key: []byte("p:in:a")})
		require.NoError(t, err)
		require.Equal(t, "w", string(res.Value))
		setLanes(t, ctx, c, 0, "p:in:", kv.LanesEventualOnly)
		awaitLanes(t, ctx, c, time.Minute)
		_, err = eventualPut(ctx, c, 1, "p:in:a", "x", 2, false)
		require.NoError(t, err)
		_, err = strongDo(ctx, c, 2, &kv.Request{Op: kv.OpGet, Key: []byte("p:in:a")})
		require.Equal(t, kv.CodeLevelFenced, kv.CodeOf(err))
	})
}

func TestResolversKeepTheirMeaningWhenTheirPrefixBecomesStrongOnly(t *testing.T) {
	inHintBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		policy := func(prefix, resolver, lanes string) {
			require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte(prefix), Resolver: resolver, Lanes: lanes}))
		}
		policy("n:", kv.ResolverCounter, kv.LanesMixed)
		policy("s:", kv.ResolverSiblings, kv.LanesMixed)
		time.Sleep(time.Second)
		for i := range 3 {
			c.Cut([]int{i}, others(i))
			for _, key := range []string{"n:a", "s:a"} {
				_, err := eventualPut(ctx, c, i, key, "1", 1, false)
				require.NoError(t, err)
			}
			_, err := eventualPut(ctx, c, i, fmt.Sprintf("s:%d", i), "alone", 1, false)
			require.NoError(t, err)
			time.Sleep(10 * time.Millisecond)
			c.Heal()
		}
		time.Sleep(5 * time.Second)
		policy("n:", kv.ResolverCounter, kv.LanesStrongOnly)
		policy("s:", kv.ResolverSiblings, kv.LanesStrongOnly)
		until(t, time.Minute, "the counter is settled", func() bool { return len(c.Node(0).PolicyState(ctx, []byte("n:"))) == 0 })
		res, err := strongDo(ctx, c, 1, &kv.Request{Op: kv.OpGet, Key: []byte("n:a")})
		require.NoError(t, err)
		require.Equal(t, "3", string(res.Value))
		var state []kv.LaneSwitch
		until(t, time.Minute, "only what cannot be settled is left", func() bool {
			state = c.Node(0).PolicyState(ctx, []byte("s:"))
			return len(state) == 1 && state[0].Passes > 1 && state[0].Settled == 3
		})
		require.Equal(t, 1, state[0].Conflicts)
		require.Equal(t, "s:a", string(state[0].ConflictKey))
		got, err := strongDo(ctx, c, 1, &kv.Request{Op: kv.OpGet, Key: []byte("s:a"), Siblings: kv.SiblingsAll})
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(got.Siblings), 2, "what a majority holds is there to be decided on")
		_, err = strongDo(ctx, c, 1, &kv.Request{Op: kv.OpPut, Key: []byte("s:a"), Value: []byte("decided")})
		require.NoError(t, err)
		awaitLanes(t, ctx, c, time.Minute)
		for i := range 3 {
			got, err := strongDo(ctx, c, i, &kv.Request{Op: kv.OpGet, Key: []byte("s:a")})
			require.NoError(t, err)
			require.Equal(t, "decided", string(got.Value))
		}
		// Counting goes on from there, in either lane.
		policy("n:", kv.ResolverCounter, kv.LanesMixed)
		awaitLanes(t, ctx, c, time.Minute)
		_, err = eventualPut(ctx, c, 2, "n:a", "4", 3, false)
		require.NoError(t, err)
		res, err = strongDo(ctx, c, 0, &kv.Request{Op: kv.OpGet, Key: []byte("n:a")})
		require.NoError(t, err)
		require.Equal(t, "7", string(res.Value))
	})
}

// While a counter's prefix is strong-only its writes go on handing over what was counted, for coordinators that hear of them late once it opens.
func TestStrongOnlyCountersDoNotForgetWhatTheyCounted(t *testing.T) {
	inHintBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		policy := kv.Policy{Prefix: []byte("n:"), Resolver: kv.ResolverCounter, Lanes: kv.LanesMixed}
		require.NoError(t, c.SetPolicy(ctx, policy))
		time.Sleep(time.Second)
		_, err := eventualPut(ctx, c, 0, "n:a", "3", 3, false)
		require.NoError(t, err)
		policy.Lanes = kv.LanesStrongOnly
		require.NoError(t, c.SetPolicy(ctx, policy))
		awaitLanes(t, ctx, c, time.Minute)
		at := leaderOf(t, c, "n:a")
		require.NotEmpty(t, stateAt(t, c, at, "n:a").Base, "the sweep forgot it")
		_, err = strongDo(ctx, c, at, &kv.Request{Op: kv.OpPut, Key: []byte("n:a"), Value: []byte("20")})
		require.NoError(t, err)
		require.Equal(t, "20", string(stateAt(t, c, at, "n:a").Value))
		require.NotEmpty(t, stateAt(t, c, at, "n:a").Base, "the write forgot it")
	})
}

// inHintBubble is inSettleBubble in which hints are handed over: a prefix is not strong-only before they are.
func inHintBubble(t *testing.T, scenario func(t *testing.T, ctx context.Context, c *Cluster)) {
	t.Helper()
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { inTunedBubble(t, seed, 3, hintsOnly, scenario) })
	}
}

// switching sets the prefix to other lanes again and again until ctx is done, and notes it. It counts how often it was strong-only and how
// often it could be written eventually again.
type switching struct{ closed, opened atomic.Int64 }

func (s *switching) run(ctx context.Context, c *Cluster, prefix string, r *rand.Rand, h *verify.History) {
	all := kv.AllLanes()
	last := ""
	for ctx.Err() == nil {
		lanes := all[r.IntN(len(all))]
		if lanes == last {
			continue
		}
		if n := c.Node(r.IntN(c.Size())); n != nil {
			once, cancel := context.WithTimeout(ctx, 2*time.Second)
			if n.SetPolicy(once, kv.Policy{Prefix: []byte(prefix), Lanes: lanes}) == nil {
				h.Note("lanes " + lanes)
				last = lanes
			}
			cancel()
		}
		// Some are finished, and some are taken back half way.
		patience := time.Duration(r.Int64N(int64(6 * time.Second)))
		for began := time.Now(); time.Since(began) < patience && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			if n := c.Node(0); n != nil && len(n.Switches(ctx)) == 0 {
				switch lanes {
				case kv.LanesStrongOnly:
					s.closed.Add(1)
				default:
					s.opened.Add(1)
				}
				h.Note("lanes are " + lanes)
				break
			}
		}
		time.Sleep(time.Duration(r.Int64N(int64(2 * time.Second))))
	}
}

func TestStrongAndEventualOperationsAreLinearizableWhileLanesAreSwitched(t *testing.T) {
	verified{workload: verify.WorkloadMixed, nodes: 3, faults: Faults(), lane: 14, switches: true}.run(t)
}
