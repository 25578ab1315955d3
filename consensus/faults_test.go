package consensus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// writers write unique keys through all groups until stopped, and remember what was acknowledged.
type writers struct {
	c     *cluster
	stop  context.CancelFunc
	wg    sync.WaitGroup
	pause time.Duration // between two writes of one writer

	mu    sync.Mutex
	acked map[kv.GroupID]map[string]uint64 // key to revision
	total int
}

func (c *cluster) startWriters(perGroup int, round int, pause time.Duration, groups ...kv.GroupID) *writers {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writers{c: c, stop: cancel, pause: pause, acked: make(map[kv.GroupID]map[string]uint64)}
	for _, g := range groups {
		w.acked[g] = make(map[string]uint64)
	}
	for _, g := range groups {
		for i := range perGroup {
			w.wg.Go(func() { w.write(ctx, g, fmt.Sprintf("r%d-w%d", round, i)) })
		}
	}
	return w
}

func (w *writers) write(ctx context.Context, g kv.GroupID, name string) {
	p, _ := g.Partition()
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("%s-%d", name, i)
		store, n := w.c.leading(g)
		if store == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		same, fenced := n.life()
		if same != store {
			continue
		}
		op, cancel := context.WithTimeout(ctx, time.Second)
		r, err := store.Put(op, p, WriteOp{Key: []byte(key), Value: []byte(key)})
		cancel()
		if err == nil && !fenced.Load() {
			w.mu.Lock()
			w.acked[g][key] = r.Revision
			w.total++
			w.mu.Unlock()
		}
		time.Sleep(w.pause)
	}
}

// end stops the writers and returns what was acknowledged.
func (w *writers) end() map[kv.GroupID]map[string]uint64 {
	w.stop()
	w.wg.Wait()
	return w.acked
}

// requireAll reads everything that was acknowledged, linearizably.
func (c *cluster) requireAll(acked map[kv.GroupID]map[string]uint64) {
	c.t.Helper()
	for g, keys := range acked {
		p, _ := g.Partition()
		_, _, err := c.get(c.timeout(30*time.Second), p, "any")
		require.NoError(c.t, err)
		held := c.dump(g, c.leader(g))
		for key, revision := range keys {
			s, found := held[key]
			require.True(c.t, found, "group %d lost acknowledged %s", g, key)
			require.Equal(c.t, revision, s.Revision, "group %d, %s", g, key)
		}
	}
}

func TestPowerCutOfAllNodesLosesNoAcknowledgedWrite(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		t.Run(fmt.Sprintf("%d%% unsynced survives", percent), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			bubble(t, 3, func(c *cluster) {
				rng := rand.New(rand.NewPCG(seed, 1))
				groups := []kv.GroupID{1, 2, 3}
				c.bootstrap(groups...)
				for round := range 4 {
					for _, g := range groups {
						c.awaitLeader(g, 10*time.Second)
					}
					w := c.startWriters(4, round, 5*time.Millisecond, groups...)
					time.Sleep(time.Duration(200+rng.IntN(300)) * time.Millisecond)
					c.powerCut(percent, rng, c.ids...)
					acked := w.end()
					require.Greater(t, w.total, 50)
					c.startAll()
					c.requireAll(acked)
				}
			})
		})
	}
}

func TestPowerCutsOfOneNodeAfterAnotherLoseNothing(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		rng := rand.New(rand.NewPCG(1, 2))
		groups := []kv.GroupID{1, 2}
		c.bootstrap(groups...)
		c.awaitLeader(1, 5*time.Second)
		w := c.startWriters(3, 0, 25*time.Millisecond, groups...)
		changes := 0
		for round := range 6 {
			time.Sleep(time.Second)
			victim := c.ids[round%3]
			if c.leader(1) == victim {
				changes++
			}
			c.powerCut(50, rng, victim)
			time.Sleep(time.Duration(rng.IntN(2500)) * time.Millisecond)
			c.start(victim)
		}
		acked := w.end()
		require.Positive(t, changes, "a run without a leader change proves nothing")
		c.requireAll(acked)
		time.Sleep(3 * time.Second)
		for _, g := range groups {
			want := c.dump(g, 1)
			require.Equal(t, want, c.dump(g, 2))
			require.Equal(t, want, c.dump(g, 3))
		}
	})
}

func TestDeposedLeaderInAPartitionAnswersNoReadBarrier(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		old, _ := c.awaitLeader(1, 5*time.Second)
		_, err := c.put(c.timeout(time.Second), 0, "k", "old")
		require.NoError(t, err)
		require.NoError(t, old.store.ReadBarrier(c.timeout(time.Second), 1))

		c.net.isolate(old.id, c.others(old.id), true)
		served := 0
		start := time.Now()
		for time.Since(start) < 6*time.Second {
			if old.store.ReadBarrier(c.timeout(300*time.Millisecond), 1) == nil {
				served++
			}
			time.Sleep(50 * time.Millisecond)
		}
		require.Zero(t, served, "a leader that nobody hears vouched for its state")
		n, _ := c.awaitLeader(1, time.Second)
		require.NotEqual(t, old.id, n.id)
		_, err = c.put(c.timeout(time.Second), 0, "k", "new")
		require.NoError(t, err)
		require.Error(t, old.store.ReadBarrier(c.timeout(time.Second), 1))

		c.net.isolate(old.id, c.others(old.id), false)
		time.Sleep(3 * time.Second)
		s, found, err := c.get(c.timeout(time.Second), 0, "k")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "new", string(s.Value))
	})
}

// A barrier that waits while the network between the leader and its followers comes back must be answered by a round
// that was confirmed, not given up.
func TestReadBarrierSurvivesALossOfMessages(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		c.net.isolate(n.id, c.others(n.id), true)
		done := make(chan error, 1)
		go func() { done <- n.store.ReadBarrier(c.timeout(5*time.Second), 1) }()
		time.Sleep(200 * time.Millisecond)
		c.net.isolate(n.id, c.others(n.id), false)
		require.NoError(t, <-done)
	})
}

func TestEveryProposalOfADeposedLeaderHasAnHonestEnd(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		old, _ := c.awaitLeader(1, 5*time.Second)
		_, err := c.put(c.timeout(time.Second), 0, "k", "v")
		require.NoError(t, err)
		c.net.isolate(old.id, c.others(old.id), true)

		// One proposal's deadline passes before anything is known, the other waits for the truth.
		long := make(chan error, 1)
		go func() {
			_, err := old.store.Put(c.timeout(time.Minute), 0, WriteOp{Key: []byte("long"), Value: []byte("x")})
			long <- err
		}()
		_, err = old.store.Put(c.timeout(500*time.Millisecond), 0, WriteOp{Key: []byte("short"), Value: []byte("x")})
		e := kv.AsError(err)
		require.Equal(t, kv.CodeDeadlineExceeded, e.Code)
		require.Equal(t, kv.OutcomeUnknown, e.Outcome)
		time.Sleep(4 * time.Second)
		require.Empty(t, long, "losing the leadership decides nothing")
		_, err = c.put(c.timeout(time.Second), 0, "k", "w")
		require.NoError(t, err)

		c.net.isolate(old.id, c.others(old.id), false)
		err = <-long
		e = kv.AsError(err)
		require.Equal(t, kv.CodeNoLeader, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		require.True(t, e.Retryable)
		require.ErrorIs(t, err, ErrOverwritten)
		for _, key := range []string{"long", "short"} {
			_, found, err := c.get(c.timeout(time.Second), 0, key)
			require.NoError(t, err)
			require.False(t, found, "%s was answered as not applied", key)
		}
		time.Sleep(time.Second)
		require.Zero(t, old.store.pendingBytes.Load(), "what is decided is no longer pending")
	})
}

// The other truth: the entry reached a follower before the leader was cut off, the follower became leader and committed
// it. The proposer hears that it was applied.
func TestProposalCommittedByTheNextLeaderIsApplied(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		old, _ := c.awaitLeader(1, 5*time.Second)
		_, err := c.put(c.timeout(time.Second), 0, "k", "v")
		require.NoError(t, err)
		time.Sleep(time.Second)
		// Appends still leave the old leader, but nothing comes back.
		c.net.mu.Lock()
		for _, o := range c.others(old.id) {
			c.net.cut[[2]kv.NodeID{o, old.id}] = true
		}
		c.net.mu.Unlock()
		done := make(chan error, 1)
		go func() {
			_, err := old.store.Put(c.timeout(time.Minute), 0, WriteOp{Key: []byte("late"), Value: []byte("x")})
			done <- err
		}()
		time.Sleep(10 * time.Millisecond)
		c.net.isolate(old.id, c.others(old.id), true)
		time.Sleep(5 * time.Second)
		require.Empty(t, done)
		c.net.isolate(old.id, c.others(old.id), false)
		require.NoError(t, <-done)
		s, found, err := c.get(c.timeout(time.Second), 0, "late")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, old.id, s.Stamp.Node)
	})
}

func (c *cluster) others(id kv.NodeID) []kv.NodeID {
	var out []kv.NodeID
	for _, o := range c.ids {
		if o != id {
			out = append(out, o)
		}
	}
	return out
}

// A group with a single voter knows the commit index that a crash left, which may be older than what it acknowledged.
// In real time and with slow syncs, so that barriers arrive while it leads but has committed nothing in its new term.
func TestSingleVoterNeverServesAReadBelowWhatItAcknowledged(t *testing.T) {
	c := newCluster(t, 1, 0)
	defer c.close()
	n := c.nodes[1]
	c.start(1)
	c.bootstrap(1)
	c.awaitLeader(1, 5*time.Second)
	n.wrap = slowSync(20 * time.Millisecond)
	for i := range 5 {
		_, err := c.put(c.timeout(5*time.Second), 0, "k", value(i))
		require.NoError(t, err)
		// What is not synced, the commit index among it, is lost.
		c.powerCut(0, nil, 1)
		c.start(1)
		for n.store.Leader(1) != 1 {
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, n.store.ReadBarrier(c.timeout(5*time.Second), 1))
		s, alive, err := n.strong(n.store, 1, "k")
		require.NoError(t, err)
		require.True(t, alive)
		require.Equal(t, value(i), string(s.Value))
	}
}

// Raft drops read requests without a word. A round that it dropped is asked again under a new number.
func TestReadBarrierOutlivesARoundThatRaftDropped(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		b := &barrier{view: n.store.views.get(1), done: make(chan error, 1)}
		b.view.barriers.Add(1)
		onLoop(n.store, func(l *loop) {
			g := l.groups[1]
			g.barriers.add(b)
			l.rounds++
			require.True(c.t, g.barriers.issue(l.rounds, l.ticks, 0, 4)) // and Raft never hears of it
		})
		start := time.Now()
		require.NoError(t, <-b.done)
		require.Greater(t, time.Since(start), 900*time.Millisecond)
		require.Less(t, time.Since(start), 1300*time.Millisecond)
	})
}
