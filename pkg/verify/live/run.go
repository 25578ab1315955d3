package live

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/verify"
)

const (
	// faultTimeout bounds how long one fault may take to begin, and again to end.
	faultTimeout = readyTimeout + 30*time.Second
	// holdLeast is the shortest time left for which a fault is still worth beginning.
	holdLeast     = 200 * time.Millisecond
	progressEvery = 200 * time.Millisecond
	// mendTimeout bounds the mending after the last fault.
	mendTimeout = readyTimeout + 30*time.Second
)

// run is one run.
type run struct {
	cfg  Config
	deps Deps

	fleet    *fleet
	target   *target
	workload *verify.Workload
	history  *verify.History
	leaders  *leaders
	planner  *planner // nil without faults
	report   Report
	own      []verify.Anomaly // what the harness found
	// ahead is the latest time that a clock that was set ahead may have shown.
	ahead time.Time

	// What progress tells.
	phase   atomic.Pointer[string]
	began   time.Time   // of the workload
	running atomic.Bool // began is set
	faults  atomic.Int64
}

// Run runs the workload under the faults and judges what was seen. An error means that there is no verdict: the cluster
// could not be started, or ctx was done. When it returns, everything that it started has ended.
func Run(ctx context.Context, cfg Config, deps Deps) (report Report, err error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	r := &run{cfg: cfg, deps: deps.withDefaults(), history: verify.NewHistory(), leaders: newLeaders()}
	r.report = Report{
		Seed: cfg.Seed, Workload: cfg.Workload, Nemeses: cfg.Nemeses, Nodes: cfg.size(), Clients: cfg.Clients,
		Network: cfg.Network, Seconds: seconds(cfg.Duration), ByFault: map[string]int{}, Timeline: []Event{},
	}
	r.say("starting")
	stopTelling := r.tell()
	defer stopTelling()
	if err := r.all(ctx); err != nil {
		return r.report, err
	}
	return r.report, writeArtefacts(cfg.OutDir, &r.report, r.history)
}

// all does the run's parts in order.
func (r *run) all(ctx context.Context) (err error) {
	r.fleet, err = r.openFleet(ctx)
	defer func() { err = errors.Join(err, r.fleet.stop()) }()
	if err != nil {
		return r.interrupted(ctx, err)
	}
	if err := r.prepare(ctx); err != nil {
		return r.interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, r.target.close()) }()
	// An attached cluster is left as it was found, whatever happens in between.
	defer func() { err = errors.Join(err, r.leave(context.WithoutCancel(ctx))) }()

	r.under(ctx)
	if ctx.Err() != nil {
		return r.interrupted(ctx, nil)
	}
	r.settle(ctx)
	if ctx.Err() != nil {
		return r.interrupted(ctx, nil)
	}
	r.say("checking")
	r.report.LeaderChanges = r.leaders.changes()
	r.lookBack()
	r.report.judge(r.workload.Check(r.history, checkTimeout), r.own)
	return nil
}

// ErrInterrupted is returned when the context ended the run.
var ErrInterrupted = errors.New("interrupted before there was a verdict")

// interrupted prefers the interrupt to the errors that it caused.
func (r *run) interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ErrInterrupted
	}
	return err
}

func (r *run) openFleet(ctx context.Context) (*fleet, error) {
	if r.cfg.attached() {
		return attachFleet(ctx, r.cfg, r.deps)
	}
	return startFleet(ctx, r.cfg, r.deps)
}

// prepare makes the workload, its clients and the plan. Workload and plan draw from streams of their own, so that the plan
// does not depend on how fast the clients are.
func (r *run) prepare(ctx context.Context) (err error) {
	s, err := r.fleet.nodes[0].admin.status(ctx)
	if err != nil {
		return err
	}
	const streamPlan, streamWorkload = 1, 2
	prefix := "verify-" + r.cfg.Workload + "/" + strconv.FormatInt(time.Now().UnixMilli(), 36) + "/"
	cfg := r.cfg.workload(prefix, s.Quorum.R+s.Quorum.W > s.Quorum.N)
	if r.workload, err = verify.NewWorkload(cfg, rand.New(rand.NewPCG(r.cfg.Seed, streamWorkload))); err != nil {
		return err
	}
	if decks := mustDecks(r.cfg); len(decks) > 0 {
		r.planner = newPlanner(rand.New(rand.NewPCG(r.cfg.Seed, streamPlan)), planConfig{
			nodes: r.cfg.size(), attached: r.cfg.attached(), ahead: r.cfg.ahead(), decks: decks,
			wipeAfter: int(r.cfg.Duration / (2 * stepMean)),
		})
	}
	// The caller leaves an attached cluster as it was found; until there is somebody to do so, that is done here.
	defer func() {
		if err != nil {
			err = errors.Join(err, r.leave(context.WithoutCancel(ctx)))
		}
	}()
	if err := r.fleet.setPolicies(ctx, r.workload.Policies()); err != nil {
		return err
	}
	var addresses []string
	for _, n := range r.fleet.nodes {
		addresses = append(addresses, n.grpc)
	}
	r.target, err = newTarget(addresses, r.cfg.Clients)
	return err
}

// under runs the workload under faults, for the time that was asked for.
func (r *run) under(ctx context.Context) {
	r.say("running")
	r.began = time.Now()
	r.running.Store(true)
	timed, cancel := context.WithTimeout(ctx, r.cfg.Duration)
	defer cancel()
	watching, stopWatching := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { r.leaders.watch(watching, r.fleet.nodes) })
	parts.Go(func() { r.workload.Run(timed, r.target, r.history) })
	if r.planner != nil {
		r.nemesis(timed)
	}
	<-timed.Done()
	stopWatching()
	parts.Wait()
}

// nemesis carries out one step after another until ctx is done, or the cluster cannot be mended any more: what else would
// be done to it then, would prove nothing. A fault that has begun is ended in order.
func (r *run) nemesis(ctx context.Context) {
	end, _ := ctx.Deadline()
	for r.planner.more() {
		s := r.planner.next()
		if time.Until(end) < s.Calm+holdLeast || !pause(ctx, s.Calm) {
			return
		}
		if !r.step(ctx, s) {
			return
		}
	}
}

// The anomalies of a fault.
const (
	noEffect     = "fault had no effect"
	notMended    = "fault could not be taken back"
	nodePanicked = "a node panicked"
)

// step carries out one fault. It reports whether the cluster is whole again.
func (r *run) step(ctx context.Context, s Step) (whole bool) {
	r.faults.Add(1)
	uncut := context.WithoutCancel(ctx)
	names := r.fleet.names(s.Nodes)
	e := Event{Fault: s.Fault, Nodes: names}
	r.history.Note(fmt.Sprintf("%s of %v begins", s.Fault, names))
	f := newFault(r.fleet, s)

	beginning, cancel := context.WithTimeout(uncut, faultTimeout)
	err := f.begin(beginning)
	cancel()
	e.From = seconds(time.Since(r.began))
	kind := noEffect
	if err == nil {
		err = f.hold(ctx, s.Hold)
	}
	ending, cancel := context.WithTimeout(uncut, faultTimeout)
	effect, endErr := f.end(ending)
	cancel()
	e.To = seconds(time.Since(r.began))
	r.history.Note(fmt.Sprintf("%s of %v ended", s.Fault, names))
	if at := time.Now().Add(s.Skew); s.Skew > 0 && at.After(r.ahead) {
		r.ahead = at
	}

	switch {
	case errors.Is(endErr, errPanicked):
		kind = nodePanicked
	case err == nil && endErr != nil && !errors.Is(endErr, errNoEffect):
		kind = notMended
	}
	whole = true
	if err = errors.Join(err, endErr); err != nil {
		e.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		r.own = append(r.own, anomaly(kind, fmt.Sprintf("%s: %s of %v at %.3f s: %s", kind, s.Fault, names, e.From, e.Error)))
		// What follows should start from a whole cluster.
		mending, cancel := context.WithTimeout(uncut, mendTimeout)
		defer cancel()
		if err := r.fleet.mend(mending); err != nil {
			r.deps.Logger.Warn("cannot mend", "fault", s.Fault, "error", err)
			whole = false
		}
	} else {
		e.Effect = effect
	}
	r.deps.Logger.Info("fault", "fault", s.Fault, "nodes", names, "effect", e.Effect, "error", e.Error)
	r.report.record(e)
	return whole
}

// settle mends everything, waits until the replicas agree, and makes the final reads. Of a cluster that does not recover
// neither can be expected, and the verdict is certain.
func (r *run) settle(ctx context.Context) {
	r.say("mending")
	mending, cancel := context.WithTimeout(ctx, mendTimeout)
	defer cancel()
	if err := r.mendLast(mending); err != nil {
		r.own = append(r.own, anomaly("the cluster does not recover", strings.ReplaceAll(err.Error(), "\n", "; ")))
		return
	}
	r.say("converging")
	limit := convergeTimeout
	if r.cfg.eventual() {
		limit += max(0, time.Until(r.ahead))
	}
	r.own = append(r.own, converge(ctx, r.target, r.fleet.nodes, historyKeys(r.history), limit)...)
	r.say("final reads")
	finishing, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	if err := r.workload.Finish(finishing, r.target, r.history); err != nil {
		r.own = append(r.own, anomaly("a final read fails", err.Error()))
	}
}

// mendLast mends a cluster that faults were injected into. One that never had a fault may not even have an injector.
func (r *run) mendLast(ctx context.Context) error {
	if r.planner == nil {
		return r.fleet.waitReady(ctx, r.fleet.present())
	}
	return r.fleet.mend(ctx)
}

// leave takes back what was done to an attached cluster. One that was started here ends anyway.
func (r *run) leave(ctx context.Context) error {
	if !r.cfg.attached() {
		return nil
	}
	var errs []error
	if r.planner != nil {
		errs = append(errs, r.fleet.clearFaults(ctx))
	}
	for _, p := range r.workload.Policies() {
		errs = append(errs, r.fleet.nodes[0].admin.deletePolicy(ctx, p.Prefix))
	}
	return errors.Join(errs...)
}

// lookBack finds what was wrong with the run as a whole.
func (r *run) lookBack() {
	r.fleet.noteDeaths()
	for _, death := range r.fleet.deaths {
		r.own = append(r.own, anomaly("a node died", death))
	}
	if r.planner != nil && r.report.Faults == 0 {
		r.own = append(r.own, anomaly("no fault", "the run was over before a fault had taken effect: it proves nothing; choose a longer duration"))
	}
	if counts := r.history.Counts(); counts.OK == 0 {
		r.own = append(r.own, anomaly("no operation", fmt.Sprintf("none of %d operations was answered: the run proves nothing", counts.Operations)))
	}
}

func (r *run) say(phase string) {
	r.phase.Store(&phase)
	r.deps.Logger.Debug("verify", "phase", phase)
}

// tell reports progress until the function that it returns is called.
func (r *run) tell() (stop func()) {
	if r.deps.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				r.deps.Progress(r.progress())
			}
		}
	})
	return func() {
		close(done)
		telling.Wait()
	}
}

func (r *run) progress() Progress {
	p := Progress{Phase: *r.phase.Load(), Operations: r.history.Counts().Operations, Faults: int(r.faults.Load())}
	if r.running.Load() {
		p.Elapsed = time.Since(r.began)
	}
	return p
}
