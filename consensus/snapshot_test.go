package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// tinyLogs makes logs short, so that a little traffic truncates them, and snapshots of many chunks.
func tinyLogs(cfg *Config) {
	cfg.LogTailBytes, cfg.LogBytesMax, cfg.LogHoldTicks = 1<<10, 8<<10, 20
	cfg.WindowBytes = 512
	cfg.SnapshotChunkBytes = 600
	cfg.SnapshotIdle = 2 * time.Second
}

// tiny runs f with three started nodes that keep short logs, and one group.
func tiny(t *testing.T, f func(c *cluster), tweaks ...func(*Config)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		tinyLogs(&c.cfg)
		for _, tweak := range tweaks {
			tweak(&c.cfg)
		}
		defer c.close()
		c.startAll()
		c.bootstrap(1)
		c.awaitLeader(1, 5*time.Second)
		f(c)
	})
}

// overwrite writes the keys n times in all, through whoever leads.
func (c *cluster) overwrite(n, keys int) {
	c.t.Helper()
	for i := range n {
		_, err := c.put(c.timeout(10*time.Second), 0, value(i%keys), fmt.Sprintf("%s %0100d", value(i), i))
		require.NoError(c.t, err, "write %d", i)
	}
}

// pace sets how fast the running nodes send snapshots.
func (c *cluster) pace(perSecond int64) {
	for _, n := range c.nodes {
		if s, _ := n.life(); s != nil {
			s.pace.mu.Lock()
			s.pace.perSecond, s.pace.next = perSecond, time.Time{}
			s.pace.mu.Unlock()
		}
	}
}

func (c *cluster) status(id kv.NodeID) GroupStatus {
	s, _ := c.nodes[id].life()
	require.NotNil(c.t, s)
	st, ok := s.Status(1)
	require.True(c.t, ok)
	return st
}

// follower returns a node that does not lead the group.
func (c *cluster) follower() kv.NodeID {
	leader := c.leader(1)
	for _, id := range c.ids {
		if id != leader {
			return id
		}
	}
	return kv.NoNode
}

// awaitCaughtUp waits until the node has applied what the leader has, and compares their states.
func (c *cluster) awaitCaughtUp(id kv.NodeID, limit time.Duration) {
	c.t.Helper()
	leader, _ := c.awaitLeader(1, 10*time.Second)
	start := time.Now()
	// Either may be ahead of what it has published.
	for c.status(id).Applied != c.status(leader.id).Applied || !reflect.DeepEqual(c.dump(1, leader.id), c.dump(1, id)) {
		if time.Since(start) > limit {
			require.Equal(c.t, c.status(leader.id).Applied, c.status(id).Applied)
			require.Equal(c.t, c.dump(1, leader.id), c.dump(1, id))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func snapshots(s *Store, direction, result string) float64 {
	return testutil.ToFloat64(s.metrics.snapshots.WithLabelValues(direction, result))
}

func TestLogsStayShortUnderOverwrites(t *testing.T) {
	tiny(t, func(c *cluster) {
		for range 5 {
			c.overwrite(300, 10)
			for _, id := range c.ids {
				st := c.status(id)
				require.Less(t, st.LogBytes, c.cfg.LogBytesMax, "node %d", id)
				require.Greater(t, st.FirstIndex, uint64(2))
				require.GreaterOrEqual(t, st.Applied+1, st.FirstIndex)
			}
		}
		for _, id := range c.ids {
			require.Zero(t, c.status(id).SnapshotsReceived, "nobody lagged")
			onDisk := uint64(0)
			require.NoError(t, c.nodes[id].engine.Log().Sizes(1, func(_, bytes uint64) { onDisk += bytes }))
			require.InDelta(t, float64(onDisk), float64(c.status(id).LogBytes), 500)
		}
	})
}

func TestDiskUseIsBoundedUnderOverwrites(t *testing.T) { diskUseIsBounded(t, false) }

// A follower that is gone for long keeps no log: it needs a snapshot anyway.
func TestDiskUseIsBoundedWhileAFollowerIsDead(t *testing.T) { diskUseIsBounded(t, true) }

func diskUseIsBounded(t *testing.T, dead bool) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		tinyLogs(&c.cfg)
		c.memtableBytes = 256 << 10
		defer c.close()
		c.startAll()
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		away := kv.NoNode
		if dead {
			away = c.follower()
			require.NoError(t, c.stop(away))
		}
		const writers, writes, valueBytes = 16, 500, 1 << 10
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range writes {
					v := fmt.Appendf(nil, "%0*d", valueBytes, i)
					_, err := n.store.Put(context.Background(), 0, WriteOp{Key: fmt.Appendf(nil, "%d", w), Value: v})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		// Truncation goes by ticks, and all of that took no time. It comes with a write, and a follower may hold it up for
		// LogHoldTicks.
		for i := range 2 * c.cfg.LogHoldTicks {
			time.Sleep(150 * time.Millisecond)
			_, err := n.store.Put(context.Background(), 0, WriteOp{Key: fmt.Append(nil, i)})
			require.NoError(t, err)
		}
		time.Sleep(5 * time.Second) // compactions end
		for _, id := range c.ids {
			if id == away {
				continue
			}
			require.LessOrEqual(t, c.status(id).LogBytes, 2*c.cfg.LogBytesMax, "the log of node %d", id)
			size := int64(0)
			fs := c.nodes[id].fs
			names, err := fs.List("data")
			require.NoError(t, err)
			for _, name := range names {
				fi, err := fs.Stat(fs.PathJoin("data", name))
				require.NoError(t, err)
				size += fi.Size()
			}
			require.Less(t, size, int64(writers*writes*valueBytes/4), "node %d wrote 8 MB of values and holds 16 KB", id)
		}
	})
}

func TestFollowerThatWasAwayForLongCatchesUpBySnapshot(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(1000, 40)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		require.Greater(t, c.status(leader.id).FirstIndex, uint64(500), "the log goes on without it")
		c.start(away)
		c.awaitCaughtUp(away, 10*time.Second)
		require.EqualValues(t, 1, c.status(away).SnapshotsReceived)
		leader, _ = c.awaitLeader(1, 5*time.Second)
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 1, c.status(leader.id).SnapshotsSent)
		require.InDelta(t, 1, snapshots(leader.store, directionSent, resultOK), 0)

		// It is a full member again: with it, and without one of the others, writes are committed.
		for _, id := range c.ids {
			if id != away && id != leader.id {
				require.NoError(t, c.stop(id))
			}
		}
		c.overwrite(100, 40)
		c.awaitCaughtUp(away, 10*time.Second)
	})
}

func TestFollowerThatWasAwayBrieflyNeedsNoSnapshot(t *testing.T) {
	tiny(t, func(c *cluster) {
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(30, 10) // less than LogBytesMax and LogHoldTicks
		c.start(away)
		c.awaitCaughtUp(away, 10*time.Second)
		require.Zero(t, c.status(away).SnapshotsReceived)
	})
}

func TestSnapshotIsTakenWhileWritesGoOn(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 100)
		c.pace(20 << 10) // it takes a second
		w := c.startWriters(4, 0, 3*time.Millisecond, 1)
		c.start(away)
		time.Sleep(8 * time.Second)
		c.requireAll(w.end())
		c.awaitCaughtUp(away, 10*time.Second)
		require.Positive(t, c.status(away).SnapshotsReceived)
		require.LessOrEqual(t, c.status(away).SnapshotsReceived, uint64(2), "what follows a snapshot is kept for it")
	})
}

// What a snapshot holds survives the crash of who installed it, at any moment, and the log goes on behind it.
func TestPowerCutsAroundAnInstallLoseNothing(t *testing.T) {
	for seed := range uint64(6) {
		tiny(t, func(c *cluster) {
			rng := rand.New(rand.NewPCG(seed, 1))
			c.overwrite(50, 20)
			away := c.follower()
			require.NoError(t, c.stop(away))
			c.overwrite(600, 60)
			c.start(away)
			for range 12 {
				time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
				c.powerCut(rng.IntN(101), rng, away)
				c.start(away) // openLog checks that the rows fit together
				c.overwrite(rng.IntN(20), 60)
			}
			c.awaitCaughtUp(away, 20*time.Second)
		})
	}
}

func TestReplicaThatInstalledASnapshotRestarts(t *testing.T) {
	tiny(t, func(c *cluster) {
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 60)
		c.start(away)
		c.awaitCaughtUp(away, 10*time.Second)
		before := c.status(away)
		c.powerCut(0, nil, away)
		c.start(away)
		require.GreaterOrEqual(t, c.status(away).FirstIndex, before.FirstIndex)
		c.overwrite(10, 60)
		c.awaitCaughtUp(away, 10*time.Second)
	})
}

// The state on the disk may lag behind what was applied. What a crash sets back must still be in the log.
func TestPowerCutsWhileLogsAreTruncatedLoseNothing(t *testing.T) {
	tiny(t, func(c *cluster) {
		rng := rand.New(rand.NewPCG(7, 7))
		for range 15 {
			c.overwrite(40, 10)
			c.powerCut(0, rng, c.ids...)
			c.startAll()
			c.awaitLeader(1, 10*time.Second)
		}
		for _, id := range c.ids {
			c.awaitCaughtUp(id, 10*time.Second)
		}
	})
}

func TestLeaderThatChangesAbortsTheSnapshotAndTheNextOneSendsAnother(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 100)
		c.pace(5 << 10)
		old := c.leader(1)
		c.start(away)
		time.Sleep(1500 * time.Millisecond)
		require.Zero(t, c.status(away).SnapshotsReceived)
		c.powerCut(0, nil, old)
		c.pace(64 << 20)
		c.start(old)
		c.awaitLeader(1, 10*time.Second)
		c.overwrite(10, 10)
		c.awaitCaughtUp(away, 60*time.Second)
		require.EqualValues(t, 1, c.status(away).SnapshotsReceived)
	})
}

func TestSnapshotSurvivesALossyNetworkAndADeadOneIsGivenUp(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 100)
		var pulls atomic.Int64
		cut := false
		c.onPull = func(from, _ kv.NodeID, _ []byte) {
			if n := pulls.Add(1); n == 8 && !cut {
				cut = true
				c.net.isolate(from, c.ids, true)
			}
		}
		leader, _ := c.awaitLeader(1, 5*time.Second)
		c.start(away)
		time.Sleep(20 * time.Second)
		require.True(t, cut)
		require.Zero(t, c.status(away).SnapshotsReceived)
		require.Positive(t, snapshots(leader.store, directionSent, resultFailed), "the leader does not keep its log for ever")
		c.net.isolate(away, c.ids, false)
		c.overwrite(300, 100)
		c.awaitCaughtUp(away, 30*time.Second)
		for _, id := range c.ids {
			onLoop(c.nodes[id].store, func(l *loop) { require.Zero(t, l.fetching+len(l.offers)) })
		}
	})
}

func TestMetadataMachineLearnsOfASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		tinyLogs(&c.cfg)
		c.meta = true
		defer c.close()
		c.startAll()
		c.bootstrap(0)
		n, _ := c.awaitLeader(0, 5*time.Second)
		away := c.ids[0]
		if away == n.id {
			away = c.ids[1]
		}
		require.NoError(t, c.stop(away))
		for i := range 300 {
			_, err := n.store.Propose(c.timeout(time.Second), 0, Proposal{Command: fmt.Appendf(nil, "%050d", i)})
			require.NoError(t, err)
		}
		c.start(away)
		time.Sleep(5 * time.Second)
		c.nodes[away].meta.mu.Lock()
		defer c.nodes[away].meta.mu.Unlock()
		require.Equal(t, 1, c.nodes[away].meta.restored)
	})
}

func TestTruncationIsHeldBackByWhatIsStillNeeded(t *testing.T) {
	all := truncationLimits{applied: 100, tail: 90, snapshots: 80, match: 70}
	require.EqualValues(t, 70, all.index())
	all.oversize = true
	require.EqualValues(t, 80, all.index(), "a lagging follower no longer counts, a snapshot under way does")
	all.snapshots = 200
	require.EqualValues(t, 90, all.index())
	all.tail = 150
	require.EqualValues(t, 100, all.index(), "never beyond what is applied durably")
}

// Found by review: a new leader took a follower that was away for one that needs a snapshot anyway, because it did not know
// what the follower has.
func TestNewLeaderKeepsTheLogForAFollowerThatIsAwayBriefly(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(30, 10)
		away := c.follower()
		require.NoError(t, c.stop(away))
		old, _ := c.awaitLeader(1, 5*time.Second)
		old.store.TransferAll(c.timeout(5 * time.Second))
		c.overwrite(30, 10) // less than LogBytesMax and LogHoldTicks
		next, _ := c.awaitLeader(1, 5*time.Second)
		require.NotEqual(t, old.id, next.id)
		c.start(away)
		c.awaitCaughtUp(away, 10*time.Second)
		require.Zero(t, c.status(away).SnapshotsReceived)
	})
}

// A truncation is written only when a batch that follows the applied entries is durable.
func TestTruncationWaitsUntilTheAppliedStateIsDurable(t *testing.T) {
	tiny(t, func(c *cluster) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				_, _ = c.put(c.timeout(time.Second), 0, "k", fmt.Sprintf("%0100d", i))
			}
		})
		for range 80 {
			time.Sleep(3 * time.Millisecond)
			for _, n := range c.nodes {
				cfg := storage.DefaultConfig()
				cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
				e, err := storage.Open("data", cfg, storage.Deps{FS: n.fs.CrashClone(vfs.CrashCloneCfg{})})
				require.NoError(t, err)
				_, err = openLog(1, e.Log(), 1<<20, 1)
				require.NoError(t, err)
				require.NoError(t, e.Close())
			}
		}
		close(stop)
		wg.Wait()
		for _, id := range c.ids {
			require.Positive(t, testutil.ToFloat64(c.nodes[id].store.metrics.truncations))
		}
	})
}

func TestSnapshotDecidesWhatBecomesOfOwnEntries(t *testing.T) {
	at := func(term, index uint64) *proposed { return &proposed{pos: causal.Position{Term: term, Index: index}} }
	p := pendings{placed: []*proposed{at(2, 5), at(2, 30), at(4, 10), at(4, 31), at(5, 20), at(5, 32)}}
	unknown, overwritten := p.installed(causal.Position{Term: 4, Index: 30})
	require.Equal(t, []*proposed{at(2, 5), at(2, 30), at(4, 10)}, unknown)
	require.Equal(t, []*proposed{at(5, 20)}, overwritten)
	require.Equal(t, []*proposed{at(4, 31), at(5, 32)}, p.placed)
	_, overwritten = p.installed(causal.Position{Term: 5, Index: 30})
	require.Equal(t, []*proposed{at(4, 31)}, overwritten)
}

func TestLogSizeFollowsTheLogRoughly(t *testing.T) {
	const grain = 64
	rng := rand.New(rand.NewPCG(1, 1))
	s := logSize{grain: grain}
	var twin []uint64 // sizes of the entries from first on
	first, entryMax := uint64(1), uint64(50)
	sum := func(v []uint64) (n uint64) {
		for _, b := range v {
			n += b
		}
		return n
	}
	for range 20_000 {
		switch rng.IntN(12) {
		case 0:
			if len(twin) > 0 {
				n := rng.IntN(len(twin))
				twin = twin[:n]
				s.cutSuffix(first + uint64(n))
				// It may have forgotten a few more; they come again here as they do not in a log.
				if lost := sum(twin) - min(s.bytes(), sum(twin)); lost > 0 {
					s.end += lost
				}
			}
		case 1:
			if len(twin) > 0 {
				n := rng.IntN(len(twin))
				s.cutPrefix(first + uint64(n) - 1)
				first, twin = first+uint64(n), twin[n:]
			}
		default:
			b := rng.Uint64N(entryMax) + 1
			s.add(first+uint64(len(twin)), b)
			twin = append(twin, b)
		}
		require.InDelta(t, float64(sum(twin)), float64(s.bytes()), 3*(grain+float64(entryMax)))
		if at := s.before(100); at >= first {
			require.GreaterOrEqual(t, sum(twin[at-first+1:])+2*(grain+entryMax), uint64(100))
		}
	}
	s.clear()
	require.Zero(t, s.bytes())
}

func TestPaceSpreadsBytesOverTime(t *testing.T) {
	now := time.Now()
	p := pace{perSecond: 1000}
	require.Equal(t, now, p.reserve(500, now))
	require.Equal(t, now.Add(500*time.Millisecond), p.reserve(1000, now))
	require.Equal(t, now.Add(1500*time.Millisecond), p.reserve(1, now))
	later := now.Add(time.Hour)
	require.Equal(t, later, p.reserve(1, later), "what was not used is not saved up")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p = pace{perSecond: 1000}
	require.NoError(t, p.wait(ctx, 1_000_000))
	require.ErrorIs(t, p.wait(ctx, 1), context.Canceled)
}

func TestPullsAreReadBackAndDamageIsNoticed(t *testing.T) {
	req := pullRequest{verb: pullNext, group: 70000, least: 1 << 40, session: ^uint64(0), after: []byte("key")}
	raw := req.append(nil)
	got, err := decodePullRequest(raw)
	require.NoError(t, err)
	require.Equal(t, req, got)
	reply := pullReply{status: pullOK, session: 9, next: []byte("key"), rows: []byte("rows")}
	enc := reply.append(nil)
	back, err := decodePullReply(enc)
	require.NoError(t, err)
	require.Equal(t, reply, back)
	for i := range raw {
		_, err := decodePullRequest(raw[:i])
		require.ErrorIs(t, err, ErrBadFrame)
	}
	for i := range len(enc) - len(reply.rows) {
		_, err := decodePullReply(enc[:i])
		require.ErrorIs(t, err, ErrBadFrame)
	}
	enc[len(enc)-1] ^= 1
	_, err = decodePullReply(enc)
	require.ErrorIs(t, err, ErrBadFrame)
	_, err = decodePullRequest([]byte{9})
	require.ErrorIs(t, err, ErrBadFrame)
}

func TestServingSnapshotsIsBounded(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(200, 100)
		s := c.nodes[1].store
		ask := func(from kv.NodeID, p pullRequest) pullReply {
			raw, err := s.ServePull(c.timeout(time.Second), from, p.append(nil))
			require.NoError(t, err)
			reply, err := decodePullReply(raw)
			require.NoError(t, err)
			return reply
		}
		open := pullRequest{verb: pullOpen, group: 1}
		first := ask(7, open)
		require.Equal(t, pullOK, first.status)
		require.NotNil(t, first.next)
		require.LessOrEqual(t, len(first.rows), c.cfg.SnapshotChunkBytes)
		again := ask(7, open)
		require.Equal(t, pullOK, again.status, "who asks anew gives the old one up")
		require.Equal(t, pullGone, ask(7, pullRequest{verb: pullNext, group: 1, session: first.session, after: first.next}).status)
		require.Equal(t, pullOK, ask(8, open).status)
		require.Equal(t, pullBusy, ask(9, open).status)
		next := pullRequest{verb: pullNext, group: 1, session: again.session, after: again.next}
		require.Equal(t, pullGone, ask(9, next).status, "another's session")
		require.Equal(t, ask(7, next), ask(7, next), "a repeated request has the same answer")
		require.Equal(t, pullGone, ask(9, pullRequest{verb: pullOpen, group: 77}).status)
		time.Sleep(3 * c.cfg.SnapshotIdle)
		require.Equal(t, pullGone, ask(7, next).status, "idle ones are closed")
		require.Equal(t, pullOK, ask(9, open).status)
		require.Equal(t, pullGone, ask(7, pullRequest{verb: pullOpen, group: 1, least: 1 << 40}).status)
		_, err := s.ServePull(c.timeout(time.Second), 7, []byte("nonsense"))
		require.ErrorIs(t, err, ErrBadFrame)
		require.False(t, errors.Is(err, ErrStopped))
	})
}
