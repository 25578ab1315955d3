package workload

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// laneRounds is how often both prefixes of a comparison are measured, for a part of its time each: the machine's speed wanders, and whatever
	// it does meets both.
	laneRounds = 10
	// laneRatioMin is the aim: strong operations on keys with nothing unsettled lose at most 15 % where eventual writes are allowed.
	laneRatioMin = 0.85
)

// laneSide is what one of two prefixes made of the load.
type laneSide struct {
	prefix     string
	operations int64
	failed     int64
	elapsed    time.Duration
	p50        time.Duration // the sum over the rounds
	cpu        time.Duration // of all nodes
}

func (s *laneSide) perSecond() float64 { return float64(s.operations) / max(s.elapsed.Seconds(), 1e-9) }

func (s *laneSide) cpuPerOperation() float64 {
	return float64(s.cpu.Nanoseconds()) / 1000 / float64(max(s.operations, 1))
}

// laneRatio compares strong operations on a prefix with mixed lanes, nothing of which is unsettled, with those on a strong-only one.
type laneRatio struct {
	// unsettled: the partitions hold eventual versions of other keys that the log does not cover. Without any, the heartbeats that every strong
	// read waits for say so; with some, each operation asks for its key.
	unsettled bool
	front     string
	kind      kv.Op
	clients   int
	// mixed and closed were measured in turns.
	mixed, closed laneSide
}

// ratio is what share of the strong-only prefix's operations the mixed one made.
func (r *laneRatio) ratio() float64 { return r.mixed.perSecond() / max(r.closed.perSecond(), 1e-9) }

const laneMixed, laneClosed = "bench/lanes-mixed/", "bench/lanes-closed/"

// fillLanes makes one of two prefixes strong-only and writes the keys of both.
func fillLanes(b *testing.B, cluster *processCluster, target Target) {
	b.Helper()
	closeLanes(b, cluster.http[0], laneClosed)
	for _, prefix := range []string{laneMixed, laneClosed} {
		cfg := benchConfig(kv.LevelStrong)
		cfg.KeyPrefix = prefix
		fillKeys(b, target, cfg)
	}
}

func othersAre(unsettled bool) string {
	if unsettled {
		return "unsettled"
	}
	return "settled"
}

// benchmarkLanes measures what strong operations on keys with nothing unsettled cost where eventual writes are allowed.
func benchmarkLanes(b *testing.B, cluster *processCluster, targets map[string]Target, unsettled bool, duration time.Duration) (out []laneRatio) {
	for _, front := range []string{"HTTP", "stream"} {
		for _, kind := range []kv.Op{kv.OpPut, kv.OpGet} {
			for _, clients := range []int{1, 64, 256} {
				b.Run(fmt.Sprintf("lanes/others=%s/%s/%s/clients=%d", othersAre(unsettled), front, kind, clients), func(b *testing.B) {
					r := laneRatio{unsettled: unsettled, front: front, kind: kind, clients: clients}
					for b.Loop() {
						r.mixed, r.closed = laneSide{prefix: laneMixed}, laneSide{prefix: laneClosed}
						r.measure(b, cluster, targets[front], duration)
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(r.mixed.perSecond(), "mixed-ops/s")
					b.ReportMetric(r.closed.perSecond(), "strong-only-ops/s")
					b.ReportMetric(r.ratio(), "ratio")
					b.ReportMetric(r.mixed.cpuPerOperation()/r.closed.cpuPerOperation(), "server-cpu-ratio")
					if r.ratio() < laneRatioMin {
						b.Logf("the mixed prefix makes less than %.0f %% of what the strong-only one does", laneRatioMin*100)
					}
					out = append(out, r)
				})
			}
		}
	}
	return out
}

// measure loads both prefixes in turns, and which one is first changes.
func (r *laneRatio) measure(b *testing.B, cluster *processCluster, target Target, duration time.Duration) {
	b.Helper()
	cfg := benchConfig(kv.LevelStrong)
	cfg.Clients, cfg.Mix = r.clients, Mix{}
	if r.kind == kv.OpGet {
		cfg.Mix.GetPercent = 100
	}
	run := func(s *laneSide, d time.Duration, counts bool) {
		cfg.KeyPrefix, cfg.Duration = s.prefix, d
		cfg.Seed++
		cpu := cluster.cpu(b)
		result, err := Run(context.WithoutCancel(b.Context()), cfg, Deps{Target: target})
		require.NoError(b, err)
		if counts {
			s.operations += result.Operations
			s.failed += result.Failed()
			s.elapsed += result.Elapsed
			s.p50 += result.Latency.P50
			s.cpu += cluster.cpu(b) - cpu
		}
	}
	run(&r.mixed, benchWarmup, false)
	run(&r.closed, benchWarmup, false)
	for round := range laneRounds {
		first, second := &r.mixed, &r.closed
		if round%2 == 1 {
			first, second = second, first
		}
		run(first, duration/laneRounds, true)
		run(second, duration/laneRounds, true)
	}
	require.Zero(b, r.mixed.failed+r.closed.failed, "operations failed")
}

// closeLanes makes the prefix strong-only and waits until it is.
func closeLanes(b *testing.B, address, prefix string) {
	b.Helper()
	ask := func(method, body string) string {
		r, err := http.NewRequestWithContext(b.Context(), method, "http://"+address+"/admin/policies/"+strings.ReplaceAll(prefix, "/", "%2F"), strings.NewReader(body))
		require.NoError(b, err)
		response, err := http.DefaultClient.Do(r)
		require.NoError(b, err)
		defer response.Body.Close()
		raw, err := io.ReadAll(response.Body)
		require.NoError(b, err)
		require.Equal(b, http.StatusOK, response.StatusCode, "%s", raw)
		return string(raw)
	}
	ask(http.MethodPut, `{"lanes":"strong-only"}`)
	require.Eventually(b, func() bool { return strings.Contains(ask(http.MethodGet, ""), `"state":"active"`) }, clusterReady, 50*time.Millisecond)
}

// laneTable returns the comparisons as a part of a Markdown document.
func laneTable(ratios []laneRatio) string {
	var out strings.Builder
	fmt.Fprintf(&out, `
## Strong operations where eventual writes are allowed

Keys with nothing unsettled under a prefix with mixed lanes, and keys of a strong-only one, measured in turns, %d times each, in one run. *Ratio* is
mixed ÷ strong-only; the aim is at least %.2f. *Others* says whether other keys of the same partitions have eventual versions that the log does not cover.

| others | front | operation | clients | mixed ops/s | strong-only ops/s | ratio | mixed p50 | strong-only p50 | mixed CPU/op | strong-only CPU/op |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|
`, laneRounds, laneRatioMin)
	for i := range ratios {
		r := &ratios[i]
		fmt.Fprintf(&out, "| %s | %s | %s | %d | %.0f | %.0f | %.2f | %s | %s | %.1f µs | %.1f µs |\n",
			othersAre(r.unsettled), r.front, r.kind, r.clients, r.mixed.perSecond(), r.closed.perSecond(),
			r.ratio(), short(r.mixed.p50/laneRounds), short(r.closed.p50/laneRounds), r.mixed.cpuPerOperation(), r.closed.cpuPerOperation())
	}
	return out.String()
}

func TestLaneTableHasTheRatio(t *testing.T) {
	r := laneRatio{
		unsettled: true, front: "HTTP", kind: kv.OpGet, clients: 64,
		mixed:  laneSide{operations: 900, elapsed: time.Second, p50: laneRounds * time.Millisecond, cpu: 90 * time.Millisecond},
		closed: laneSide{operations: 1000, elapsed: time.Second, p50: laneRounds * 500 * time.Microsecond, cpu: 90 * time.Millisecond},
	}
	require.Contains(t, laneTable([]laneRatio{r}), "| unsettled | HTTP | get | 64 | 900 | 1000 | 0.90 | 1 ms | 500 µs | 100.0 µs | 90.0 µs |\n")
}
