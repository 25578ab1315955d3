package consensus

import (
	"fmt"
	"os"
	runtimemetrics "runtime/metrics"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// envSnapshotMiB asks for a snapshot of so many MiB on a real disk: CAPROCK_SNAPSHOT_MIB=1024 go test -run LargeSnapshot -v.
const envSnapshotMiB = "CAPROCK_SNAPSHOT_MIB"

// goMemory returns what the Go runtime has taken from the system, less what it has given back.
func goMemory() uint64 {
	s := []runtimemetrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	runtimemetrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

// Everything happens in one process, so that the memory is that of sender, receiver and the third node together.
func TestLargeSnapshotTakesBoundedTimeAndMemory(t *testing.T) {
	mib, err := strconv.Atoi(os.Getenv(envSnapshotMiB))
	if err != nil {
		t.Skipf("%s is not set", envSnapshotMiB)
	}
	c := newCluster(t, 3, 0)
	defer c.close()
	for _, n := range c.nodes {
		n.dir = t.TempDir()
	}
	c.startAll()
	c.bootstrap(1)
	c.awaitLeader(1, 10*time.Second)
	away := c.follower()
	require.NoError(t, c.stop(away))

	const valueBytes = 4 << 10
	val := make([]byte, valueBytes)
	for i := range val {
		val[i] = byte(i * i >> 3)
	}
	keys := mib << 20 / valueBytes
	var next atomic.Int64
	var wg sync.WaitGroup
	leader, _ := c.awaitLeader(1, 10*time.Second)
	began := time.Now()
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(keys); i = next.Add(1) {
				for {
					_, err := leader.store.Put(t.Context(), 0, WriteOp{Key: fmt.Appendf(nil, "key-%09d", i), Value: append(fmt.Appendf(nil, "%d", i), val...)})
					if err == nil {
						break
					}
					time.Sleep(10 * time.Millisecond) // storage is behind
				}
			}
		})
	}
	wg.Wait()
	t.Logf("wrote %d MiB in %s", mib, time.Since(began).Round(time.Millisecond))

	before, peak := goMemory(), uint64(0)
	began = time.Now()
	c.start(away)
	for c.status(away).Applied < c.status(leader.id).Applied {
		peak = max(peak, goMemory())
		require.Less(t, time.Since(began), 5*time.Minute)
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(began)
	require.Positive(t, c.status(away).SnapshotsReceived)
	t.Logf("a snapshot of %d MiB in %s, %.0f MiB/s; memory of all nodes before %d MiB, peak %d MiB",
		mib, took.Round(time.Millisecond), float64(mib)/took.Seconds(), before>>20, peak>>20)
}
