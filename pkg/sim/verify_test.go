package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/verify"
)

// faultyForDefault is how long the faulty phase of a run takes, in simulated time. CAPROCK_SIM_FAULTY asks for another.
const faultyForDefault = 20 * time.Second

func faultyFor(t *testing.T) time.Duration {
	text := os.Getenv("CAPROCK_SIM_FAULTY")
	if text == "" {
		return faultyForDefault
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, "CAPROCK_SIM_FAULTY")
	return d
}

// lanes is the number of kinds of runs below.
const lanes = 13

// verified is a kind of run: a workload under a nemesis.
type verified struct {
	workload string
	nodes    int
	faults   []Fault
	wipes    int
	// lane distinguishes runs that would otherwise draw the same faults at the same moments.
	lane uint64
	// tune changes the configuration of the nodes; nil for none.
	tune func(*node.Config)
	// ahead is how far ahead clocks are set; 0 leaves it to the workload.
	ahead time.Duration
	// rots: the plan has FaultRot. Nobody asks the node whose rows are damaged, which may not know yet, and what others read of it
	// is not held against the acknowledgements before the read.
	rots bool
	// quorum goes with eventual operations; zero leaves it to the cluster, whose reads and writes overlap.
	quorum kv.Quorum
	// involved are the counters, as Totals spells them, that must have counted something by the end of many runs.
	involved []string
	// switches: the prefix is set to other lanes all the time.
	switches bool
	// slow: a run takes so long that one seed has to do unless many are asked for.
	slow bool
}

// runsMany is from how many runs on each part that should be involved must have been.
const runsMany = 10

// seeds returns the seeds of this kind of run. They share the seeds, as each run takes seconds: 200 are 20 a kind, and a few
// are two a kind at least.
func (v verified) seeds() []uint64 {
	all := seeds()
	if len(all) < 2*lanes {
		most := 2
		if v.slow {
			most = 1
		}
		return all[:min(most, len(all))]
	}
	var out []uint64
	for i := int(v.lane) % lanes; i < len(all); i += lanes {
		out = append(out, all[i])
	}
	return out
}

// strongOnly reports whether the workload writes nothing eventually.
func (v verified) strongOnly() bool {
	switch v.workload {
	case verify.WorkloadRegister, verify.WorkloadCAS, verify.WorkloadAppend, verify.WorkloadBatch, verify.WorkloadExpiry:
		return true
	}
	return false
}

// aheadMax bounds how far ahead clocks are set: runs with eventual writes have to wait for the others to come there.
func (v verified) aheadMax() time.Duration {
	switch {
	case v.ahead > 0:
		return v.ahead
	case v.strongOnly():
		return skewMax
	}
	return 20 * time.Second
}

// outcome is what a run leaves behind for the checks.
type outcome struct {
	workload  *verify.Workload
	history   *verify.History
	fired     map[Fault]int
	converged time.Duration
	lasted    time.Duration // simulated
	totals    map[string]float64
}

// run lets the workload run under the nemesis, mends everything, waits for convergence and checks the history.
func (v verified) run(t *testing.T) {
	totals, runs := map[string]float64{}, v.seeds()
	for _, seed := range runs {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			drawn := seed<<8 | v.lane
			plan, err := Scenario{
				Nodes: v.nodes, Length: faultyFor(t), Faults: v.faults, WipesMax: v.wipes, AheadMax: v.aheadMax(),
				FarSkews: v.strongOnly(),
			}.Draw(rand.New(rand.NewPCG(drawn, 13)))
			require.NoError(t, err)
			defer func() {
				if t.Failed() {
					t.Logf("plan:\n%s", plan)
				}
			}()
			var out *outcome
			began := time.Now()
			inTunedBubble(t, seed, v.nodes, v.tune, func(t *testing.T, ctx context.Context, c *Cluster) {
				out = v.make(t, ctx, c, plan, drawn)
			})
			if out == nil {
				return // it failed
			}
			took := time.Since(began)
			// The searches of the checks need real time, and no bubble.
			report := out.workload.Check(out.history, 0)
			for _, a := range report.Anomalies {
				t.Error(a)
			}
			require.True(t, report.Valid, "%v, faults %v", report, out.fired)
			require.Greater(t, report.Operations, 100, "faults %v", out.fired)
			t.Logf("%d operations, %d unknown, faults %v, converged after %s; %.1fs simulated in %.1fs: %.0f times as fast",
				report.Operations, report.Unknown, out.fired, out.converged, out.lasted.Seconds(), took.Seconds(),
				out.lasted.Seconds()/took.Seconds())
			for _, name := range v.involved {
				t.Logf("%s %v", name, out.totals[name])
				totals[name] += out.totals[name]
			}
		})
	}
	for _, name := range v.involved {
		require.True(t, len(runs) < runsMany || t.Failed() || totals[name] > 0, "%s counted nothing in %d runs: they prove nothing of it", name, len(runs))
	}
}

// make is what of a run happens in the bubble.
func (v verified) make(t *testing.T, ctx context.Context, c *Cluster, plan Plan, drawn uint64) *outcome {
	began := time.Now()
	cfg := verify.DefaultConfig(v.workload)
	cfg.Interval = 20 * time.Millisecond
	cfg.Quorum = v.quorum
	cfg.Overlap = v.quorum == kv.Quorum{} && !v.rots // the cluster's quorums are N=3, R=2, W=2
	w, err := verify.NewWorkload(cfg, rand.New(rand.NewPCG(drawn, 11)))
	require.NoError(t, err)
	for _, p := range w.Policies() {
		require.NoError(t, c.SetPolicy(ctx, p))
	}
	time.Sleep(time.Second) // every node has applied the policies
	pick := rand.New(rand.NewPCG(drawn, 12))
	var mu sync.Mutex // guards pick
	target := verify.TargetFunc(func(ctx context.Context, _ int, r *kv.Request) (kv.Response, error) {
		mu.Lock()
		i := pick.IntN(c.Size())
		for slices.Contains(plan.rotten(), i) {
			i = pick.IntN(c.Size())
		}
		mu.Unlock()
		return c.Execute(ctx, i, r)
	})
	h := verify.NewHistory()
	start := time.Now()
	runCtx, stop := context.WithTimeout(ctx, plan.Length)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(runCtx, target, h) })
	var s switching
	if v.switches {
		wg.Go(func() { s.run(runCtx, c, cfg.Prefix, rand.New(rand.NewPCG(drawn, 14)), h) })
	}
	fired, err := c.Nemesis(ctx, plan, h.Note)
	wg.Wait()
	require.NoError(t, err)
	require.NotEmpty(t, fired, "a quiet run proves nothing")
	h.Note("everything is mended")
	if !v.strongOnly() {
		time.Sleep(time.Until(start.Add(plan.Caught())))
	}
	mended, stop := context.WithTimeout(ctx, Convergence)
	defer stop()
	waitReady(t, mended, c, Convergence)
	if v.switches {
		require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte(cfg.Prefix)}))
		awaitLanes(t, ctx, c, Convergence)
		t.Logf("strong-only %d times, open %d times", s.closed.Load(), s.opened.Load())
	}
	converged, difference, err := c.WaitConverged(mended)
	require.NoError(t, err)
	require.True(t, difference.Valid, "replicas differ %s after everything was mended: %v", Convergence, difference.Anomalies)
	require.Positive(t, difference.Keys, "nothing was compared")
	finish, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	require.NoError(t, w.Finish(finish, target, h))
	totals, err := c.Totals(v.involved...)
	require.NoError(t, err)
	return &outcome{workload: w, history: h, fired: fired, converged: converged, lasted: time.Since(began), totals: totals}
}

func TestStrongRegistersAreLinearizableUnderFaults(t *testing.T) {
	verified{workload: verify.WorkloadRegister, nodes: 3, faults: Faults(), lane: 1}.run(t)
}

func TestStrongRegistersOfFiveNodesAreLinearizableUnderFaults(t *testing.T) {
	verified{workload: verify.WorkloadRegister, nodes: 5, faults: Faults(), lane: 2}.run(t)
}

func TestConditionalWritesAreLinearizableUnderFaults(t *testing.T) {
	verified{workload: verify.WorkloadCAS, nodes: 3, faults: Faults(), lane: 3}.run(t)
}

func TestAppendedElementsAreNeverLostUnderFaults(t *testing.T) {
	verified{workload: verify.WorkloadAppend, nodes: 3, faults: Faults(), lane: 4}.run(t)
}

func TestAcknowledgedElementsAreThereAtBothLevelsAfterFaults(t *testing.T) {
	verified{workload: verify.WorkloadSet, nodes: 3, faults: Faults(), lane: 5}.run(t)
}

func TestAcknowledgedElementsSurviveTheLossOfADisk(t *testing.T) {
	faults := []Fault{FaultWipe, FaultPower, FaultBlackout, FaultDisk, FaultOneWay, FaultNoise}
	verified{workload: verify.WorkloadSet, nodes: 3, faults: faults, wipes: 1, lane: 6}.run(t)
}

func TestSiblingsAreTheCausalMaximaAfterFaults(t *testing.T) {
	verified{workload: verify.WorkloadCausal, nodes: 3, faults: Faults(), lane: 7}.run(t)
}

func TestSiblingsOfFiveNodesAreTheCausalMaximaAfterFaults(t *testing.T) {
	verified{workload: verify.WorkloadCausal, nodes: 5, faults: Faults(), lane: 8}.run(t)
}

// Sessions are not promised; the run checks that nothing is read that was not written, and convergence.
func TestCountersThatEverybodyReadsConvergeAfterFaults(t *testing.T) {
	verified{workload: verify.WorkloadSession, nodes: 3, faults: Faults(), lane: 9}.run(t)
}

func TestStrongOperationsAreLinearizableWithEventualWritesOfTheSameKeys(t *testing.T) {
	verified{workload: verify.WorkloadMixed, nodes: 3, faults: Faults(), lane: 10}.run(t)
}

func TestAtomicBatchesAreSeenWholeOrNotAtAllUnderFaults(t *testing.T) {
	faults := append(Faults(), FaultFull)
	verified{workload: verify.WorkloadBatch, nodes: 3, faults: faults, lane: 11}.run(t)
}

// Followers that were away get snapshots, in the middle of batches and of repetitions.
func TestAtomicBatchesSurviveSnapshotsUnderFaults(t *testing.T) {
	verified{workload: verify.WorkloadBatch, nodes: 3, faults: Faults(), lane: 12, tune: shortLogs}.run(t)
}

// Clocks are right: what is said about when a value expires is said of right clocks.
func TestValuesExpireInTimeUnderFaults(t *testing.T) {
	faults := slices.DeleteFunc(append(Faults(), FaultFull), func(f Fault) bool { return f == FaultSkew })
	verified{workload: verify.WorkloadExpiry, nodes: 3, faults: faults, lane: 13}.run(t)
}
