package consensus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

const benchGroups = 16

// benchCluster starts nodes on the real disk, in one process, with a network that costs only the codec.
func benchCluster(b *testing.B, size int) *cluster {
	c := newCluster(b, size, 0)
	b.Cleanup(c.close)
	for _, n := range c.nodes {
		n.dir = b.TempDir()
	}
	c.startAll()
	var groups []kv.GroupID
	for g := range kv.GroupID(benchGroups) {
		groups = append(groups, g+1)
	}
	c.bootstrap(groups...)
	for _, g := range groups {
		c.awaitLeader(g, 10*time.Second)
	}
	return c
}

// run has clients do operations on distinct keys over all groups, until b has had enough.
func run(b *testing.B, c *cluster, clients int, do func(s *Store, p kv.PartitionID, key []byte) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	n := int64(b.N)
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				g := kv.GroupID(i%benchGroups) + 1
				p, _ := g.Partition()
				s := c.nodes[c.nodes[1].store.Leader(g)].store
				if err := do(s, p, fmt.Appendf(nil, "key-%d", i%100_000)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "ops/s")
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1, 3} {
		for _, clients := range []int{1, 64, 256, 1000} {
			b.Run(fmt.Sprintf("nodes=%d/clients=%d", size, clients), func(b *testing.B) {
				c := benchCluster(b, size)
				val := make([]byte, 100)
				run(b, c, clients, func(s *Store, p kv.PartitionID, key []byte) error {
					_, err := s.Put(context.Background(), p, WriteOp{Key: key, Value: val})
					return err
				})
			})
		}
	}
}

func BenchmarkReadBarrier(b *testing.B) {
	for _, clients := range []int{1, 64, 256, 1000} {
		b.Run(fmt.Sprintf("nodes=3/clients=%d", clients), func(b *testing.B) {
			c := benchCluster(b, 3)
			run(b, c, clients, func(s *Store, p kv.PartitionID, _ []byte) error {
				return s.ReadBarrier(context.Background(), p.Group())
			})
		})
	}
}

// BenchmarkHotKey is many clients that all write one key: every write is an entry of its own.
func BenchmarkHotKey(b *testing.B) {
	c := benchCluster(b, 3)
	run(b, c, 256, func(*Store, kv.PartitionID, []byte) error {
		_, err := c.nodes[c.nodes[1].store.Leader(1)].store.Put(context.Background(), 0, WriteOp{Key: []byte("hot"), Value: []byte("v")})
		return err
	})
}

func BenchmarkPack(b *testing.B) {
	p := newPacker(DefaultConfig())
	ops := make([]*op, 512)
	for i := range ops {
		ops[i] = &op{key: fmt.Appendf(nil, "key-%d", i), command: make([]byte, 120)}
	}
	queue := make([]*op, 512)
	b.ReportAllocs()
	for b.Loop() {
		copy(queue, ops)
		entries, rest := p.pack(queue)
		require.Len(b, entries, 1)
		require.Empty(b, rest)
	}
}
