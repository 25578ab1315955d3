package workload

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// batchesInFlight is how many batches are under way at once.
const batchesInFlight = 4

// BenchmarkBatch measures eventual puts and gets in batches of 1, 10, 100 and 1,000 through the Go client on a cluster of three processes,
// and as many single ones in flight on its stream. Each cell runs for DURATION (3s). An operation is one put or get.
func BenchmarkBatch(b *testing.B) {
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("DURATION"), "3s"))
	require.NoError(b, err, "DURATION")
	cluster := startProcesses(b)
	c, err := client.NewClient(cluster.grpc)
	require.NoError(b, err)
	defer c.Close()
	fill(b, NewClientTarget(c), kv.LevelEventual)
	for _, kind := range []kv.Op{kv.OpPut, kv.OpGet} {
		for _, size := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("eventual/%s/batches=%d", kind, size), func(b *testing.B) {
				for b.Loop() {
					run := batchRun{b: b, client: c, kind: kind, size: size}
					run.during(duration / 4)
					run.done.Store(0)
					began := cluster.cpu(b)
					run.during(duration)
					used := cluster.cpu(b) - began
					b.ReportMetric(float64(run.done.Load())/duration.Seconds(), "ops/s")
					b.ReportMetric(float64(used.Microseconds())/float64(run.done.Load()), "server-cpu-µs/op")
					b.ReportMetric(float64(run.failed.Load()), "failed")
				}
			})
			b.Run(fmt.Sprintf("eventual/%s/singles=%d", kind, size*batchesInFlight), func(b *testing.B) {
				one := cell{front: "stream", kind: kind, level: kv.LevelEventual, clients: size * batchesInFlight}
				for b.Loop() {
					one.measure(b, cluster, NewClientTarget(c), duration)
				}
				one.report(b)
			})
		}
	}
}

// batchRun makes batches.
type batchRun struct {
	b            *testing.B
	client       *client.Client
	kind         kv.Op
	size         int
	done, failed atomic.Int64
}

func (r *batchRun) during(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.b.Context()), d)
	defer cancel()
	var running sync.WaitGroup
	for worker := range batchesInFlight {
		running.Go(func() {
			generator := NewGenerator(benchConfig(kv.LevelEventual), newRand(uint64(worker)+1, 7))
			for next := int64(worker); ctx.Err() == nil; {
				requests := make([]kv.Request, r.size)
				for i := range requests {
					next += 7919
					requests[i] = kv.Request{Op: r.kind, Key: []byte(generator.Key(next % benchKeys))}
					if r.kind == kv.OpPut {
						requests[i].Value = generator.block[:benchValueBytes]
					}
				}
				results, err := r.client.Batch(context.WithoutCancel(ctx), requests, client.Eventual())
				if err != nil {
					r.failed.Add(int64(r.size))
					continue
				}
				for _, one := range results {
					if one.Err != nil {
						r.failed.Add(1)
					}
				}
				r.done.Add(int64(r.size))
			}
		})
	}
	running.Wait()
}
