package consensus

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// A follower's disk that is slower than its leaders' must not make it refuse what it will soon be able to take: each refusal has
// the leader send everything again that the follower is only about to write.
func TestFollowerWhoseDiskHangsRefusesNothing(t *testing.T) {
	var refused, empty atomic.Int64
	c := newCluster(t, 3, time.Millisecond)
	c.cfg.TickInterval = 150 * time.Millisecond
	c.memtableBytes = 4 << 20
	disk := make(map[kv.NodeID]*storage.FaultFS)
	for id, n := range c.nodes {
		n.wrap = func(fs vfs.FS) vfs.FS {
			disk[id] = storage.NewFaultFS(fs)
			return disk[id]
		}
	}
	var slow atomic.Uint64
	c.net.observe = func(from, to kv.NodeID, frame []byte) {
		in, _ := decodeFrame(frame)
		for _, m := range in {
			switch {
			case m.msg.GetType() == pb.MsgAppResp && m.msg.GetReject() && uint64(from) == slow.Load():
				refused.Add(1)
			case m.msg.GetType() == pb.MsgApp && len(m.msg.GetEntries()) == 0 && uint64(to) == slow.Load():
				empty.Add(1)
			default:
			}
		}
	}
	c.startAll()
	t.Cleanup(c.close)
	c.bootstrap(1)
	leader, _ := c.awaitLeader(1, 10*time.Second)
	c.grow(t, 1)
	follower := c.others(leader.id)[0]
	slow.Store(uint64(follower))
	disk[follower].Set(storage.DiskFault{Mode: storage.DiskSlow, Delay: time.Minute})
	defer disk[follower].Set(storage.DiskFault{})
	for i := range 50 {
		_, err := c.put(c.timeout(5*time.Second), 0, value(i), "v")
		require.NoError(t, err)
		time.Sleep(20 * time.Millisecond)
	}
	require.Positive(t, empty.Load(), "nothing told the follower what is committed; the test proves nothing")
	require.Zero(t, refused.Load())
	disk[follower].Set(storage.DiskFault{})
	last, _ := leader.store.Status(1)
	require.Eventually(t, func() bool {
		st, _ := c.nodes[follower].store.Status(1)
		return st.Applied >= last.Applied
	}, 10*time.Second, time.Millisecond)
	require.Zero(t, refused.Load())
}

// A leader whose disk hangs must be able to hand over what a follower has missed: nothing but an append, if only an empty one,
// makes the follower say what it lacks.
func TestLeaderWhoseDiskHangsCatchesUpAFollowerAndHandsOver(t *testing.T) {
	var lossy atomic.Bool
	var lost atomic.Int64
	c := newCluster(t, 3, time.Millisecond)
	defer c.close()
	disks := make(map[kv.NodeID]*stallingDisk)
	for id, n := range c.nodes {
		disks[id] = &stallingDisk{}
		n.wrap = disks[id].wrap
	}
	c.net.lose = func(_, _ kv.NodeID, frame []byte) bool {
		in, _ := decodeFrame(frame)
		lose := lossy.Load() && slices.ContainsFunc(in, func(m inbound) bool { return len(m.msg.GetEntries()) > 0 })
		if lose {
			lost.Add(1)
		}
		return lose
	}
	c.startAll()
	c.bootstrap(1)
	n, _ := c.awaitLeader(1, 10*time.Second)
	_, err := c.put(c.timeout(5*time.Second), 0, "before", "v")
	require.NoError(t, err)
	disk := disks[n.id]
	disk.mu.Lock()
	defer disk.mu.Unlock()
	lossy.Store(true)
	_, err = n.store.Put(c.timeout(300*time.Millisecond), 0, WriteOp{Key: []byte("a"), Value: []byte("v")})
	require.Error(t, err)
	require.GreaterOrEqual(t, lost.Load(), int64(2), "neither follower has the entry")
	lossy.Store(false)
	n.store.TransferAll(c.timeout(10 * time.Second))
	require.Eventually(t, func() bool { id := c.leader(1); return id != kv.NoNode && id != n.id }, 5*time.Second, time.Millisecond)
}
