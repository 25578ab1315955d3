package sim

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The one step of most plans below, and a moment in the middle of it.
const stepAt, stepFor, stepMiddle = 200 * time.Millisecond, 2 * time.Second, 1200 * time.Millisecond

// trial is what one fault did.
type trial struct {
	c             *Cluster
	before, after Stats
	lives         []*life // before
	fired         map[Fault]int
}

// try carries out a plan of one step while clients write, and calls middle in its middle, from another goroutine.
func try(t *testing.T, nodes int, s Step, middle func(ctx context.Context, c *Cluster), then func(ctx context.Context, tr trial)) {
	t.Helper()
	inBubble(t, 1, nodes, func(t *testing.T, ctx context.Context, c *Cluster) {
		w := startWriters(ctx, c, 4)
		time.Sleep(time.Second)
		tr := trial{c: c, before: c.net.Stats()}
		for _, in := range c.nodes {
			tr.lives = append(tr.lives, in.life.Load())
		}
		s.At, s.For = stepAt, stepFor
		var notes []string
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(stepMiddle)
			if middle != nil {
				middle(ctx, c)
			}
		})
		start := time.Now()
		fired, err := c.Nemesis(ctx, Plan{Scenario: Scenario{Nodes: nodes}, Steps: []Step{s}},
			func(text string) { notes = append(notes, text) })
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(start), stepAt+stepFor)
		require.Equal(t, []string{s.String()}, notes)
		wg.Wait()
		w.finish()
		tr.fired, tr.after = fired, c.net.Stats()
		if s.Fault != FaultDisk {
			require.Equal(t, map[Fault]int{s.Fault: 1}, fired)
		}
		waitReady(t, ctx, c, Convergence)
		require.Equal(t, Calm(), c.net.everywhere)
		require.Empty(t, c.net.special)
		require.Empty(t, c.net.cuts)
		if then != nil {
			then(ctx, tr)
		}
		w.requireNothingLost(t, ctx, c)
		limit, cancel := context.WithTimeout(ctx, Convergence)
		defer cancel()
		_, difference, err := c.WaitConverged(limit)
		require.NoError(t, err)
		require.True(t, difference.Valid, "%v", difference.Anomalies)
	})
}

// requireReplaced requires that exactly the named nodes have begun another life.
func (tr trial) requireReplaced(t *testing.T, which ...int) {
	t.Helper()
	for i, in := range tr.c.nodes {
		again := in.life.Load() != tr.lives[i]
		require.Equal(t, slices.Contains(which, i), again, "n%d began another life: %v", i+1, again)
	}
}

func TestCutsSwallowMessagesAndHeal(t *testing.T) {
	for _, s := range []Step{
		{Fault: FaultCut, Nodes: []int{0}},
		{Fault: FaultHalves, Nodes: []int{2}},
		{Fault: FaultBridge, Nodes: []int{0, 1, 2}},
		{Fault: FaultOneWay, Nodes: []int{0, 2}},
	} {
		t.Run(string(s.Fault), func(t *testing.T) {
			try(t, 3, s, nil, func(_ context.Context, tr trial) {
				require.Greater(t, tr.after.CutOff, tr.before.CutOff+10)
				tr.requireReplaced(t)
			})
		})
	}
}

func TestRingLeavesEveryNodeAMajority(t *testing.T) {
	try(t, 5, Step{Fault: FaultRing, Nodes: []int{0, 1, 2, 3, 4}}, nil, func(_ context.Context, tr trial) {
		require.Greater(t, tr.after.CutOff, tr.before.CutOff+10)
	})
}

func TestFlappingCutComesAndGoes(t *testing.T) {
	s := Step{Fault: FaultFlapping, Nodes: []int{0}}
	for at := 100 * time.Millisecond; at < stepFor; at += 150 * time.Millisecond {
		s.Flaps = append(s.Flaps, at)
	}
	turns, was := 0, false
	try(t, 3, s, func(ctx context.Context, c *Cluster) {
		for range 70 {
			c.net.mu.Lock()
			cut := len(c.net.cuts) > 0
			c.net.mu.Unlock()
			if cut != was {
				turns++
			}
			was = cut
			time.Sleep(10 * time.Millisecond)
		}
	}, func(_ context.Context, tr trial) {
		require.Greater(t, turns, 3)
		require.Greater(t, tr.after.CutOff, tr.before.CutOff)
	})
}

func TestCrashesEndTheLivesThatTheySay(t *testing.T) {
	for _, s := range []Step{
		{Fault: FaultKill, Nodes: []int{1}},
		{Fault: FaultPower, Nodes: []int{2}, Survives: 50},
		{Fault: FaultPower, Nodes: []int{0}, Events: 20},
		{Fault: FaultBlackout},
		{Fault: FaultBlackout, Events: 20},
	} {
		t.Run(s.String(), func(t *testing.T) {
			victims := s.Nodes
			if s.Fault == FaultBlackout {
				victims = []int{0, 1, 2}
			}
			try(t, 3, s, func(_ context.Context, c *Cluster) {
				for i := range c.Size() {
					require.Equal(t, slices.Contains(victims, i), c.Node(i) == nil, "n%d", i+1)
				}
			}, func(_ context.Context, tr trial) { tr.requireReplaced(t, victims...) })
		})
	}
}

func TestNoiseLosesDoublesAndReorders(t *testing.T) {
	s := Step{Fault: FaultNoise, Loss: 10, Duplicate: 10, Delay: 100 * time.Millisecond}
	try(t, 3, s, nil, func(_ context.Context, tr trial) {
		require.Greater(t, tr.after.Lost, tr.before.Lost+10)
		require.Greater(t, tr.after.Duplicated, tr.before.Duplicated+10)
		require.Greater(t, tr.after.Overtaken, tr.before.Overtaken+10)
	})
}

// putAtAll writes eventually at all replicas, and returns how long that takes.
func putAtAll(ctx context.Context, c *Cluster, i int) (time.Duration, error) {
	start := time.Now()
	_, err := c.Execute(ctx, i, &kv.Request{
		Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte("all"), Value: []byte("1"), Quorum: kv.Quorum{W: 3},
	})
	return time.Since(start), err
}

func TestSlowLinkDelaysWhatCrossesIt(t *testing.T) {
	const delay = 200 * time.Millisecond
	var slow, other time.Duration
	try(t, 3, Step{Fault: FaultSlow, Nodes: []int{0, 1}, Delay: delay}, func(ctx context.Context, c *Cluster) {
		var err error
		slow, err = putAtAll(ctx, c, 0)
		require.NoError(t, err)
		other, err = putAtAll(ctx, c, 2)
		require.NoError(t, err)
	}, func(ctx context.Context, tr trial) {
		require.GreaterOrEqual(t, slow, delay/2)
		require.Less(t, other, delay/2, "only one direction is slow")
		time.Sleep(delay) // what was sent before is still under way, and holds up what follows it
		healthy, err := putAtAll(ctx, tr.c, 0)
		require.NoError(t, err)
		require.Less(t, healthy, delay/2)
	})
}

func wallNow(c *Cluster, i int) time.Time {
	return time.Now().Add(time.Duration(c.nodes[i].skew.Load()))
}

func TestSkewMovesOneClock(t *testing.T) {
	const skew = -7 * time.Minute
	try(t, 3, Step{Fault: FaultSkew, Nodes: []int{1}, Skew: skew}, func(_ context.Context, c *Cluster) {
		for i, want := range []time.Duration{0, skew, 0} {
			require.Equal(t, time.Now().Add(want), wallNow(c, i))
		}
	}, func(_ context.Context, tr trial) {
		for i := range tr.c.Size() {
			require.Equal(t, time.Now(), wallNow(tr.c, i))
		}
	})
}

func TestPausedNodeIsSilentAndThenSaysEverythingAtOnce(t *testing.T) {
	var answered time.Time
	var asked time.Time
	var answer error
	try(t, 3, Step{Fault: FaultPause, Nodes: []int{1}}, func(ctx context.Context, c *Cluster) {
		asked = time.Now()
		_, answer = c.Execute(ctx, 1, &kv.Request{Op: kv.OpGet, Level: kv.LevelLocal, Key: []byte("k")})
		answered = time.Now()
		impatient, cancel := context.WithTimeout(ctx, 0)
		defer cancel()
		c.Pause(1, time.Second)
		_, err := c.Execute(impatient, 1, &kv.Request{Op: kv.OpGet, Level: kv.LevelLocal, Key: []byte("k")})
		require.Error(t, err)
		c.Pause(1, 0)
	}, func(_ context.Context, tr trial) {
		require.NoError(t, answer)
		require.GreaterOrEqual(t, answered.Sub(asked), stepAt+stepFor-stepMiddle)
		require.Greater(t, tr.after.Held, tr.before.Held+10)
		require.Equal(t, tr.before.CutOff+tr.before.Lost, tr.after.CutOff+tr.after.Lost, "nothing is lost")
		tr.requireReplaced(t)
	})
}

func TestNodeWhoseLogFailsEndsAndComesBack(t *testing.T) {
	for _, survives := range []int{0, 50, 100} {
		try(t, 3, Step{Fault: FaultDisk, Nodes: []int{2}, Survives: survives}, func(_ context.Context, c *Cluster) {
			require.Positive(t, c.nodes[2].life.Load().faults.Stats().Error)
			require.Len(t, c.nodes[2].life.Load().done, 1, "the node runs on")
		}, func(_ context.Context, tr trial) {
			require.Equal(t, map[Fault]int{FaultDisk: 1}, tr.fired)
			tr.requireReplaced(t, 2)
		})
	}
}

func TestNodeWhoseDiskWasWipedIsGoneForGood(t *testing.T) {
	inBubble(t, 1, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		_, err := put(ctx, c, 0, kv.LevelEventual, "k", "1")
		require.NoError(t, err)
		step := Step{At: stepAt, For: stepFor, Fault: FaultWipe, Nodes: []int{1}}
		fired, err := c.Nemesis(ctx, Plan{Steps: []Step{step}}, func(string) {})
		require.NoError(t, err)
		require.Equal(t, map[Fault]int{FaultWipe: 1}, fired)
		require.Nil(t, c.Node(1))
		waitReady(t, ctx, c, Convergence)
		res, err := get(ctx, c, 2, kv.LevelEventual, "k")
		require.NoError(t, err)
		require.Equal(t, "1", string(res.Value))
	})
}

func TestNemesisMendsEverythingWhenItIsStopped(t *testing.T) {
	inBubble(t, 1, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.Nemesis(short, Plan{Steps: []Step{
			{At: 0, For: time.Hour, Fault: FaultKill, Nodes: []int{0}},
			{At: 0, For: time.Hour, Fault: FaultCut, Nodes: []int{1}},
			{At: 0, For: time.Hour, Fault: FaultSkew, Nodes: []int{2}, Skew: time.Minute},
			{At: time.Minute, For: time.Hour, Fault: FaultBlackout},
		}}, func(string) {})
		require.NoError(t, err)
		require.Less(t, time.Since(start), time.Minute)
		require.Empty(t, c.net.cuts)
		require.Equal(t, time.Now(), wallNow(c, 2))
		waitReady(t, ctx, c, Convergence)
		require.NotNil(t, c.Node(0))
	})
}

// A run that counts faults which met nobody would pass for a stormy one.
func TestFaultsOfANodeThatIsDownAreNotCounted(t *testing.T) {
	inBubble(t, 1, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		at := func(f Fault) Step {
			return Step{At: time.Second, For: 500 * time.Millisecond, Fault: f, Nodes: []int{0}, Skew: time.Minute, Delay: time.Second}
		}
		slow, oneWay := at(FaultSlow), at(FaultOneWay)
		slow.Nodes, oneWay.Nodes = []int{0, 1}, []int{0, 1}
		fired, err := c.Nemesis(ctx, Plan{Steps: []Step{
			{At: 0, For: 2 * time.Second, Fault: FaultKill, Nodes: []int{0}},
			at(FaultCut), at(FaultPause), at(FaultSkew), at(FaultSlowDisk), slow, oneWay,
		}}, func(string) {})
		require.NoError(t, err)
		require.Equal(t, map[Fault]int{FaultKill: 1}, fired)
		waitReady(t, ctx, c, Convergence)
	})
}

func TestSlowDiskIsSlowForTheNextLifeToo(t *testing.T) {
	const delay = 250 * time.Millisecond
	inBubble(t, 1, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		var took time.Duration
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(5 * time.Second)
			start := time.Now()
			_, err := put(ctx, c, 1, kv.LevelEventual, "slowly", "1")
			require.NoError(t, err)
			took = time.Since(start)
		})
		fired, err := c.Nemesis(ctx, Plan{Steps: []Step{
			{At: 100 * time.Millisecond, For: 10 * time.Second, Fault: FaultSlowDisk, Nodes: []int{1}, Delay: delay},
			{At: 200 * time.Millisecond, For: 500 * time.Millisecond, Fault: FaultKill, Nodes: []int{1}},
		}}, func(string) {})
		require.NoError(t, err)
		wg.Wait()
		require.GreaterOrEqual(t, took, delay)
		require.Equal(t, map[Fault]int{FaultSlowDisk: 1, FaultKill: 1}, fired)
	})
}

func TestReplicasThatDifferAreNotConverged(t *testing.T) {
	inBubble(t, 1, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		for _, level := range bothLanes {
			_, err := put(ctx, c, 0, level, "k", "1")
			require.NoError(t, err)
		}
		took, res, err := c.WaitConverged(ctx)
		require.NoError(t, err)
		require.True(t, res.Valid)
		require.Equal(t, 2, res.Keys)
		require.Less(t, took, 10*time.Second)

		c.Cut([]int{2}, []int{0, 1})
		_, err = put(ctx, c, 0, kv.LevelEventual, "k", "2")
		require.NoError(t, err)
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, res, err = c.WaitConverged(short)
		require.NoError(t, err)
		require.False(t, res.Valid)
		require.Len(t, res.Anomalies, 1)
		c.Heal()
	})
}

func TestWritesOnASlowDiskTakeTheirTime(t *testing.T) {
	const delay = 250 * time.Millisecond
	var took time.Duration
	try(t, 3, Step{Fault: FaultSlowDisk, Nodes: []int{1}, Delay: delay}, func(ctx context.Context, c *Cluster) {
		start := time.Now()
		// The coordinator's own copy has to be durable, however quick the others are.
		_, err := put(ctx, c, 1, kv.LevelEventual, "slowly", "1")
		require.NoError(t, err)
		took = time.Since(start)
	}, func(_ context.Context, tr trial) {
		require.GreaterOrEqual(t, took, delay)
		tr.requireReplaced(t)
	})
}
