package sim

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
)

// seedsDefault keeps the simulation's share of `make test` well below a minute. CAPROCK_SIM_SEEDS asks for more.
const seedsDefault = 4

var (
	seedFlag  = flag.Uint64("seed", 0, "run the simulation with this one seed only")
	seedsFlag = flag.Int("seeds", seedsFromEnv(), "number of seeds to run the simulation with")
	logFlag   = flag.Bool("simlog", false, "print the nodes' logs")
)

func seedsFromEnv() int {
	if n, err := strconv.Atoi(os.Getenv("CAPROCK_SIM_SEEDS")); err == nil && n > 0 {
		return n
	}
	return seedsDefault
}

// seeds returns the seeds to run.
func seeds() []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	out := make([]uint64, *seedsFlag)
	for i := range out {
		out[i] = uint64(i + 1)
	}
	return out
}

// fewSeeds returns two of the seeds, or all where many are asked for.
func fewSeeds() []uint64 {
	all := seeds()
	if len(all) <= seedsDefault {
		return all[:min(2, len(all))]
	}
	return all
}

// runSeeds runs a scenario once a seed, each in a bubble of its own, and says how to replay a failure.
func runSeeds(t *testing.T, nodes int, scenario func(t *testing.T, ctx context.Context, c *Cluster)) {
	t.Helper()
	runEach(t, seeds(), nodes, scenario)
}

func runEach(t *testing.T, seeds []uint64, nodes int, scenario func(t *testing.T, ctx context.Context, c *Cluster)) {
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { inBubble(t, seed, nodes, scenario) })
	}
}

// inBubble runs a scenario with a cluster that has just become ready, and checks the invariants.
func inBubble(t *testing.T, seed uint64, nodes int, scenario func(t *testing.T, ctx context.Context, c *Cluster)) {
	inTunedBubble(t, seed, nodes, nil, scenario)
}

// inTunedBubble is inBubble with nodes whose configuration tune changes.
func inTunedBubble(
	t *testing.T, seed uint64, nodes int, tune func(*node.Config), scenario func(t *testing.T, ctx context.Context, c *Cluster),
) {
	defer func() {
		if t.Failed() {
			scenario, _, _ := strings.Cut(t.Name(), "/")
			t.Logf("replay: go test ./pkg/sim -run '^%s$' -seed=%d", scenario, seed)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		opts := Options{Nodes: nodes, Partitions: 4, Seed: seed, Tune: tune}
		if *logFlag {
			opts.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		c, err := NewCluster(opts)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		require.NoError(t, c.StartAll(ctx))
		defer func() {
			require.NoError(t, c.Close())
			require.Empty(t, c.Violations(), "broken invariants")
		}()
		waitReady(t, ctx, c, 5*time.Second)
		scenario(t, ctx, c)
	})
}

func waitReady(t *testing.T, ctx context.Context, c *Cluster, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx, kv.LevelUnset))
}

func put(ctx context.Context, c *Cluster, i int, level kv.Level, key, value string) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return c.Execute(ctx, i, &kv.Request{Op: kv.OpPut, Level: level, Key: []byte(key), Value: []byte(value)})
}

func get(ctx context.Context, c *Cluster, i int, level kv.Level, key string) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return c.Execute(ctx, i, &kv.Request{Op: kv.OpGet, Level: level, Key: []byte(key)})
}

var bothLanes = []kv.Level{kv.LevelStrong, kv.LevelEventual}

// writers keeps a number of clients writing keys that nobody else writes, each with one value in its life, and remembers
// which writes were acknowledged.
type writers struct {
	mu    sync.Mutex // guards acked
	acked map[kv.Level][]string
	stop  atomic.Bool
	wg    sync.WaitGroup
	next  atomic.Int64
}

func startWriters(ctx context.Context, c *Cluster, clients int) *writers {
	w := &writers{acked: map[kv.Level][]string{}}
	for i := range clients {
		w.wg.Go(func() {
			for n := i; !w.stop.Load(); n++ {
				level := bothLanes[n%2]
				key := fmt.Sprintf("%s-%d", level, w.next.Add(1))
				if _, err := put(ctx, c, n%c.Size(), level, key, "v-"+key); err == nil {
					w.mu.Lock()
					w.acked[level] = append(w.acked[level], key)
					w.mu.Unlock()
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return w
}

func (w *writers) finish() {
	w.stop.Store(true)
	w.wg.Wait()
}

func (w *writers) count(level kv.Level) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked[level])
}

// requireNothingLost reads every acknowledged write back from every node.
func (w *writers) requireNothingLost(t *testing.T, ctx context.Context, c *Cluster) {
	t.Helper()
	for _, level := range bothLanes {
		require.NotEmpty(t, w.acked[level], "nothing was acknowledged at %s: the run proves nothing", level)
		for n, key := range w.acked[level] {
			res, err := get(ctx, c, n%c.Size(), level, key)
			require.NoError(t, err, "%s at %s", key, level)
			require.True(t, res.Found, "%s was acknowledged at %s and is lost", key, level)
			require.Equal(t, "v-"+key, string(res.Value))
		}
	}
}

func TestEveryNodeServesEveryLevel(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		for i := range c.Size() {
			for _, level := range []kv.Level{kv.LevelStrong, kv.LevelEventual, kv.LevelLocal} {
				key := fmt.Sprintf("k-%d-%s", i, level)
				res, err := put(ctx, c, i, level, key, "1")
				require.NoError(t, err)
				require.Equal(t, level, res.Level)
				require.Equal(t, kv.OutcomeApplied, res.Outcome)
				if level == kv.LevelLocal {
					synctest.Wait()
					time.Sleep(time.Second) // a local write is sent on in the background
				}
				for j := range c.Size() {
					res, err := get(ctx, c, j, level, key)
					require.NoError(t, err)
					require.Equal(t, "1", string(res.Value), "written at n%d, read at n%d, level %s", i+1, j+1, level)
				}
			}
		}
	})
}

func TestMajoritySideGoesOnWhileCutAndHealsWithoutLoss(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		w := startWriters(ctx, c, 8)
		time.Sleep(2 * time.Second)
		lone := int(c.opts.Seed) % 3
		rest := []int{(lone + 1) % 3, (lone + 2) % 3}
		c.Cut([]int{lone}, rest)

		before := w.count(kv.LevelEventual)
		time.Sleep(3 * time.Second)
		require.Greater(t, w.count(kv.LevelEventual), before, "eventual writes must go on at W=2 on the majority's side")
		require.Eventually(t, func() bool {
			_, err := put(ctx, c, rest[0], kv.LevelStrong, "during-the-cut", "1")
			return err == nil
		}, 3*time.Second, 50*time.Millisecond, "the majority elects leaders within 3 s")
		_, err := put(ctx, c, lone, kv.LevelStrong, "from-the-minority", "1")
		require.Error(t, err, "a minority must not acknowledge a strong write")
		_, err = get(ctx, c, lone, kv.LevelStrong, "during-the-cut")
		require.Error(t, err, "a minority must not answer a strong read")

		c.Heal()
		time.Sleep(3 * time.Second)
		w.finish()
		waitReady(t, ctx, c, 40*time.Second) // gossip finds the lost half again by re-joining
		w.requireNothingLost(t, ctx, c)
	})
}

func TestLeaderCrashCostsStrongWritesLessThanThreeSeconds(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		_, err := put(ctx, c, 0, kv.LevelStrong, "k", "before")
		require.NoError(t, err)
		victim := int(c.opts.Seed) % 3
		asked := (victim + 1) % 3
		require.NoError(t, c.Crash(100, victim))
		start := time.Now()
		res, err := put(ctx, c, asked, kv.LevelEventual, "e", "1")
		require.NoError(t, err, "eventual writes see no gap")
		require.Equal(t, 2, res.Acks)
		require.Less(t, time.Since(start), 500*time.Millisecond)
		for p := range 16 {
			for {
				_, err = put(ctx, c, asked, kv.LevelStrong, fmt.Sprintf("after-%d", p), "1")
				if err == nil {
					break
				}
				require.Less(t, time.Since(start), 3*time.Second, "strong writes did not resume: %v", err)
			}
		}
		require.NoError(t, c.Start(ctx, victim))
		waitReady(t, ctx, c, 10*time.Second)
		got, err := get(ctx, c, victim, kv.LevelStrong, "k")
		require.NoError(t, err)
		require.Equal(t, "before", string(got.Value))
	})
}

func TestPowerCutOfTheWholeClusterLosesNothingAcknowledged(t *testing.T) {
	for _, survives := range []int{0, 50, 100} {
		t.Run(fmt.Sprintf("unsynced=%d%%", survives), func(t *testing.T) {
			runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
				w := startWriters(ctx, c, 8)
				for range 2 {
					time.Sleep(time.Second)
					require.NoError(t, c.Crash(survives, 0, 1, 2))
					require.NoError(t, c.StartAll(ctx))
					waitReady(t, ctx, c, 10*time.Second)
				}
				time.Sleep(time.Second)
				w.finish()
				w.requireNothingLost(t, ctx, c)
			})
		})
	}
}

func TestWipedDiskDoesNotComeBackUnderItsOldName(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.Crash(0, 1))
		c.Wipe(1)
		require.NoError(t, c.Start(ctx, 1))
		select {
		case err := <-c.nodes[1].life.Load().done:
			require.ErrorContains(t, err, "never reused")
			c.forget(1)
		case <-time.After(10 * time.Second):
			t.Fatal("the node with the wiped disk runs on")
		}
	})
}
