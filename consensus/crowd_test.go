package consensus

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

// stallingDisk holds up every sync while it is told to.
type stallingDisk struct {
	mu   sync.Mutex // held by whoever holds up the syncs
	held atomic.Int64
}

func (d *stallingDisk) wrap(fs vfs.FS) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if isSync(op) {
			d.held.Add(1)
			d.mu.Lock()
			d.mu.Unlock() //nolint:staticcheck // passing through is the point
			d.held.Add(-1)
		}
		return nil
	}))
}

func TestProposalsThatComeWhileABatchIsSyncedShareAnEntry(t *testing.T) {
	const writes = 200
	c := newCluster(t, 1, 0)
	defer c.close()
	disk := &stallingDisk{}
	c.nodes[1].wrap = disk.wrap
	c.startAll()
	c.bootstrap(1)
	n, _ := c.awaitLeader(1, 10*time.Second)
	before, err := c.put(c.timeout(5*time.Second), 0, "before", "v")
	require.NoError(t, err)

	disk.mu.Lock()
	held := true
	defer func() {
		if held {
			disk.mu.Unlock()
		}
	}()
	var all sync.WaitGroup
	put := func(key string) {
		all.Go(func() {
			_, err := n.store.Put(c.timeout(30*time.Second), 0, WriteOp{Key: []byte(key), Value: []byte("v")})
			require.NoError(t, err, key)
		})
	}
	put("first")
	require.Eventually(t, func() bool { return disk.held.Load() > 0 }, 10*time.Second, time.Millisecond)
	for i := range writes {
		put(fmt.Sprintf("key-%d", i))
		time.Sleep(50 * time.Microsecond) // each has an iteration of its own
	}
	disk.mu.Unlock()
	held = false
	all.Wait()
	after, err := c.put(c.timeout(5*time.Second), 0, "after", "v")
	require.NoError(t, err)
	require.LessOrEqual(t, after.Revision-before.Revision, uint64(6), "entries for %d writes", writes)
}

func TestLeaderWhoseDiskHangsKnowsItKeepsItsGroupsAndCanHandThemOver(t *testing.T) {
	c := newCluster(t, 3, time.Millisecond)
	defer c.close()
	disks := make(map[kv.NodeID]*stallingDisk)
	for id, n := range c.nodes {
		disks[id] = &stallingDisk{}
		n.wrap = disks[id].wrap
	}
	c.startAll()
	c.bootstrap(1)
	n, _ := c.awaitLeader(1, 10*time.Second)
	_, err := c.put(c.timeout(5*time.Second), 0, "before", "v")
	require.NoError(t, err)
	status, _ := n.store.Status(1)
	disk := disks[n.id]
	disk.mu.Lock()
	defer disk.mu.Unlock()
	// Longer than an election timeout, and than the clock's ceiling lasts.
	for start := time.Now(); time.Since(start) < 3*time.Second; time.Sleep(10 * time.Millisecond) {
		_, err := n.store.Put(c.timeout(100*time.Millisecond), 0, WriteOp{Key: []byte("a"), Value: []byte("v")})
		require.Error(t, err, "what this node holds is not durable")
		require.Equal(t, n.id, c.leader(1))
	}
	during, _ := n.store.Status(1)
	require.Equal(t, status.Term, during.Term)
	require.Greater(t, n.engine.Waiting(), 2*time.Second)

	n.store.TransferAll(c.timeout(10 * time.Second))
	require.Eventually(t, func() bool { id := c.leader(1); return id != kv.NoNode && id != n.id }, 10*time.Second, time.Millisecond)
	_, err = c.nodes[c.leader(1)].store.Put(c.timeout(5*time.Second), 0, WriteOp{Key: []byte("b"), Value: []byte("v")})
	require.NoError(t, err)
	require.Zero(t, c.nodes[c.leader(1)].engine.Waiting().Round(time.Second))
}

// What a machine keeps in memory changes neither its answers nor its rows: one that forgets everything, or something, before
// each entry agrees with one that forgets nothing.
func TestMachineThatForgetsAgreesWithOneThatDoesNot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, other := newTestMachine(t), newTestMachine(t)
		for range rapid.IntRange(1, 30).Draw(t, "entries") {
			switch rapid.IntRange(0, 3).Draw(t, "time") {
			case 0:
				passed := time.Duration(rapid.IntRange(0, 9).Draw(t, "minutes")) * time.Minute
				one.pass(passed)
				other.pass(passed)
			case 1:
				one.lead(time.Minute, 0)
				other.lead(time.Minute, 0)
			default:
			}
			var commands [][]byte
			for i := range rapid.IntRange(1, 4).Draw(t, "commands") {
				sequence := rapid.Uint64Range(0, 12).Draw(t, "sequence")
				id := opID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "session"), sequence,
					rapid.Uint64Range(0, sequence).Draw(t, "floor"))
				commands = append(commands, encodeCommand(put(fmt.Sprintf("k%d", i), "v", id)))
			}
			switch rapid.IntRange(0, 2).Draw(t, "forget") {
			case 0:
				require.NoError(t, other.m.Restored())
			case 1:
				for name, s := range other.m.memory.byName {
					other.m.memory.bytes -= s.size
					delete(other.m.memory.byName, name)
					break
				}
			default:
			}
			require.Equal(t, one.apply(commands...), other.apply(commands...))
			bytes := 0
			for _, s := range other.m.memory.byName {
				bytes += s.size
			}
			require.Equal(t, bytes, other.m.memory.bytes)
		}
		require.Equal(t, one.rows(), other.rows())
	})
}

func TestMemoryOfSessionsIsBounded(t *testing.T) {
	tm := newTestMachine(t)
	for session := range 600 {
		var commands [][]byte
		for i := range 100 {
			commands = append(commands, encodeCommand(put(fmt.Sprintf("k%d", i), "v", opID(fmt.Sprintf("s%d", session), uint64(i), 0))))
		}
		tm.apply(commands...)
		require.LessOrEqual(t, tm.m.memory.bytes, memoryBytesMax)
	}
	require.Less(t, len(tm.m.memory.byName), 600, "so many do not fit; the test proves nothing")
	require.True(t, tm.write(put("k1", "v", opID("s0", 1, 0))).Repeated, "what memory forgot storage knows")
	// Sessions that are only read, because all that comes of them was there before, count as well, and so does what they take
	// beside their rows.
	const small = 6000
	once := func(i int) WriteReply { return tm.write(put("k", "v", opID(fmt.Sprintf("once-%d", i), 1, 0))) }
	for i := range small {
		once(i)
	}
	require.Less(t, len(tm.m.memory.byName), small)
	require.NoError(t, tm.m.Restored())
	for i := range small {
		require.True(t, once(i).Repeated)
	}
	require.Less(t, len(tm.m.memory.byName), small)
	require.LessOrEqual(t, tm.m.memory.bytes, memoryBytesMax)
	tm.close()
}
