package api

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// deepNode runs an operation as a node does: deep in the stack, and waiting once.
type deepNode struct {
	*fakeNode
	answers chan chan struct{}
}

//go:noinline
func (n *deepNode) descend(depth int) (sum byte) {
	var frame [1024]byte
	frame[depth] = byte(depth)
	if depth > 0 {
		return frame[depth] + n.descend(depth-1)
	}
	answered := make(chan struct{})
	n.answers <- answered
	<-answered
	return frame[0]
}

func (n *deepNode) Execute(context.Context, *kv.Request) (kv.Response, error) {
	n.descend(8)
	return kv.Response{Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Coordinator: 1, Replicas: []kv.NodeID{1, 3}}, nil
}

// BenchmarkStreamWorkers compares a goroutine for each operation with goroutines that are kept, in batches of 64 operations that
// are answered together.
func BenchmarkStreamWorkers(b *testing.B) {
	for _, kept := range []int{0, 256} {
		b.Run(fmt.Sprintf("kept=%d", kept), func(b *testing.B) {
			const batchSize = 64
			node := &deepNode{fakeNode: newFakeNode(), answers: make(chan chan struct{}, batchSize)}
			cfg := DefaultGRPCConfig()
			cfg.IdleWorkersMax = kept
			deps := testDeps(node)
			exec, err := newExecutor(deps, cfg.Limits)
			require.NoError(b, err)
			s := newOpStream(b.Context(), &GRPC{cfg: cfg, deps: deps, exec: exec, drain: make(chan struct{})})
			op := &kvwire.Operation{ID: 1, Timeout: time.Minute, Request: kv.Request{Op: kv.OpPut, Key: []byte("key"), Value: make([]byte, 100)}}
			b.ReportAllocs()
			for b.Loop() {
				batch := deadlines{parent: b.Context(), from: time.Now()}
				for range batchSize {
					s.accept(op, &batch)
				}
				batch.release()
				for range batchSize {
					close(<-node.answers)
				}
				for answered := 0; answered < batchSize; {
					message, _ := s.out.take()
					if message == nil {
						runtime.Gosched()
						continue
					}
					require.NoError(b, kvwireCount(message, &answered))
					s.out.sent(message)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/operation")
			s.stopWorkers()
		})
	}
}

func kvwireCount(message []byte, count *int) error {
	_, err := kvwire.DecodeResults(message, nil, func(*kvwire.Result) { *count++ })
	return err
}
