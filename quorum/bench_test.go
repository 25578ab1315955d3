package quorum

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// direct reaches the other replicas by a call, so that a benchmark shows what the eventual lane itself costs.
type direct struct{ c *cluster }

func (d direct) Write(_ context.Context, to kv.NodeID, w WriteRequest, done func(WriteReply, error)) {
	d.c.nodes[to].store.Write(w, done)
}

func (d direct) Read(_ context.Context, to kv.NodeID, r ReadRequest, done func(ReadReply, error)) {
	done(d.c.nodes[to].store.Read(r))
}

func (d direct) WriteEach(_ context.Context, to kv.NodeID, ws []WriteRequest, done func(int, []WriteResult)) {
	d.c.nodes[to].store.WriteEach(ws, func(results []WriteResult) { done(0, results) })
}

func (d direct) ReadEach(_ context.Context, to kv.NodeID, rs []ReadRequest, done func(int, []ReadResult)) {
	done(0, readEach(d.c.nodes[to].store, rs))
}

func benchCluster(b *testing.B) *cluster {
	c := newClusterOn(b, 3, storage.DefaultConfig(), func() (storage.FS, func() storage.FS) { return storage.NewMemFS(), nil })
	for _, n := range c.nodes {
		n.coord.deps.Replicas = direct{c}
	}
	return c
}

const benchKeys = 10_000

// benchRequests runs requests from 64 goroutines a processor through all three coordinators. One operation includes the
// work of all three replicas.
func benchRequests(b *testing.B, c *cluster, request func(i uint64) kv.Request, q kv.Quorum) {
	var next, failed atomic.Uint64
	owners := c.owners()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	b.SetParallelism(64)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := next.Add(1)
			r := request(i)
			r.Level = kv.LevelEventual
			_, err := c.nodes[kv.NodeID(1+i%3)].coord.Do(ctx, Call{
				Request: &r, Partition: 3, Epoch: 1, Owners: owners, Quorum: q, Resolver: LWW{},
			})
			if err != nil {
				failed.Add(1)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	b.ReportMetric(float64(failed.Load())/float64(b.N), "failed/op")
}

func BenchmarkPut(b *testing.B) {
	for _, keys := range []uint64{benchKeys, 100, 1} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			value := make([]byte, 100)
			benchRequests(b, benchCluster(b), func(i uint64) kv.Request {
				return kv.Request{Op: kv.OpPut, Key: fmt.Appendf(nil, "key-%06d", i*7919%keys), Value: value}
			}, kv.Quorum{N: 3, R: 2, W: 2})
		})
	}
}

// BenchmarkPutEach puts in groups of 100 distinct keys from four goroutines, as batches do; an operation is still one put.
func BenchmarkPutEach(b *testing.B) {
	const group, workers = 100, 4
	c := benchCluster(b)
	owners, value := c.owners(), make([]byte, 100)
	var next, failed atomic.Uint64
	put := func(first uint64) {
		calls := make([]Call, group)
		for i := range calls {
			key := fmt.Appendf(nil, "key-%06d", (first+uint64(i))*7919%benchKeys)
			calls[i] = Call{
				Request:   &kv.Request{Op: kv.OpPut, Level: kv.LevelEventual, Key: key, Value: value},
				Partition: 3, Epoch: 1, Owners: owners, Quorum: kv.Quorum{N: 3, R: 2, W: 2}, Resolver: LWW{},
			}
		}
		for _, a := range c.nodes[kv.NodeID(1+first/group%3)].coord.DoEach(context.Background(), calls) {
			if a.Err != nil {
				failed.Add(1)
			}
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for {
				first := next.Add(group) - group
				if first >= uint64(b.N) {
					return
				}
				put(first)
			}
		})
	}
	running.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	b.ReportMetric(float64(failed.Load())/float64(b.N), "failed/op")
}

func BenchmarkGet(b *testing.B) {
	for r := 1; r <= 2; r++ {
		b.Run(fmt.Sprintf("r=%d", r), func(b *testing.B) {
			c := benchCluster(b)
			for i := range benchKeys {
				_, err := c.put(1, fmt.Sprintf("key-%06d", i), fmt.Sprintf("%0100d", i), nil, 3)
				require.NoError(b, err)
			}
			benchRequests(b, c, func(i uint64) kv.Request {
				return kv.Request{Op: kv.OpGet, Key: fmt.Appendf(nil, "key-%06d", i*7919%benchKeys)}
			}, kv.Quorum{N: 3, R: r, W: 2})
		})
	}
}
