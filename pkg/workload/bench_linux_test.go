package workload

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Settings of the cluster benchmark.
const (
	benchKeys       = 10_000
	benchValueBytes = 128
	benchWarmup     = 500 * time.Millisecond
)

// cell is one line of the benchmark's table.
type cell struct {
	front   string
	kind    kv.Op
	level   kv.Level
	clients int

	result            Result
	serverCPU, ownCPU time.Duration // while it ran
}

// perOperation is a processor time in microseconds for each answered operation.
func (c cell) perOperation(cpu time.Duration) float64 {
	return float64(cpu.Nanoseconds()) / 1000 / float64(max(c.result.Operations, 1))
}

// BenchmarkCluster measures a cluster of three processes on this machine, with the load generator beside them: puts and gets at each
// level, with 1, 64, 256 and 1,000 operations in flight, over HTTP and over the Go client's stream; and what strong ones lose where eventual writes
// are allowed. Each cell runs for DURATION (3s). With BENCH_OUT=FILE the tables are written there in Markdown.
func BenchmarkCluster(b *testing.B) {
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("DURATION"), "3s"))
	require.NoError(b, err, "DURATION")
	cluster := startProcesses(b)
	c, err := client.NewClient(cluster.grpc)
	require.NoError(b, err)
	defer c.Close()
	httpTarget, err := NewHTTPTarget(cluster.http, 1000)
	require.NoError(b, err)
	defer httpTarget.Close()
	targets := map[string]Target{"HTTP": httpTarget, "stream": NewClientTarget(c)}

	// Before anything is written eventually, and afterwards.
	fillLanes(b, cluster, targets["stream"])
	ratios := benchmarkLanes(b, cluster, targets, false, duration)
	var cells []cell
	for level := kv.LevelStrong; level <= kv.LevelLocal; level++ {
		fill(b, NewClientTarget(c), level)
		for _, front := range []string{"HTTP", "stream"} {
			for _, kind := range []kv.Op{kv.OpPut, kv.OpGet} {
				for _, clients := range []int{1, 64, 256, 1000} {
					b.Run(fmt.Sprintf("%s/%s/%s/clients=%d", level, front, kind, clients), func(b *testing.B) {
						next := cell{front: front, kind: kind, level: level, clients: clients}
						for b.Loop() {
							next.measure(b, cluster, targets[front], duration)
						}
						next.report(b)
						cells = append(cells, next)
					})
				}
			}
		}
	}
	ratios = append(ratios, benchmarkLanes(b, cluster, targets, true, duration)...)
	if path := os.Getenv("BENCH_OUT"); path != "" {
		path = fromRoot(path)
		require.NoError(b, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(b, os.WriteFile(path, []byte(table(cells, duration)+laneTable(ratios)), 0o644))
	}
}

// fromRoot returns a path that is relative to the module's root, as whoever calls make means it, as one from here.
func fromRoot(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join("..", "..", path)
}

func benchConfig(level kv.Level) Config {
	cfg := DefaultConfig()
	cfg.Keys, cfg.ValueBytes, cfg.Warmup, cfg.Level = benchKeys, benchValueBytes, 0, level
	cfg.KeyPrefix = "bench/" + level.String() + "/" // so that no level reads what another lane wrote
	return cfg
}

// fill writes every key once, so that reads find something.
func fill(b *testing.B, target Target, level kv.Level) {
	b.Helper()
	fillKeys(b, target, benchConfig(level))
}

// fillKeys is fill for any configuration.
func fillKeys(b *testing.B, target Target, cfg Config) {
	b.Helper()
	generator := NewGenerator(cfg, newRand(1, 1))
	var writers errgroup.Group
	writers.SetLimit(256)
	for i := range int64(benchKeys) {
		op := Op{Kind: kv.OpPut, Level: cfg.Level, Key: generator.Key(i), Value: generator.block[:benchValueBytes], Timeout: kv.RequestTimeout}
		writers.Go(func() error { return target.Do(b.Context(), op) })
	}
	require.NoError(b, writers.Wait())
}

// measure runs the load once, after a warm-up that does not count.
func (c *cell) measure(b *testing.B, cluster *processCluster, target Target, duration time.Duration) {
	b.Helper()
	cfg := benchConfig(c.level)
	cfg.Clients = c.clients
	cfg.Mix = Mix{}
	if c.kind == kv.OpGet {
		cfg.Mix.GetPercent = 100
	}
	run := func(d time.Duration) Result {
		cfg.Duration = d
		cfg.Seed++
		result, err := Run(context.WithoutCancel(b.Context()), cfg, Deps{Target: target})
		require.NoError(b, err)
		return result
	}
	run(benchWarmup)
	server, own := cluster.cpu(b), cpuTime()
	c.result = run(duration)
	c.serverCPU, c.ownCPU = cluster.cpu(b)-server, cpuTime()-own
}

func (c *cell) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // the time of a cell says nothing
	b.ReportMetric(c.result.PerSecond(), "ops/s")
	b.ReportMetric(float64(c.result.Latency.P50.Microseconds()), "p50-µs")
	b.ReportMetric(float64(c.result.Latency.P99.Microseconds()), "p99-µs")
	b.ReportMetric(c.perOperation(c.serverCPU), "server-cpu-µs/op")
	b.ReportMetric(c.perOperation(c.ownCPU), "client-cpu-µs/op")
	if failed := c.result.Failed(); failed > 0 {
		b.ReportMetric(float64(failed), "failed")
		b.Logf("%d operations failed: %v; one of them: %s", failed, c.result.Errors, c.result.LastError)
	}
}

// table returns the cells as a Markdown document.
func table(cells []cell, duration time.Duration) string {
	var out strings.Builder
	fmt.Fprintf(&out, `# Benchmark: a cluster on one machine

Three node processes and the load generator share one machine: %s, %s.
%d-byte values, %d keys, every acknowledgement durable, %s a cell, closed loop: *clients* is the number of operations in flight.
CPU is processor time per operation of all three nodes together, and of the load generator. The disk is that of the temporary
directory. Made by `+"`make bench`"+`.

| level | front | operation | clients | ops/s | p50 | p95 | p99 | max | failed | node CPU/op | generator CPU/op |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
`, processor(), runtime.Version(), benchValueBytes, benchKeys, duration)
	for _, c := range cells {
		l := c.result.Latency
		fmt.Fprintf(&out, "| %s | %s | %s | %d | %.0f | %s | %s | %s | %s | %d | %.1f µs | %.1f µs |\n",
			c.level, c.front, c.kind, c.clients, c.result.PerSecond(), short(l.P50), short(l.P95), short(l.P99), short(l.Max),
			c.result.Failed(), c.perOperation(c.serverCPU), c.perOperation(c.ownCPU))
	}
	return out.String()
}

// short spells a latency with three digits or so.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return fmt.Sprintf("%d µs", d.Microseconds())
	}
	if d < time.Second {
		return fmt.Sprintf("%.3g ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// processor names this machine's processor and how many of it there are.
func processor() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return fmt.Sprintf("%d × %s", runtime.NumCPU(), strings.TrimSpace(value))
		}
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), runtime.GOARCH)
}

func TestTableHasALineForEachCell(t *testing.T) {
	one := cell{front: "HTTP", kind: kv.OpPut, level: kv.LevelStrong, clients: 64, serverCPU: time.Second, ownCPU: time.Second / 2}
	one.result = Result{
		Elapsed: time.Second, Operations: 10_000,
		Latency: Latency{P50: 900 * time.Microsecond, P95: 1234 * time.Microsecond, P99: 15 * time.Millisecond, Max: 2 * time.Second},
	}
	text := table([]cell{one}, 3*time.Second)
	require.Contains(t, text, "| strong | HTTP | put | 64 | 10000 | 900 µs | 1.23 ms | 15 ms | 2.00 s | 0 | 100.0 µs | 50.0 µs |\n")
}
