package workload

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// failoverPatience bounds how long a kill may leave a partition without an acknowledged write before the benchmark gives up.
const failoverPatience = 30 * time.Second

// BenchmarkFailover kills a node of three with SIGKILL, KILLS (20) times, each time the one that leads most. Every partition that
// the victim led is written to at once and until a write is acknowledged: what is measured is the time from the kill to that
// acknowledgement, over the Go client with all three endpoints. The victim is then started again.
func BenchmarkFailover(b *testing.B) {
	kills, err := strconv.Atoi(cmp.Or(os.Getenv("KILLS"), "20"))
	require.NoError(b, err, "KILLS")
	cluster := startProcesses(b)
	c, err := client.NewClient(cluster.grpc)
	require.NoError(b, err)
	defer c.Close()
	for b.Loop() {
		var each, all []time.Duration
		for range kills {
			victim, partitions := cluster.awaitAgreement(b)
			took := cluster.failover(b, c, victim, partitions)
			each = append(each, took...)
			all = append(all, slices.Max(took))
			cluster.restart(b, victim)
		}
		slices.Sort(each)
		slices.Sort(all)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(quantile(each, 0.5), "partition-p50-ms")
		b.ReportMetric(quantile(each, 0.99), "partition-p99-ms")
		b.ReportMetric(quantile(all, 0.5), "all-p50-ms")
		b.ReportMetric(quantile(all, 0.99), "all-p99-ms")
		b.ReportMetric(float64(len(each)), "partitions")
	}
}

// quantile returns the least value that the share of them does not exceed, in milliseconds.
func quantile(sorted []time.Duration, share float64) float64 {
	at := min(int(share*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[at].Microseconds()) / 1000
}

// leaders returns who leads each partition in the eyes of the node.
func (c *processCluster) leaders(b *testing.B, node int) []string {
	b.Helper()
	r, err := http.Get("http://" + c.http[node] + "/admin/partitions")
	require.NoError(b, err)
	defer r.Body.Close()
	var doc struct {
		Partitions []struct{ Leader string }
	}
	require.NoError(b, json.NewDecoder(r.Body).Decode(&doc))
	var out []string
	for _, p := range doc.Partitions {
		out = append(out, p.Leader)
	}
	return out
}

// awaitAgreement waits until every node sees the same leader of every partition, and returns who leads most, and what.
func (c *processCluster) awaitAgreement(b *testing.B) (node int, led []int) {
	b.Helper()
	deadline := time.Now().Add(time.Minute)
	leaders := c.leaders(b, 0)
	for slices.Contains(leaders, "") || !slices.Equal(leaders, c.leaders(b, 1)) || !slices.Equal(leaders, c.leaders(b, 2)) {
		require.True(b, time.Now().Before(deadline), "the nodes do not agree on the leaders")
		time.Sleep(200 * time.Millisecond)
		leaders = c.leaders(b, 0)
	}
	by := make([][]int, len(c.processes))
	for p, leader := range leaders {
		i := int(leader[1] - '1')
		by[i] = append(by[i], p)
		if len(by[i]) > len(by[node]) {
			node = i
		}
	}
	return node, by[node]
}

// failover kills the node and returns how long each partition took until a write to it was acknowledged.
func (c *processCluster) failover(b *testing.B, cl *client.Client, node int, partitions []int) []time.Duration {
	b.Helper()
	took := make([]time.Duration, len(partitions))
	count := len(c.leaders(b, node))
	require.NoError(b, c.processes[node].Process.Kill())
	start := time.Now()
	var writers sync.WaitGroup
	for i, p := range partitions {
		key := keyIn(kv.PartitionID(p), count)
		writers.Go(func() {
			ctx, cancel := context.WithTimeout(b.Context(), failoverPatience)
			defer cancel()
			for ctx.Err() == nil {
				request := kv.Request{Op: kv.OpPut, Level: kv.LevelStrong, Key: key, Value: []byte("v")}
				if _, err := cl.Do(ctx, request, client.Timeout(5*time.Second)); err == nil {
					took[i] = time.Since(start)
					return
				}
			}
		})
	}
	writers.Wait()
	_ = c.processes[node].Wait()
	require.NotContains(b, took, time.Duration(0), "a partition that took no write within %s", failoverPatience)
	return took
}

// restart starts the node again with the data that it has, and waits until it is ready.
func (c *processCluster) restart(b *testing.B, node int) {
	b.Helper()
	c.run(b, node)
	ctx, cancel := context.WithTimeout(b.Context(), clusterReady)
	defer cancel()
	for !isReady(ctx, c.http[node]) {
		require.NoError(b, ctx.Err(), "node %d is not ready", node+1)
		time.Sleep(50 * time.Millisecond)
	}
}

// keyIn returns a key of the partition.
func keyIn(p kv.PartitionID, count int) []byte {
	for i := 0; ; i++ {
		if key := fmt.Appendf(nil, "failover-%d", i); ring.PartitionOf(key, count) == p {
			return key
		}
	}
}
