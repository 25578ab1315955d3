package consensus

import (
	"errors"
	"fmt"
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
	time.Sleep(400 * time.Millisecond)
	old := c.leader(1)
	c.nodes[old].store.TransferAll(c.timeout(5 * time.Second))
	time.Sleep(200 * time.Millisecond)
	c.requireAll(w.end())
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Greater(t, p.checked[pb.MsgAppResp], 50)
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

func TestCommitIndexOnDiskNeverFallsBehindApplied(t *testing.T) {
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
				hard, _, err := e.Log().HardState(1)
				require.NoError(t, err)
				applied, _, err := e.Log().Applied(1)
				require.NoError(t, err)
				require.GreaterOrEqual(t, hard.Commit, applied.Index)
				_, err = openLog(1, e.Log(), 1<<20)
				require.NoError(t, err)
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

// A restart reads what it needs, not the log: the applied index is on disk and nothing is replayed from the start.
func TestRestartIsQuickWithALongLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 0)
		defer c.close()
		c.start(1)
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		require.NoError(t, c.stop(1))
		entries := uint64(200_000)
		appendEntries(t, n, 1, entries)

		c.start(1)
		var window int
		onLoop(n.store, func(l *loop) { window = len(l.groups[1].log.win.entries) })
		require.Less(t, window, 10, "the log was loaded into memory")
		_, err := c.put(c.timeout(10*time.Second), 0, "k", "v")
		require.NoError(t, err)
		st, _ := n.store.Status(1)
		require.Greater(t, st.Applied, entries)
		require.InDelta(t, float64(st.Applied-entries), testutil.ToFloat64(n.store.metrics.applied), 10)
	})
}

// appendEntries adds applied entries to a stopped node's log, as a long life would have.
func appendEntries(t *testing.T, n *node, g kv.GroupID, count uint64) {
	cfg := storage.DefaultConfig()
	cfg.CacheBytes = 8 << 20
	e, err := storage.Open("data", cfg, storage.Deps{FS: n.fs})
	require.NoError(t, err)
	last, _, err := e.Log().LastEntry(g)
	require.NoError(t, err)
	conf, _, err := e.Log().Applied(g)
	require.NoError(t, err)
	command := encodeCommand(WriteOp{Key: []byte("key"), Value: []byte("0123456789")})
	data := appendBytes(appendEntryHeader(nil, entryHeader{proposer: 1, sequence: 1, time: 1, commands: 1}), command)
	for done := uint64(0); done < count; {
		b := e.NewBatch()
		for range min(10_000, count-done) {
			done++
			b.AppendEntry(g, storage.LogEntry{Index: last.Index + done, Term: last.Term, Data: data})
		}
		end := last.Index + done
		b.SetHardState(g, storage.HardState{Term: last.Term, Vote: 1, Commit: end})
		b.SetApplied(g, storage.Applied{Index: end, Term: last.Term, ConfState: conf.ConfState})
		require.NoError(t, e.ApplyNoSync(b))
		b.Close()
	}
	require.NoError(t, e.Close())
}

// A follower that was away for longer than the window reaches back is caught up from storage.
func TestFollowerBehindTheWindowCatchesUpFromStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.cfg.WindowBytes, c.cfg.AppendBytesMax = 4<<10, 8<<10
		defer c.close()
		c.startAll()
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		late := c.others(n.id)[0]
		require.NoError(t, c.stop(late))
		ctx := c.timeout(time.Minute)
		for i := range 200 {
			_, err := c.put(ctx, 0, value(i), fmt.Sprintf("%01000d", i))
			require.NoError(t, err)
		}
		c.start(late)
		time.Sleep(3 * time.Second)
		require.Equal(t, c.dump(1, n.id), c.dump(1, late))
		require.Len(t, c.dump(1, late), 200)
	})
}

func TestCorruptLogIsAnErrorThatNamesTheGroup(t *testing.T) {
	for name, spoil := range map[string]func(b *storage.Batch){
		"commit behind applied": func(b *storage.Batch) { b.SetHardState(1, storage.HardState{Term: 9, Commit: 0}) },
		"commit beyond the log": func(b *storage.Batch) { b.SetHardState(1, storage.HardState{Term: 9, Commit: 99}) },
		"unknown configuration": func(b *storage.Batch) {
			b.SetApplied(1, storage.Applied{Index: 1, Term: 1, ConfState: []byte{42}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := storage.OpenInMemory()
			require.NoError(t, err)
			defer func() { require.NoError(t, e.Close()) }()
			clock, err := newTestClock(e)
			require.NoError(t, err)
			deps := Deps{Self: 1, Engine: e, Clock: clock, Sender: sender{}}
			s, err := New(DefaultConfig(), deps)
			require.NoError(t, err)
			require.NoError(t, s.Bootstrap(1, []kv.NodeID{1}))
			b := e.NewBatch()
			spoil(b)
			require.NoError(t, e.ApplySync(b))
			b.Close()
			_, err = New(DefaultConfig(), deps)
			require.ErrorIs(t, err, storage.ErrCorruption)
			require.ErrorContains(t, err, "group 1")
		})
	}
}

// An entry lost in the middle of the log is met when a follower needs it. The replica stops; the store goes on.
func TestReplicaStopsAtAHoleInItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.cfg.WindowBytes = 1
		defer c.close()
		c.startAll()
		c.bootstrap(1, 2)
		n, _ := c.awaitLeader(1, 5*time.Second)
		late := c.others(n.id)[0]
		require.NoError(t, c.stop(late))
		ctx := c.timeout(time.Minute)
		var hole uint64
		for i := range 20 {
			r, err := c.put(ctx, 0, value(i), value(i))
			require.NoError(t, err)
			if i == 10 {
				hole = r.Revision
			}
		}
		b := n.engine.NewBatch()
		b.DeleteEntriesThrough(1, hole)
		require.NoError(t, n.engine.ApplySync(b))
		b.Close()
		c.start(late)
		time.Sleep(2 * time.Second)
		st, _ := n.store.Status(1)
		require.Equal(t, "stopped", st.State)
		_, err := c.put(ctx, 1, "k", "v")
		require.NoError(t, err)
		select {
		case err := <-n.done:
			t.Fatal("the store stopped:", err)
		default:
		}
	})
}
