package consensus

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/caprockdb/caprock/pkg/kv"
)

// BenchmarkPutOfOneClient is BenchmarkPut with the ids that one Go client gives its writes: a session a partition.
func BenchmarkPutOfOneClient(b *testing.B) {
	for _, clients := range []int{64, 1000} {
		b.Run(fmt.Sprintf("nodes=3/clients=%d", clients), func(b *testing.B) {
			c := benchCluster(b, 3)
			val := make([]byte, 100)
			var numbers [benchGroups]atomic.Uint64
			run(b, c, clients, func(s *Store, p kv.PartitionID, key []byte) error {
				n := numbers[p].Add(1)
				// What is outstanding of the client in one partition, generously.
				id := kv.OpID{Session: []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, byte(p)}, Sequence: n, Floor: n - min(n, uint64(2*clients/benchGroups+8))}
				_, err := s.Put(context.Background(), p, WriteOp{Key: key, Value: val, ID: id})
				return err
			})
		})
	}
}

// BenchmarkApplyEntry is what applying one entry of 64 puts takes, without its sync: without ids, with those of one
// client, and with an Idempotency-Key each.
func BenchmarkApplyEntry(b *testing.B) {
	const commands = 64
	for _, kind := range []string{"plain", "one client", "keys"} {
		b.Run(kind, func(b *testing.B) {
			tm := newTestMachine(b)
			defer tm.close()
			val := make([]byte, 100)
			next := uint64(0)
			raw := make([][]byte, commands)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for i := range raw {
					op := WriteOp{Key: fmt.Appendf(nil, "key-%d", (next*7919)%100_000), Value: val}
					switch kind {
					case "one client":
						op.ID = kv.OpID{Session: []byte("\x00client-1"), Sequence: next, Floor: next - min(next, 2*commands)}
					case "keys":
						op.ID = kv.OpID{Session: fmt.Appendf(nil, "key-%d", next)}
					}
					next++
					raw[i] = encodeCommand(op)
				}
				b.StartTimer()
				tm.apply(raw...)
			}
		})
	}
}
