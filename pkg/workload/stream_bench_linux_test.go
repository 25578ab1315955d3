package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/caprockdb/caprock/api"
	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// instantBackend answers everything at once, so that what is left is the cost of the way there and back.
type instantBackend struct{ value []byte }

func (b instantBackend) Execute(_ context.Context, r *kv.Request) (kv.Response, error) {
	out := kv.Response{
		Found: true, Settled: true, Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Acks: 2, Version: 12345,
		Timestamp: time.UnixMilli(1795253370123), Coordinator: 1, Replicas: []kv.NodeID{1, 3},
	}
	if r.Op == kv.OpGet {
		out.Value = b.value
	}
	return out, nil
}

func (b instantBackend) ExecuteEach(ctx context.Context, rs []kv.Request) []kv.Answer {
	out := make([]kv.Answer, len(rs))
	for i := range rs {
		out[i].Response, _ = b.Execute(ctx, &rs[i]) // it never fails
	}
	return out
}

func (instantBackend) NodeName(id kv.NodeID) string                  { return [...]string{"", "n1", "n2", "n3"}[id&3] }
func (instantBackend) Self() string                                  { return "n1" }
func (instantBackend) PartitionCount() int                           { return 16 }
func (instantBackend) Ready(kv.Level) error                          { return nil }
func (instantBackend) Document(context.Context, string) (any, error) { return nil, errors.New("none") }
func (instantBackend) Policies() api.PolicyStore                     { return nil }
func (instantBackend) Faults() api.FaultStore                        { return nil }
func (instantBackend) Rules() json.RawMessage                        { return nil }

// startInstant serves an instantBackend over loopback TCP and returns its address.
func startInstant(tb testing.TB) string {
	cfg := api.DefaultGRPCConfig()
	server := grpc.NewServer(api.GRPCServerOptions(cfg)...)
	_, err := api.RegisterGRPC(server, cfg, api.Deps{
		Backend: instantBackend{value: make([]byte, 100)}, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), WallNow: time.Now,
	})
	require.NoError(tb, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	tb.Cleanup(func() {
		server.Stop()
		require.NoError(tb, <-served)
	})
	return listener.Addr().String()
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkStream measures what an operation costs in client and server together, transport and metrics included, apart from
// the node behind them.
func BenchmarkStream(b *testing.B) {
	for _, kind := range []string{"put", "get"} {
		for _, clients := range []int{1, 64, 256, 1024} {
			b.Run(fmt.Sprintf("%s/clients=%d", kind, clients), func(b *testing.B) {
				c, err := client.NewClient([]string{startInstant(b)})
				require.NoError(b, err)
				defer c.Close()
				cfg := DefaultConfig()
				cfg.Clients, cfg.Duration, cfg.Warmup = clients, time.Second, 100*time.Millisecond
				cfg.Mix = Mix{}
				if kind == "get" {
					cfg.Mix.GetPercent = 100
				}
				b.ResetTimer()
				before := cpuTime()
				var operations int64
				for range b.N {
					result, err := Run(b.Context(), cfg, Deps{Target: NewClientTarget(c)})
					require.NoError(b, err)
					require.Zero(b, result.Failed(), result.LastError)
					operations += result.Operations
					b.ReportMetric(result.PerSecond(), "ops/s")
					b.ReportMetric(float64(result.Latency.P99.Microseconds()), "p99-µs")
				}
				perOp := float64((cpuTime() - before).Nanoseconds()) / float64(operations) / 1000
				b.ReportMetric(perOp*10/11, "cpu-µs/op") // the warm-up's operations are not counted
			})
		}
	}
}
