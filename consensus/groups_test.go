package consensus

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func TestUnreadableCommandStopsItsGroupAndNoOther(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1, 2)
		n, _ := c.awaitLeader(1, 5*time.Second)
		c.awaitLeader(2, 5*time.Second)
		ctx := c.timeout(10 * time.Second)
		_, err := c.put(ctx, 0, "before", "x")
		require.NoError(t, err)
		_, err = n.store.Propose(ctx, 1, Proposal{Key: []byte("k"), Command: []byte{99, 1, 2}})
		e := kv.AsError(err)
		require.Equal(t, kv.OutcomeUnknown, e.Outcome)
		require.ErrorIs(t, err, ErrStopped)
		time.Sleep(3 * time.Second)
		for _, node := range c.nodes {
			st, _ := node.store.Status(1)
			require.Equal(t, "stopped", st.State)
			require.Equal(t, kv.NoNode, node.store.Leader(1))
			require.InDelta(t, 1, testutil.ToFloat64(node.store.metrics.stopped), 0)
			require.InDelta(t, testutil.ToFloat64(node.store.metrics.leaders), map[bool]float64{true: 1}[node.store.Leader(2) == node.id], 0)
		}
		_, err = n.store.Put(ctx, 0, WriteOp{Key: []byte("k")})
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		_, err = c.put(ctx, 1, "k", "v")
		require.NoError(t, err)

		// The entry is still there after a restart, and still not skipped.
		applied := func() uint64 {
			st, _ := c.nodes[1].store.Status(1)
			return st.Applied
		}
		at := applied()
		c.powerCut(0, nil, c.ids...)
		c.startAll()
		_, err = c.put(ctx, 1, "k", "w")
		require.NoError(t, err)
		require.LessOrEqual(t, applied(), at)
	})
}

func TestUnreadableEntryStopsItsGroup(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		before, _ := n.store.Status(1)
		onLoop(n.store, func(l *loop) {
			taken, err := l.groups[1].propose([]byte{99, 1, 1})
			require.True(c.t, taken)
			require.NoError(c.t, err)
			l.touch(l.groups[1])
		})
		time.Sleep(time.Second)
		st, _ := n.store.Status(1)
		require.Equal(t, "stopped", st.State)
		require.Equal(t, before.Applied, st.Applied)
	})
}

func TestFailureOfTheMetadataMachineStopsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, time.Millisecond)
		c.meta = true
		defer c.close()
		c.startAll()
		c.bootstrap(0, 1)
		n, _ := c.awaitLeader(0, 5*time.Second)
		broken := fmt.Errorf("%w: broken", ErrUnreadable)
		n.meta.mu.Lock()
		n.meta.fail = broken
		n.meta.mu.Unlock()
		_, err := n.store.Propose(c.timeout(time.Second), 0, Proposal{Command: []byte("x")})
		require.Equal(t, kv.OutcomeUnknown, kv.AsError(err).Outcome)
		require.ErrorIs(t, c.stop(1), broken)
	})
}

func TestStoreWithoutMetadataMachineRefusesItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, time.Millisecond)
		c.meta = true
		defer c.close()
		c.startAll()
		c.bootstrap(0)
		require.NoError(t, c.stop(1))
		c.meta = false
		require.ErrorContains(t, c.tryStart(c.nodes[1]), "metadata group")
	})
}

func TestMessagesForUnknownGroupsAndBadFramesAreCountedAndDropped(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		require.NoError(t, c.nodes[1].store.Bootstrap(7, []kv.NodeID{1, 2, 3}))
		time.Sleep(time.Second)
		s := c.nodes[2].store
		require.Positive(t, testutil.ToFloat64(s.metrics.dropped.WithLabelValues(dropUnknownGroup)))
		require.ErrorIs(t, s.Receive(1, []byte{frameFormat, 1}), ErrBadFrame)
		require.ErrorIs(t, s.Receive(1, []byte{77}), ErrBadFrame)
		require.ErrorIs(t, s.Receive(1, nil), ErrBadFrame)
		require.InDelta(t, 3, testutil.ToFloat64(s.metrics.dropped.WithLabelValues(dropBadFrame)), 0)
	})
}

func TestMessagesBeyondTheInboxAreDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.cfg.InboxBytesMax = 1000
		defer c.close()
		c.startAll()
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		follower := c.nodes[c.others(n.id)[0]]
		resume := c.holdLoop(follower.store)
		for i := range 20 {
			_, err := c.put(c.timeout(time.Second), 0, value(i), fmt.Sprintf("%0200d", i))
			require.NoError(t, err, "the other two go on")
		}
		time.Sleep(500 * time.Millisecond)
		require.Positive(t, testutil.ToFloat64(follower.store.metrics.dropped.WithLabelValues(dropInboxFull)))
		require.LessOrEqual(t, follower.store.inboxBytes(), 1000.0)
		resume()
		time.Sleep(2 * time.Second)
		require.Equal(t, c.dump(1, n.id), c.dump(1, follower.id), "what was dropped is sent again")
	})
}

func TestFollowerCatchesUpAfterItsQueueWasFull(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		slow := c.others(n.id)[0]
		block := func(full bool) {
			c.net.mu.Lock()
			c.net.full[[2]kv.NodeID{n.id, slow}] = full
			c.net.mu.Unlock()
		}
		block(true)
		for i := range 50 {
			_, err := c.put(c.timeout(time.Second), 0, value(i), value(i))
			require.NoError(t, err)
		}
		require.Positive(t, testutil.ToFloat64(n.store.metrics.framesDropped))
		st, _ := c.nodes[slow].store.Status(1)
		require.Less(t, st.LastIndex, uint64(10))
		block(false)
		time.Sleep(time.Second)
		require.Equal(t, c.dump(1, n.id), c.dump(1, slow))
	})
}

func TestLeadershipIsHandedOverWithoutAGapForProposals(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		groups := []kv.GroupID{1, 2, 3, 4, 5, 6}
		c.bootstrap(groups...)
		for _, g := range groups {
			c.awaitLeader(g, 5*time.Second)
		}
		w := c.startWriters(2, 0, 5*time.Millisecond, groups...)
		time.Sleep(500 * time.Millisecond)
		n := c.nodes[1]
		require.Positive(t, testutil.ToFloat64(n.store.metrics.leaders))
		start := time.Now()
		n.store.TransferAll(c.timeout(10 * time.Second))
		require.Less(t, time.Since(start), 500*time.Millisecond)
		require.Zero(t, testutil.ToFloat64(n.store.metrics.leaders))
		for _, g := range groups {
			l, took := c.awaitLeader(g, time.Second)
			require.NotEqual(t, n.id, l.id)
			require.Less(t, took, 200*time.Millisecond)
		}
		time.Sleep(500 * time.Millisecond)
		c.requireAll(w.end())
		// A single group on demand.
		l, _ := c.awaitLeader(1, time.Second)
		l.store.TransferLeader(1, n.id)
		time.Sleep(200 * time.Millisecond)
		require.Equal(t, n.id, c.leader(1))
	})
}

func TestTransferToADeadNodeIsGivenUpAndProposalsGoOn(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		dead := c.others(n.id)[0]
		time.Sleep(time.Second)
		require.NoError(t, c.stop(dead))
		n.store.TransferLeader(1, dead)
		time.Sleep(10 * time.Millisecond)
		start := time.Now()
		o := <-putAsync(c.timeout(5*time.Second), n.store, 0, WriteOp{Key: []byte("k"), Value: []byte("v")})
		require.NoError(t, o.err, "the proposal waited the transfer out")
		require.Greater(t, time.Since(start), 100*time.Millisecond)
		require.Less(t, time.Since(start), 1500*time.Millisecond)
	})
}

func TestTransferAllReturnsWhenNobodyCanTakeOver(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		c.net.isolate(n.id, c.others(n.id), true)
		start := time.Now()
		n.store.TransferAll(c.timeout(300 * time.Millisecond))
		require.Equal(t, 300*time.Millisecond, time.Since(start))
		require.NoError(t, c.nodes[n.id].store.Bootstrap(5, []kv.NodeID{n.id}))
		c.net.isolate(n.id, c.others(n.id), false)
		time.Sleep(3 * time.Second)
		start = time.Now()
		n.store.TransferAll(c.timeout(time.Minute))
		require.Less(t, time.Since(start), 5*time.Second, "a group with one voter has nobody to go to")
		require.Equal(t, n.id, n.store.Leader(5))
	})
}

func TestStalledLoopCatchesUpWithOneTickOnly(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		follower := c.nodes[c.others(n.id)[0]]
		before, _ := n.store.Status(1)
		var ticks uint64
		onLoop(follower.store, func(l *loop) { ticks = l.ticks })
		resume := c.holdLoop(follower.store)
		time.Sleep(time.Minute)
		resume()
		var after uint64
		onLoop(follower.store, func(l *loop) { after = l.ticks })
		require.LessOrEqual(t, after-ticks, uint64(2))
		time.Sleep(time.Second)
		st, _ := n.store.Status(1)
		require.Equal(t, before.Term, st.Term, "the follower did not suspect its leader")
		require.Equal(t, n.id, c.leader(1))
	})
}

func TestRunTwiceIsAnError(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		require.Error(t, c.nodes[1].store.Run(context.Background()))
	})
}

func TestOnLeaderTellsEveryChange(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		require.NoError(t, c.stop(1))
		engine, err := storage.OpenInMemory()
		require.NoError(t, err)
		clock, err := newTestClock(engine)
		require.NoError(t, err)
		var told []kv.NodeID
		s, err := New(DefaultConfig(), Deps{
			Self: 1, Engine: engine, Clock: clock, Sender: sender{net: c.net, from: 1, fenced: c.nodes[1].fenced}, Puller: puller{},
			OnLeader: func(g kv.GroupID, leader kv.NodeID) { told = append(told, leader) },
		})
		require.NoError(t, err)
		require.NoError(t, s.Bootstrap(1, []kv.NodeID{1}))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Second)
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, []kv.NodeID{1, kv.NoNode}, told)
		require.NoError(t, engine.Close())
	})
}

func TestConfigIsValidatedAndNeverChanged(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	for name, spoil := range map[string]func(*Config){
		"election":  func(c *Config) { c.ElectionTicks = c.HeartbeatTicks },
		"inflight":  func(c *Config) { c.InflightBytesMax = 1 },
		"pending":   func(c *Config) { c.NodePendingBytesMax = 1 },
		"command":   func(c *Config) { c.CommandBytesMax = 1 << 30 },
		"tick":      func(c *Config) { c.TickInterval = 0 },
		"rounds":    func(c *Config) { c.BarrierRoundsMax = -1 },
		"campaigns": func(c *Config) { c.CampaignTicks = 0 },
		"tail":      func(c *Config) { c.LogTailBytes = c.LogBytesMax },
		"no tail":   func(c *Config) { c.LogTailBytes = 0 },
		"fetches":   func(c *Config) { c.SnapshotFetchesMax = 0 },
		"pace":      func(c *Config) { c.SnapshotBytesPerSecond = 1 << 10 },
	} {
		c := DefaultConfig()
		spoil(&c)
		require.Error(t, c.Validate(), name)
	}
	_, err := New(DefaultConfig(), Deps{})
	require.Error(t, err)
	require.False(t, errors.Is(err, ErrStopped))
}
