package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// runFake runs a workload against a fake cluster in a bubble.
func runFake(t *testing.T, cfg Config, seed uint64, b bug) (report Report, planted int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, err := NewWorkload(cfg, rand.New(rand.NewPCG(seed, 0)))
		require.NoError(t, err)
		f := newFakeCluster(seed, b, len(w.Policies()) > 0)
		f.settles = cfg.Workload == WorkloadMixed
		h := NewHistory()
		w.Run(t.Context(), f, h)
		f.settle()
		require.NoError(t, w.Finish(t.Context(), f, h))
		report, planted = w.Check(h, 0), f.planted
		checkAgainFromFile(t, w, h, report)
	})
	return report, planted
}

// checkAgainFromFile checks that a history that went through a file gets the same verdict.
func checkAgainFromFile(t *testing.T, w *Workload, h *History, want Report) {
	t.Helper()
	var file bytes.Buffer
	require.NoError(t, h.Encode(&file))
	again, err := Decode(&file)
	require.NoError(t, err)
	require.Equal(t, want, w.Check(again, 0))
}

const runOperations = 800

// seedsMax bounds the runs that a bug gets to show itself.
const seedsMax = uint64(20)

func configFor(workload string) Config {
	cfg := DefaultConfig(workload)
	cfg.Operations = runOperations
	cfg.Timeout = 200 * time.Millisecond
	cfg.Overlap = true
	return cfg
}

func TestWorkloadsFindNothingWrongWithACorrectCluster(t *testing.T) {
	for _, name := range Workloads() {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s/%d", name, seed), func(t *testing.T) {
				report, _ := runFake(t, configFor(name), seed, noBug)
				require.True(t, report.Valid, "%s", report)
				require.GreaterOrEqual(t, report.Operations, runOperations)
				require.NotZero(t, report.Failed)
				if name != WorkloadSession {
					require.NotZero(t, report.Unknown)
				}
				for _, res := range report.Results {
					require.NotZero(t, res.Operations, res.Checker)
				}
			})
		}
	}
}

func TestWorkloadsFindWhatIsWrongWithABrokenCluster(t *testing.T) {
	for workload, bugs := range map[string][]bug{
		WorkloadRegister: {staleRead, lostWrite, failedApplied, appliedTwice, deleteUndone, mixedUp, staleBounded},
		WorkloadCAS:      {staleRead, lostWrite, conditionFree, deleteUndone},
		WorkloadAppend:   {staleRead, lostWrite, conditionFree, mixedUp},
		WorkloadSet:      {lostWrite, oldestWins, thinReplication, deleteUndone},
		WorkloadCausal:   {lostWrite, contextIgnored, contextTooMuch, thinReplication, deleteUndone},
		WorkloadMixed:    {staleRead, lostWrite, failedApplied, mixedUp, staleBounded},
		WorkloadBatch:    {staleRead, lostWrite, conditionFree, deleteUndone, halfBatch, tornBatch},
		WorkloadExpiry:   {staleRead, lostWrite, conditionFree, expiredRead, expiredEarly, removedLate},
	} {
		for _, b := range bugs {
			t.Run(workload+"/"+string(b), func(t *testing.T) {
				cfg := configFor(workload)
				// Where reads promise nothing, a delete that came undone shows only if it was among the last writes of its key.
				cfg.Overlap = b == deleteUndone
				for seed := uint64(1); ; seed++ {
					require.LessOrEqual(t, seed, seedsMax, "not caught")
					report, planted := runFake(t, cfg, seed, b)
					if planted == 0 && b != failedApplied {
						continue
					}
					if !report.Valid {
						require.NotEmpty(t, report.Anomalies)
						return
					}
				}
			})
		}
	}
}

// TestWorkloadIsDeterministic steps two workloads of one seed with the same answers.
func TestWorkloadIsDeterministic(t *testing.T) {
	for _, name := range Workloads() {
		// In a bubble, where the clock stands still.
		run := func() (ops []Op) {
			synctest.Test(t, func(t *testing.T) { ops = stepped(t, name) })
			return ops
		}
		require.Equal(t, run(), run(), name)
	}
}

func stepped(t *testing.T, name string) []Op {
	w, err := NewWorkload(configFor(name), rand.New(rand.NewPCG(7, 7)))
	require.NoError(t, err)
	h, f := NewHistory(), newFakeCluster(1, noBug, len(w.Policies()) > 0)
	target := TargetFunc(func(_ context.Context, _ int, r *kv.Request) (kv.Response, error) { return f.apply(r, plan{}) })
	for i := 0; ; i++ {
		task, ok := w.Next(i % 8)
		if !ok {
			return h.Ops()
		}
		op, res := Record(t.Context(), h, target, i%8, task)
		w.Done(i%8, op, res)
	}
}

func TestKeysAreRetired(t *testing.T) {
	cfg := configFor(WorkloadRegister)
	cfg.Operations, cfg.Keys = 5000, 2
	w, err := NewWorkload(cfg, rand.New(rand.NewPCG(1, 1)))
	require.NoError(t, err)
	h := NewHistory()
	unknown := errors.New("lost")
	for i := 0; ; i++ {
		task, ok := w.Next(0)
		if !ok {
			break
		}
		op, res := Record(t.Context(), h, TargetFunc(func(context.Context, int, *kv.Request) (kv.Response, error) {
			if i > 4000 {
				return kv.Response{}, unknown
			}
			return kv.Response{}, nil
		}), 0, task)
		w.Done(0, op, res)
	}
	_, groups := byKey(h.Ops(), func(*Op) bool { return true })
	require.Greater(t, len(groups), 40)
	for key, ops := range groups {
		require.LessOrEqual(t, len(ops), keyOperationsMax, key)
		writes := 0
		for i := range ops {
			if ops[i].IsWrite() && ops[i].Outcome == OutcomeUnknown {
				writes++
			}
		}
		require.LessOrEqual(t, writes, keyUnknownMax, key)
	}
}

func TestRunEndsWithItsContextAndCutsNothingShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, err := NewWorkload(DefaultConfig(WorkloadRegister), rand.New(rand.NewPCG(1, 1)))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h := NewHistory()
		w.Run(ctx, TargetFunc(func(ctx context.Context, _ int, r *kv.Request) (kv.Response, error) {
			time.Sleep(50 * time.Millisecond)
			return kv.Response{}, ctx.Err()
		}), h)
		c := h.Counts()
		require.Greater(t, c.Operations, 100)
		require.Equal(t, c.Operations, c.OK)
	})
}

func TestTargetThatRefusesAtOnceDoesNotStopTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig(WorkloadSet)
		cfg.Interval = 0
		w, err := NewWorkload(cfg, rand.New(rand.NewPCG(1, 1)))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h := NewHistory()
		down := TargetFunc(func(context.Context, int, *kv.Request) (kv.Response, error) {
			return kv.Response{}, kv.Errorf(kv.CodeNotReady, "down")
		})
		w.Run(ctx, down, h)
		require.Equal(t, h.Counts().Operations, h.Counts().Failed)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorContains(t, w.Finish(ctx, down, h), "down")
	})
}

func TestNonsenseIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"workload":   func(c *Config) { c.Workload = "banking" },
		"clients":    func(c *Config) { c.Clients = 0 },
		"keys":       func(c *Config) { c.Keys = 0 },
		"operations": func(c *Config) { c.Operations = -1 },
		"interval":   func(c *Config) { c.Interval = -1 },
		"timeout":    func(c *Config) { c.Timeout = 0 },
		"prefix":     func(c *Config) { c.Prefix = "" },
	} {
		cfg := DefaultConfig(WorkloadSet)
		require.NoError(t, cfg.Validate())
		change(&cfg)
		_, err := NewWorkload(cfg, rand.New(rand.NewPCG(1, 1)))
		require.Error(t, err, name)
	}
}

func TestFinalReadsCoverEveryKeyByThreeClients(t *testing.T) {
	for _, name := range Workloads() {
		w, err := NewWorkload(configFor(name), rand.New(rand.NewPCG(1, 1)))
		require.NoError(t, err)
		h := NewHistory()
		target := TargetFunc(func(context.Context, int, *kv.Request) (kv.Response, error) { return kv.Response{}, nil })
		require.NoError(t, w.Finish(t.Context(), target, h))
		ops := h.Ops()
		require.Len(t, ops, 3*len(w.Finals()), name)
		readers := map[string]map[int]bool{}
		for _, op := range ops {
			at := op.Level.String() + op.Key
			if readers[at] == nil {
				readers[at] = map[int]bool{}
			}
			readers[at][op.Client] = true
			require.True(t, op.Final)
		}
		for at, clients := range readers {
			require.Len(t, clients, 3, at)
		}
	}
}
