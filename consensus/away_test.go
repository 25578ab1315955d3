package consensus

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// envAwayWrites asks for a follower to be away for so many writes, on a real disk: CAPROCK_AWAY_WRITES=1000000 go test -run
// AwayForAMillion -v.
const envAwayWrites = "CAPROCK_AWAY_WRITES"

// diskBytes is what a directory takes.
func diskBytes(t *testing.T, dir string) (size uint64) {
	require.NoError(t, filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if fi, err := d.Info(); err == nil { // else a compaction removed it
			size += uint64(fi.Size())
		}
		return nil
	}))
	return size
}

// TestFollowerAwayForAMillionWritesCatchesUp overwrites 10,000 keys of 4 groups while a follower is dead, watches that neither the
// logs nor the disk grow with the number of writes, and has the follower come back.
func TestFollowerAwayForAMillionWritesCatchesUp(t *testing.T) {
	writes, err := strconv.Atoi(os.Getenv(envAwayWrites))
	if err != nil {
		t.Skipf("%s is not set", envAwayWrites)
	}
	c := newCluster(t, 3, 0)
	defer c.close()
	for _, n := range c.nodes {
		n.dir = t.TempDir()
	}
	c.startAll()
	groups := []kv.GroupID{1, 2, 3, 4}
	c.bootstrap(groups...)
	for _, g := range groups {
		c.awaitLeader(g, 10*time.Second)
	}
	const away kv.NodeID = 3
	require.NoError(t, c.stop(away))
	for _, g := range groups {
		c.awaitLeader(g, 10*time.Second)
	}
	const keys, valueBytes = 10_000, 1 << 10
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range 256 {
		wg.Go(func() {
			value := make([]byte, valueBytes)
			for i := next.Add(1); i <= int64(writes); i = next.Add(1) {
				_, err := c.put(t.Context(), kv.PartitionID(i%4), fmt.Sprintf("key-%d", i%keys), fmt.Sprintf("%d %s", i, value))
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wrote := time.Since(began)
	logs, disk := uint64(0), diskBytes(t, c.nodes[1].dir)
	for _, g := range groups {
		s, ok := c.nodes[1].store.Status(g)
		require.True(t, ok)
		require.LessOrEqual(t, s.LogBytes, c.cfg.LogBytesMax+(4<<20), "the log of group %d", g)
		logs += s.LogBytes
	}
	t.Logf("%d writes of %d bytes in %s, %.0f a second; node 1 has %d MiB of logs and %d MiB on disk",
		writes, valueBytes, wrote.Round(time.Second), float64(writes)/wrote.Seconds(), logs>>20, disk>>20)
	require.Less(t, disk, uint64(1)<<30, "it holds 10 MiB of values")

	began = time.Now()
	c.start(away)
	snapshots := uint64(0)
	for _, g := range groups {
		for {
			leader, _ := c.awaitLeader(g, 10*time.Second)
			there, ok := leader.store.Status(g)
			require.True(t, ok)
			if s, ok := c.nodes[away].store.Status(g); ok && s.Applied >= there.Applied {
				snapshots += s.SnapshotsReceived
				break
			}
			require.Less(t, time.Since(began), time.Minute)
			time.Sleep(10 * time.Millisecond)
		}
		require.Equal(t, c.dump(g, 1), c.dump(g, away))
	}
	t.Logf("the follower caught up in %s with %d snapshots", time.Since(began).Round(time.Millisecond), snapshots)
	require.Len(t, groups, int(snapshots))
}
