package consensus

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func isSync(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo
}

// slowSync delays every sync, so that whatever does not wait for it is seen not to.
func slowSync(d time.Duration) func(vfs.FS) vfs.FS {
	return func(fs vfs.FS) vfs.FS {
		return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if isSync(op) {
				time.Sleep(d)
			}
			return nil
		}))
	}
}

// promises checks, whenever a node sends, that a power cut at this very moment would leave what the message promises.
type promises struct {
	t       *testing.T
	c       *cluster
	checked map[pb.MessageType]int
	mu      sync.Mutex
}

func (p *promises) observe(from, _ kv.NodeID, frame []byte) {
	in, err := decodeFrame(frame)
	if err != nil {
		p.t.Error(err)
		return
	}
	for _, m := range in {
		switch m.msg.GetType() {
		case pb.MsgAppResp, pb.MsgVoteResp:
			if !m.msg.GetReject() {
				p.check(from, m.group, m.msg)
			}
		}
	}
}

// check opens what a power cut would have left of the sender's disk.
func (p *promises) check(from kv.NodeID, g kv.GroupID, m *pb.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checked[m.GetType()]++
	cfg := storage.DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
	e, err := storage.Open("data", cfg, storage.Deps{FS: p.c.nodes[from].fs.CrashClone(vfs.CrashCloneCfg{})})
	if err != nil {
		p.t.Error(err)
		return
	}
	defer func() { _ = e.Close() }()
	hard, _, err := e.Log().HardState(g)
	if err != nil {
		p.t.Error(err)
	}
	if m.GetType() == pb.MsgVoteResp {
		if hard.Term < m.GetTerm() || (hard.Term == m.GetTerm() && hard.Vote != m.GetTo()) {
			p.t.Errorf("node %d sent its vote for %d in term %d, and has %+v on disk", from, m.GetTo(), m.GetTerm(), hard)
		}
		return
	}
	last, found, err := e.Log().LastEntry(g)
	if err != nil {
		p.t.Error(err)
	}
	if !found {
		last = firstPosition
	}
	if last.Index < m.GetIndex() {
		p.t.Errorf("node %d acknowledged entry %d and has %d on disk", from, m.GetIndex(), last.Index)
	}
	if hard.Term < m.GetTerm() {
		p.t.Errorf("node %d answered in term %d and has term %d on disk", from, m.GetTerm(), hard.Term)
	}
}

// In real time: a sync that sleeps inside the filesystem would hang a bubble.
func TestVotesAndAcknowledgementsLeaveOnlyOnceTheyAreDurable(t *testing.T) {
	c := newCluster(t, 3, time.Millisecond)
	defer c.close()
	for _, n := range c.nodes {
		n.wrap = slowSync(3 * time.Millisecond)
	}
	p := &promises{t: t, c: c, checked: make(map[pb.MessageType]int)}
	c.net.observe = p.observe
	c.startAll()
	c.bootstrap(1, 2, 3)
	for g := range kv.GroupID(3) {
		c.awaitLeader(g+1, 10*time.Second)
	}
	w := c.startWriters(2, 0, 5*time.Millisecond, 1, 2, 3)
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.checked[pb.MsgAppResp] > 50
	}, 20*time.Second, 10*time.Millisecond, "a quiet run proves nothing")
	old := c.leader(1)
	c.nodes[old].store.TransferAll(c.timeout(5 * time.Second))
	time.Sleep(200 * time.Millisecond)
	c.requireAll(w.end())
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Positive(t, p.checked[pb.MsgVoteResp])
}

// A client's answer is a promise as well: at the moment it arrives, a power cut of all nodes must not lose the write.
func TestAnswersArriveOnlyOnceAMajorityIsDurable(t *testing.T) {
	c := newCluster(t, 3, time.Millisecond)
	defer c.close()
	for _, n := range c.nodes {
		n.wrap = slowSync(2 * time.Millisecond)
	}
	c.startAll()
	c.bootstrap(1)
	c.awaitLeader(1, 10*time.Second)
	for i := range 15 {
		r, err := c.put(c.timeout(5*time.Second), 0, value(i), value(i))
		require.NoError(t, err)
		holders := 0
		for _, n := range c.nodes {
			cfg := storage.DefaultConfig()
			cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
			e, err := storage.Open("data", cfg, storage.Deps{FS: n.fs.CrashClone(vfs.CrashCloneCfg{})})
			require.NoError(t, err)
			term, found, err := e.Log().Term(1, r.Revision)
			require.NoError(t, err)
			if found && term == r.Stamp.Base.Term {
				holders++
			}
			require.NoError(t, e.Close())
		}
		require.GreaterOrEqual(t, holders, 2, "write %d", i)
	}
}

func TestLoopWaitsForADiskThatCannotKeepUp(t *testing.T) {
	c := newCluster(t, 3, time.Millisecond)
	c.cfg.SyncsMax = 1
	defer c.close()
	for _, n := range c.nodes {
		n.wrap = slowSync(4 * time.Millisecond)
	}
	c.startAll()
	c.bootstrap(1, 2, 3)
	c.awaitLeader(1, 10*time.Second)
	w := c.startWriters(10, 0, time.Millisecond, 1, 2, 3)
	time.Sleep(300 * time.Millisecond)
	c.requireAll(w.end())
	require.Greater(t, w.total, 50)
	waits := 0.0
	for _, n := range c.nodes {
		waits += testutil.ToFloat64(n.store.metrics.syncWaits)
	}
	require.Positive(t, waits)
}

func TestCommitIndexAfterAPowerCutIsBetweenAppliedAndTheLog(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		c.awaitLeader(1, 5*time.Second)
		w := c.startWriters(5, 0, 5*time.Millisecond, 1)
		for range 40 {
			time.Sleep(7 * time.Millisecond)
			for _, n := range c.nodes {
				cfg := storage.DefaultConfig()
				cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
				e, err := storage.Open("data", cfg, storage.Deps{FS: n.fs.CrashClone(vfs.CrashCloneCfg{})})
				require.NoError(t, err)
				applied, _, err := e.Log().Applied(1)
				require.NoError(t, err)
				log, err := openLog(1, e.Log(), 1<<20, 1<<10)
				require.NoError(t, err)
				require.GreaterOrEqual(t, log.hard.Commit, applied.Index)
				require.GreaterOrEqual(t, log.last.Index, log.hard.Commit)
				require.NoError(t, e.Close())
			}
		}
		w.end()
	})
}

func TestDiskFailureStopsTheStoreAndAcknowledgesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		defer c.close()
		var broken atomic.Bool
		c.nodes[1].wrap = func(fs vfs.FS) vfs.FS {
			return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if broken.Load() && isSync(op) {
					return errors.New("the disk is on fire")
				}
				return nil
			}))
		}
		c.startAll()
		c.bootstrap(3) // prefers node 1
		n, _ := c.awaitLeader(3, 5*time.Second)
		require.Equal(t, kv.NodeID(1), n.id)
		broken.Store(true)
		filled := make(chan error, 1)
		require.NoError(t, n.store.Commit(func(b *storage.Batch) { b.SetNodeRow("x", nil) }, func(err error) { filled <- err }))
		require.Error(t, <-filled)
		require.Error(t, <-n.done)
		n.done <- nil
		_, err := n.store.Put(c.timeout(time.Second), 2, WriteOp{Key: []byte("k")})
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		c.net.plug(1, nil)
		_, err = c.put(c.timeout(10*time.Second), 2, "k", "v")
		require.NoError(t, err, "the others go on")
	})
}

func TestIdleGroupsWriteNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		defer c.close()
		var writes atomic.Int64
		for _, n := range c.nodes {
			n.wrap = func(fs vfs.FS) vfs.FS {
				return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if op.Kind == errorfs.OpFileWrite || isSync(op) {
						writes.Add(1)
					}
					return nil
				}))
			}
		}
		c.startAll()
		c.bootstrap(1, 2, 3)
		c.awaitLeader(1, 5*time.Second)
		time.Sleep(5 * time.Second)
		before := writes.Load()
		time.Sleep(time.Minute)
		require.Equal(t, before, writes.Load(), "heartbeats and ticks need no disk")
		n, _ := c.awaitLeader(1, time.Second)
		for range 10 {
			require.NoError(t, n.store.ReadBarrier(c.timeout(time.Second), 1))
		}
		require.Equal(t, before, writes.Load(), "nor do reads")
	})
}
