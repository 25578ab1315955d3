package workload

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// fakeTarget answers after a fixed time and remembers what it was asked.
type fakeTarget struct {
	latency time.Duration
	answer  func(n int, op Op) error

	mu  sync.Mutex // guards ops
	ops []Op
}

func (f *fakeTarget) Do(ctx context.Context, op Op) error {
	f.mu.Lock()
	f.ops = append(f.ops, op)
	n := len(f.ops)
	f.mu.Unlock()
	select {
	case <-time.After(f.latency):
	case <-ctx.Done():
		return kv.AsError(ctx.Err())
	}
	if f.answer == nil {
		return nil
	}
	return f.answer(n, op)
}

func smallConfig() Config {
	cfg := DefaultConfig()
	cfg.Clients, cfg.Duration, cfg.Warmup, cfg.Keys = 4, time.Second, 0, 10
	return cfg
}

func TestEqualSeedsSendEqualOperations(t *testing.T) {
	cfg := smallConfig()
	cfg.Mix = Mix{GetPercent: 40, DeletePercent: 10}
	draw := func(seed uint64) []Op {
		g := NewGenerator(cfg, rand.New(rand.NewPCG(seed, 0)))
		ops := make([]Op, 500)
		for i := range ops {
			ops[i] = g.Next()
		}
		return ops
	}
	require.Equal(t, draw(7), draw(7))
	require.NotEqual(t, draw(7), draw(8))
}

func TestOperationsFollowTheMixAndTheKeySpace(t *testing.T) {
	cfg := smallConfig()
	cfg.Mix, cfg.Keys, cfg.ValueBytes, cfg.Level = Mix{GetPercent: 60, DeletePercent: 10}, 5, 33, kv.LevelEventual
	g := NewGenerator(cfg, rand.New(rand.NewPCG(1, 1)))
	kinds, keys := map[kv.Op]int{}, map[string]bool{}
	const total = 20_000
	for range total {
		op := g.Next()
		kinds[op.Kind]++
		keys[op.Key] = true
		require.Equal(t, kv.LevelEventual, op.Level)
		require.Equal(t, cfg.Timeout, op.Timeout)
		if op.Kind == kv.OpPut {
			require.Len(t, op.Value, 33)
		} else {
			require.Nil(t, op.Value)
		}
	}
	require.InDelta(t, 0.6, float64(kinds[kv.OpGet])/total, 0.02)
	require.InDelta(t, 0.1, float64(kinds[kv.OpDelete])/total, 0.02)
	require.InDelta(t, 0.3, float64(kinds[kv.OpPut])/total, 0.02)
	require.Len(t, keys, 5)
	require.Contains(t, keys, "workload/0000000000004")
}

func TestClosedLoopNeverHasMoreInFlightThanClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &fakeTarget{latency: 7 * time.Millisecond}
		result, err := Run(t.Context(), smallConfig(), Deps{Target: target})
		require.NoError(t, err)
		// 4 clients, 142 whole turns of 7 ms each in a second; the turn that the end cuts off is not counted.
		require.EqualValues(t, 4*142, result.Operations)
		require.Equal(t, time.Second, result.Elapsed)
		require.InDelta(t, 568, result.PerSecond(), 0.1)
		require.InDelta(t, 7*time.Millisecond, result.Latency.P50, float64(100*time.Microsecond))
		require.InDelta(t, 7*time.Millisecond, result.Latency.Max, float64(100*time.Microsecond))
		require.Zero(t, result.Failed())
	})
}

func TestWarmupIsNotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := smallConfig()
		cfg.Clients, cfg.Warmup = 1, time.Second
		// Slow while cold: only a measured warm-up would show in the latencies.
		target := &fakeTarget{latency: time.Millisecond}
		start := time.Now()
		target.answer = func(int, Op) error {
			if time.Since(start) < 900*time.Millisecond {
				time.Sleep(100 * time.Millisecond)
			}
			return nil
		}
		result, err := Run(t.Context(), cfg, Deps{Target: target})
		require.NoError(t, err)
		require.Equal(t, time.Second, result.Elapsed)
		require.Less(t, result.Latency.Max, 2*time.Millisecond)
		require.InDelta(t, 999, result.Operations, 1)
	})
}

func TestFailuresAreCountedByCodeAndAbsentKeysAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := smallConfig()
		cfg.Clients, cfg.Mix = 1, Mix{GetPercent: 100}
		target := &fakeTarget{latency: 9900 * time.Microsecond}
		target.answer = func(n int, _ Op) error {
			switch n % 4 {
			case 0:
				return kv.Errorf(kv.CodeKeyNotFound, "no such key")
			case 1:
				return kv.Errorf(kv.CodeNoLeader, "no leader")
			case 2:
				return kv.Errorf(kv.CodeDeadlineExceeded, "too late").WithOutcome(kv.OutcomeUnknown)
			default:
				return nil
			}
		}
		result, err := Run(t.Context(), cfg, Deps{Target: target})
		require.NoError(t, err)
		require.EqualValues(t, 25, result.NotFound) // 101 turns
		require.EqualValues(t, 25+25, result.Operations)
		require.Equal(t, map[kv.Code]int64{kv.CodeNoLeader: 26, kv.CodeDeadlineExceeded: 25}, result.Errors)
		require.EqualValues(t, 25, result.Unknown)
		require.EqualValues(t, 51, result.Failed())
		require.Regexp(t, "no leader|too late", result.LastError)
		require.Equal(t, result.Operations, result.Kinds[kv.OpGet].Operations)
	})
}

func TestRunEndsAfterItsOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := smallConfig()
		cfg.Operations, cfg.Duration = 20, time.Hour
		result, err := Run(t.Context(), cfg, Deps{Target: &fakeTarget{latency: time.Millisecond}})
		require.NoError(t, err)
		require.InDelta(t, 20, result.Operations, 4)
		require.Less(t, result.Elapsed, time.Second)
	})
}

func TestCancelledRunReturnsWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 105*time.Millisecond)
		defer cancel()
		result, err := Run(ctx, smallConfig(), Deps{Target: &fakeTarget{latency: 10 * time.Millisecond}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualValues(t, 40, result.Operations)
	})
}

func TestImpossibleConfigurationsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"clients":  func(c *Config) { c.Clients = 0 },
		"duration": func(c *Config) { c.Duration = 0 },
		"keys":     func(c *Config) { c.Keys = 0 },
		"value":    func(c *Config) { c.ValueBytes = -1 },
		"mix":      func(c *Config) { c.Mix = Mix{GetPercent: 60, DeletePercent: 50} },
		"level":    func(c *Config) { c.Level = 99 },
		"timeout":  func(c *Config) { c.Timeout = time.Hour },
		"prefix":   func(c *Config) { c.KeyPrefix = string(make([]byte, kv.KeyBytesMax)) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			require.NoError(t, cfg.Validate())
			change(&cfg)
			require.ErrorContains(t, cfg.Validate(), name)
			_, err := Run(t.Context(), cfg, Deps{Target: &fakeTarget{}})
			require.Error(t, err)
		})
	}
}
