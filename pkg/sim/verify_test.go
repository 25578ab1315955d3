package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/verify"
)

// runVerified lets a workload run for a while under a nemesis, mends everything, waits for convergence and checks the
// history.
func runVerified(t *testing.T, workload string, faults []Fault) {
	// These take seconds each, so they run on half as many seeds as the rest.
	all := seeds()
	runEach(t, all[:(len(all)+1)/2], 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		const faultyFor, convergence = 20 * time.Second, 60 * time.Second
		seed := c.opts.Seed<<8 | uint64(len(workload)) // not the same faults at the same moments for every workload
		cfg := verify.DefaultConfig(workload)
		w, err := verify.NewWorkload(cfg, rand.New(rand.NewPCG(seed, 11)))
		require.NoError(t, err)
		for _, p := range w.Policies() {
			require.NoError(t, c.SetPolicy(ctx, p))
		}
		time.Sleep(time.Second) // every node has applied the policies
		pick := rand.New(rand.NewPCG(seed, 12))
		var mu sync.Mutex // guards pick
		target := verify.TargetFunc(func(ctx context.Context, _ int, r *kv.Request) (kv.Response, error) {
			mu.Lock()
			i := pick.IntN(c.Size())
			mu.Unlock()
			return c.Execute(ctx, i, r)
		})
		h := verify.NewHistory()
		runCtx, stop := context.WithTimeout(ctx, faultyFor)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { w.Run(runCtx, target, h) })
		fired, err := c.Nemesis(runCtx, rand.New(rand.NewPCG(seed, 13)), faults, h.Note)
		require.NoError(t, err)
		wg.Wait()
		require.NotEmpty(t, fired, "a quiet run proves nothing")
		waitReady(t, ctx, c, 30*time.Second)
		time.Sleep(convergence)
		finish, stop := context.WithTimeout(ctx, 30*time.Second)
		defer stop()
		require.NoError(t, w.Finish(finish, target, h))
		report := w.Check(h, 0)
		for _, a := range report.Anomalies {
			t.Error(a)
		}
		require.True(t, report.Valid, "%v, faults %v", report, fired)
		require.Greater(t, report.Operations, 100, "faults %v", fired)
		t.Logf("%d operations, %d unknown, faults %v", report.Operations, report.Unknown, fired)
	})
}

func TestStrongRegistersAreLinearizableUnderFaults(t *testing.T) {
	runVerified(t, verify.WorkloadRegister, Faults())
}

func TestConditionalWritesAreLinearizableUnderFaults(t *testing.T) {
	runVerified(t, verify.WorkloadCAS, Faults())
}

func TestAppendedElementsAreNeverLostUnderFaults(t *testing.T) {
	runVerified(t, verify.WorkloadAppend, Faults())
}

func TestAcknowledgedElementsAreThereAtBothLevelsAfterFaults(t *testing.T) {
	runVerified(t, verify.WorkloadSet, Faults())
}

func TestSiblingsAreTheCausalMaximaAfterFaults(t *testing.T) {
	runVerified(t, verify.WorkloadCausal, Faults())
}
