package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/workload"
)

const (
	keys       = 10_000
	valueBytes = 128
	warmup     = 300 * time.Millisecond
	seed       = 1
)

// row is one line of the table: what is measured, and how many times etcd's throughput Caprock is to reach.
type row struct {
	name    string
	http    bool
	kind    kv.Op
	clients int
	target  float64
}

func rows() []row {
	return []row{
		{"put-1", false, kv.OpPut, 1, 1},
		{"put-64", false, kv.OpPut, 64, 2},
		{"put-256", false, kv.OpPut, 256, 3},
		{"put-1000", false, kv.OpPut, 1000, 5},
		{"get-1", false, kv.OpGet, 1, 1},
		{"get-64", false, kv.OpGet, 64, 2.5},
		{"get-256", false, kv.OpGet, 256, 3.5},
		{"get-1000", false, kv.OpGet, 1000, 5},
		{"http-put-64", true, kv.OpPut, 64, 1.5},
		{"http-get-64", true, kv.OpGet, 64, 1.5},
	}
}

func main() {
	log := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "compare:", err)
			os.Exit(1)
		}
	}
	duration := flag.Duration("duration", 3*time.Second, "how long a row takes, both systems together")
	caprock := flag.String("caprock", "bin/caprock", "the binary of Caprock")
	etcd := flag.String("etcd", cmp.Or(os.Getenv("ETCD"), "etcd"), "the binary of etcd")
	only := flag.String("only", "", "measure only the rows whose names contain this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	log(run(ctx, *duration, *caprock, *etcd, *only))
}

func run(ctx context.Context, duration time.Duration, caprock, etcd, only string) (err error) {
	dir, err := os.MkdirTemp("", "caprock-compare-")
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, os.RemoveAll(dir)) }()
	ours, err := startCaprock(ctx, caprock, dir)
	if err != nil {
		return err
	}
	defer ours.stop()
	theirs, err := startEtcd(ctx, etcd, dir)
	if err != nil {
		return err
	}
	defer theirs.stop()
	for _, s := range []*system{ours, theirs} {
		if err := fill(ctx, s.client); err != nil {
			return fmt.Errorf("fill %s: %w", s.name, err)
		}
	}
	fmt.Printf("%d CPUs, %s; %s and %s; %d-byte values, %d keys, %s a system and row.\n\n", runtime.NumCPU(), runtime.Version(),
		ours.version, theirs.version, valueBytes, keys, duration/2)
	fmt.Println("| row | Caprock ops/s | p50 | p99 | etcd ops/s | p50 | p99 | ratio | target |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	var ratios strings.Builder
	for _, r := range rows() {
		if !strings.Contains(r.name, only) {
			continue
		}
		a, err := measure(ctx, ours, r, duration/2)
		if err != nil {
			return err
		}
		b, err := measure(ctx, theirs, r, duration/2)
		if err != nil {
			return err
		}
		ratio := a.PerSecond() / max(b.PerSecond(), 1)
		fmt.Printf("| %s | %.0f | %s | %s | %.0f | %s | %s | %.2f | %g |\n", r.name, a.PerSecond(), short(a.Latency.P50), short(a.Latency.P99),
			b.PerSecond(), short(b.Latency.P50), short(b.Latency.P99), ratio, r.target)
		fmt.Fprintf(&ratios, "RATIO %s %.2f %g\n", r.name, ratio, r.target)
	}
	fmt.Printf("\n%s", ratios.String())
	return nil
}

// short spells a latency with three digits.
func short(d time.Duration) string { return fmt.Sprintf("%.3g ms", d.Seconds()*1000) }

// measure runs one row on one system.
func measure(ctx context.Context, s *system, r row, duration time.Duration) (workload.Result, error) {
	target := s.client
	if r.http {
		target = s.http
	}
	result, err := workload.Run(ctx, config(r, duration), workload.Deps{Target: target})
	if err != nil {
		return result, fmt.Errorf("%s on %s: %w", r.name, s.name, err)
	}
	if failed := result.Failed(); failed > 0 {
		return result, fmt.Errorf("%s on %s: %d operations failed: %s", r.name, s.name, failed, result.LastError)
	}
	return result, nil
}

func config(r row, duration time.Duration) workload.Config {
	cfg := workload.DefaultConfig()
	cfg.Clients, cfg.Duration, cfg.Warmup = r.clients, max(duration-warmup, warmup), warmup
	cfg.Keys, cfg.ValueBytes, cfg.Level, cfg.Seed, cfg.KeyPrefix = keys, valueBytes, kv.LevelStrong, seed, "compare/"
	cfg.Mix = workload.Mix{}
	if r.kind == kv.OpGet {
		cfg.Mix.GetPercent = 100
	}
	return cfg
}

// fill writes every key once, so that reads find something.
func fill(ctx context.Context, target workload.Target) error {
	var writers errgroup.Group
	writers.SetLimit(256)
	value := make([]byte, valueBytes)
	names := workload.NewGenerator(config(row{kind: kv.OpPut, clients: 1}, time.Second), rand.New(rand.NewPCG(seed, seed)))
	for i := range int64(keys) {
		key := names.Key(i)
		writers.Go(func() error {
			return target.Do(ctx, workload.Op{
				Kind: kv.OpPut, Level: kv.LevelStrong, Key: key, Value: value, Timeout: kv.RequestTimeout,
			})
		})
	}
	return writers.Wait()
}
