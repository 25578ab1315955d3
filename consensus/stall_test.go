package consensus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// stallGroups are led one by each node.
var stallGroups = []kv.GroupID{1, 2, 3}

// stallable starts three nodes, in real time, whose disks can be made to hang, and clients that write to every group for as
// long as the test runs. A bubble would not do: Pebble holds mutexes across syncs.
func stallable(t *testing.T, wrap func(id kv.NodeID, fs vfs.FS) vfs.FS) *cluster {
	c := newCluster(t, 3, time.Millisecond)
	c.cfg.TickInterval = 150 * time.Millisecond // elections take 1.5 to 3 s, long enough for a busy machine
	c.memtableBytes = 4 << 20
	for id, n := range c.nodes {
		n.wrap = func(fs vfs.FS) vfs.FS { return wrap(id, fs) }
	}
	c.startAll()
	t.Cleanup(c.close)
	c.bootstrap(stallGroups...)
	for _, g := range stallGroups {
		c.awaitLeader(g, 10*time.Second)
	}
	return c
}

// writeAlong writes values of the size to every group until the test ends, several at a time and a pause apart, and counts what
// was acknowledged.
func (c *cluster) writeAlong(t *testing.T, size int, pause time.Duration) map[kv.GroupID]*atomic.Int64 {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	acked := make(map[kv.GroupID]*atomic.Int64)
	for _, g := range stallGroups {
		n := new(atomic.Int64)
		acked[g] = n
		for w := range 8 {
			wg.Go(func() {
				blob := make([]byte, size)
				for i := 0; ctx.Err() == nil; i++ {
					time.Sleep(pause)
					s, _ := c.leading(g)
					if s == nil {
						time.Sleep(time.Millisecond)
						continue
					}
					op := WriteOp{Key: fmt.Appendf(nil, "%d-%d", w, i%50), Value: blob}
					once, stop := context.WithTimeout(ctx, 500*time.Millisecond)
					_, err := s.Put(once, kv.PartitionID(g-1), op)
					stop()
					if err != nil {
						time.Sleep(time.Millisecond) // refused, because the storage is close to stalling, or not answered
						continue
					}
					n.Add(1)
				}
			})
		}
	}
	return acked
}

// terms returns the term and the leader of every group.
func (c *cluster) terms(t *testing.T) map[kv.GroupID][2]uint64 {
	out := make(map[kv.GroupID][2]uint64)
	for _, g := range stallGroups {
		n, _ := c.awaitLeader(g, 10*time.Second)
		s, ok := n.store.Status(g)
		require.True(t, ok)
		out[g] = [2]uint64{s.Term, uint64(n.id)}
	}
	return out
}

// grow has Pebble make its memtables as large as it was told. The first ones are small, so that log files are closed often,
// and that is where a hanging disk still holds up the loop: DESIGN.md says why.
func (c *cluster) grow(t *testing.T, groups ...kv.GroupID) {
	for _, g := range groups {
		for range 20 {
			_, err := c.put(c.timeout(20*time.Second), kv.PartitionID(g-1), "grow", string(make([]byte, 200<<10)))
			require.NoError(t, err)
		}
	}
}

// TestHungSyncCausesNoElection has the syncs of one node's disk hang for several election timeouts, while clients write.
// Heartbeats need no disk, so that its groups keep their leader, and the groups that it follows are not even slower.
func TestHungSyncCausesNoElection(t *testing.T) {
	disks := make(map[kv.NodeID]*storage.FaultFS)
	c := stallable(t, func(id kv.NodeID, fs vfs.FS) vfs.FS {
		disks[id] = storage.NewFaultFS(fs)
		return disks[id]
	})
	c.grow(t, stallGroups...)
	acked := c.writeAlong(t, 64, 10*time.Millisecond)
	time.Sleep(300 * time.Millisecond)
	before := c.terms(t)
	stuck := kv.NodeID(before[1][1])
	disks[stuck].Set(storage.DiskFault{Mode: storage.DiskSlow, Delay: time.Minute})
	defer disks[stuck].Set(storage.DiskFault{})
	time.Sleep(100 * time.Millisecond)
	at := map[kv.GroupID]int64{}
	for g, n := range acked {
		at[g] = n.Load()
	}
	time.Sleep(5 * time.Second)
	require.Equal(t, before, c.terms(t), "neither leaders nor terms change")
	require.Positive(t, disks[stuck].Stats().Slow)
	for g, n := range acked {
		if before[g][1] == uint64(stuck) {
			continue
		}
		require.Greater(t, n.Load(), at[g], "group %d has a majority without the disk that hangs", g)
	}
	disks[stuck].Set(storage.DiskFault{})
	require.Eventually(t, func() bool { return acked[1].Load() > at[1]+10 }, 10*time.Second, 10*time.Millisecond, "it goes on as if nothing had been")
	require.Equal(t, before, c.terms(t))
}

// slowFlushes makes the files of flushes hang while it is told to.
type slowFlushes struct {
	vfs.FS
	mu   sync.Mutex // guards gate
	gate chan struct{}
	hits atomic.Int64
}

func (f *slowFlushes) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil && category == "pebble-memtable-flush" {
		f.hits.Add(1)
		<-gate
	}
	return f.FS.Create(name, category)
}

func (f *slowFlushes) Unwrap() vfs.FS { return f.FS }

func (f *slowFlushes) hang(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case on && f.gate == nil:
		f.gate = make(chan struct{})
	case !on && f.gate != nil:
		close(f.gate)
		f.gate = nil
	}
}

// TestHungFlushCausesNoElection has the flushes of one node hang until Pebble would make writers wait, for several election
// timeouts. As a leader it refuses writes before that; as a follower it cannot refuse what its leaders send.
func TestHungFlushCausesNoElection(t *testing.T) {
	disks := make(map[kv.NodeID]*slowFlushes)
	c := stallable(t, func(id kv.NodeID, fs vfs.FS) vfs.FS {
		disks[id] = &slowFlushes{FS: fs}
		return disks[id]
	})
	acked := c.writeAlong(t, 4<<10, 0)
	time.Sleep(300 * time.Millisecond)
	before := c.terms(t)
	stuck := kv.NodeID(before[1][1])
	disks[stuck].hang(true)
	defer disks[stuck].hang(false)
	require.Eventually(t, func() bool { return c.nodes[stuck].engine.Pressure() >= c.cfg.PressureMax }, 20*time.Second, time.Millisecond)
	at := acked[1].Load()
	time.Sleep(5 * time.Second)
	require.Positive(t, disks[stuck].hits.Load())
	require.Equal(t, before, c.terms(t), "neither leaders nor terms change")
	disks[stuck].hang(false)
	require.Eventually(t, func() bool { return acked[1].Load() > at+10 }, 10*time.Second, 10*time.Millisecond)
	require.Equal(t, before, c.terms(t))
}
