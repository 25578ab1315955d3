package transport

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// cpu returns the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchmarkCalls keeps a number of writes of 100 bytes outstanding and reports what each costs: both nodes, from the
// call to its callback.
func benchmarkCalls(b *testing.B, one *station, outstanding int) {
	ctx, cancel := context.WithTimeout(context.Background(), kv.RequestTimeoutMax)
	defer cancel()
	w := quorum.WriteRequest{Partition: 3, Epoch: 7, Key: []byte("some-key-of-20-bytes"), Set: setOf(string(make([]byte, 100))), New: dotOf("k")}
	warm := make(chan error)
	one.Write(ctx, 2, w, func(_ quorum.WriteReply, err error) { warm <- err })
	if err := <-warm; err != nil {
		b.Fatal(err)
	}
	var failed atomic.Int64
	slots := make(chan struct{}, outstanding)
	sent := one.metric(b, "batches_total")
	b.ReportAllocs()
	began := cpu(b)
	for b.Loop() {
		slots <- struct{}{}
		one.Write(ctx, 2, w, func(_ quorum.WriteReply, err error) {
			if err != nil {
				failed.Add(1)
			}
			<-slots
		})
	}
	for range outstanding {
		slots <- struct{}{}
	}
	b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(2*b.N)/(one.metric(b, "batches_total")-sent), "frames/batch")
	if failed.Load() > 0 {
		b.Fatal(failed.Load(), "calls failed")
	}
}

// silent is a node that answers writes without noting them.
type silent struct{ fakeNode }

func (*silent) HandleWrite(_ kv.NodeID, _ quorum.WriteRequest, reply func(quorum.WriteReply, error)) {
	reply(quorum.WriteReply{Accepted: true}, nil)
}

func BenchmarkCallsOverLoopback(b *testing.B) {
	for _, outstanding := range []int{1, 32, 256, 1000} {
		b.Run(fmt.Sprint(outstanding), func(b *testing.B) {
			_, one, two, _ := grpcPair(b, DefaultGRPCConfig())
			two.handler = &silent{}
			benchmarkCalls(b, one, outstanding)
		})
	}
}

// BenchmarkMuxAlone leaves the network out: batches are handed to the other mux by the sender's goroutine.
func BenchmarkMuxAlone(b *testing.B) {
	_, one, two, stop := pair(b)
	defer stop()
	two.handler = &silent{}
	benchmarkCalls(b, one, 256)
}

func BenchmarkRaftFrames(b *testing.B) {
	for _, size := range []int{200, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			_, one, two, _ := grpcPair(b, DefaultGRPCConfig())
			var arrived sync.WaitGroup
			two.handler = &counting{wg: &arrived}
			frame := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				arrived.Add(1)
				for !one.Send(2, frame) { // the outbox is full: the wire is the limit
					time.Sleep(100 * time.Microsecond)
				}
			}
			arrived.Wait()
		})
	}
}

type counting struct {
	fakeNode
	wg *sync.WaitGroup
}

func (c *counting) HandleRaft(kv.NodeID, []byte) { c.wg.Done() }
