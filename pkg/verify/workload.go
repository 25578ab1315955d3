package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The workloads.
const (
	// WorkloadRegister: strong puts, gets and deletes of a few keys, and bounded gets.
	WorkloadRegister = "register"
	// WorkloadCAS: strong reads and conditional writes of a few keys.
	WorkloadCAS = "cas"
	// WorkloadAppend: lists that grow by a strong read and a conditional write.
	WorkloadAppend = "append"
	// WorkloadSet: each client adds elements to keys of its own, at level eventual and strong.
	WorkloadSet = "set"
	// WorkloadCausal: eventual writes with and without contexts under the resolver that keeps siblings.
	WorkloadCausal = "causal"
	// WorkloadSession: each client counts up a key of its own at level eventual; everybody reads.
	WorkloadSession = "session"
	// WorkloadMixed: strong and eventual operations, and bounded gets, on the same keys.
	WorkloadMixed = "mixed"
	// WorkloadBatch: atomic batches on the keys of a few tags, some on conditions, and listings of whole tags.
	WorkloadBatch = "batch"
	// WorkloadExpiry: strong writes of values that expire, and of such that do not. The clocks of the nodes must be right.
	WorkloadExpiry = "expiry"
)

// Workloads names all workloads.
func Workloads() []string {
	return []string{
		WorkloadRegister, WorkloadCAS, WorkloadAppend, WorkloadSet, WorkloadCausal, WorkloadSession, WorkloadMixed,
		WorkloadBatch, WorkloadExpiry,
	}
}

// Limits of a workload, none of which a run needs to change.
const (
	// keyOperationsMax retires a key after so many operations: the search for an order grows faster than their number.
	keyOperationsMax = 500
	// causalOperationsMax does so in the causal workload, where the end of a key's life shows most: later writes supersede
	// what earlier ones should have left.
	causalOperationsMax = 60
	// tagOperationsMax does so with the keys of one tag together.
	tagOperationsMax = 250
	// keyUnknownMax retires a key after so many unknown writes, each of which may double the search.
	keyUnknownMax = 8
	// listElementsMax retires a key once its list is this long.
	listElementsMax = 60
	// failurePause is how long a client waits after an operation that was not answered. Without it a target that refuses
	// at once would be asked for ever at one instant of a bubble's time.
	failurePause = 10 * time.Millisecond
	// finalReaders is how many clients make each final read: with clients spread over nodes, each node is asked.
	finalReaders = 3
	clientsMax   = 1000
)

// Config describes a workload.
type Config struct {
	// Workload is one of Workloads().
	Workload string
	// Clients is the number of concurrent clients, 1 to 1,000.
	Clients int
	// Keys is the number of keys in use at one time; for set and session it is that of each client, for batch that of tags,
	// and expiry has sixteen times as many.
	Keys int
	// Operations ends the run after so many operations; 0 leaves it to the context.
	Operations int
	// Interval is the mean pause of a client between two operations. Zero in a bubble makes time stand still for a
	// target that answers without any delay.
	Interval time.Duration
	// Timeout bounds each operation.
	Timeout time.Duration
	// Prefix starts every key, so that runs do not meet. The causal workload needs a policy for it: see Policies.
	Prefix string
	// Quorum goes with eventual operations: N and R with reads, N and W with writes. Zero leaves it to the cluster.
	Quorum kv.Quorum
	// Overlap says that eventual reads and writes overlap (R+W > N, neither sloppy): then each read of the causal workload
	// must reflect what was acknowledged before it.
	Overlap bool
}

// DefaultConfig returns a configuration of the workload: 8 clients, 4 keys.
func DefaultConfig(workload string) Config {
	return Config{
		Workload: workload, Clients: 8, Keys: 4, Interval: 5 * time.Millisecond, Timeout: 2 * time.Second,
		Prefix: workload + "/",
	}
}

// Validate checks the configuration.
func (c Config) Validate() error {
	switch {
	case !slices.Contains(Workloads(), c.Workload):
		return fmt.Errorf("verify: unknown workload %q; the workloads are %q", c.Workload, Workloads())
	case c.Clients < 1 || c.Clients > clientsMax:
		return fmt.Errorf("verify: %d clients; 1 to %d are possible", c.Clients, clientsMax)
	case c.Keys < 1:
		return errors.New("verify: a workload needs at least one key")
	case c.Operations < 0:
		return fmt.Errorf("verify: %d operations", c.Operations)
	case c.Interval < 0:
		return fmt.Errorf("verify: an interval of %s", c.Interval)
	case c.Timeout <= 0:
		return fmt.Errorf("verify: a timeout of %s; it must be positive", c.Timeout)
	case c.Prefix == "":
		return errors.New("verify: a workload needs a prefix for its keys")
	}
	return nil
}

// generator decides what clients do. It is not safe for several goroutines: Workload locks around it.
type generator interface {
	// next returns the client's next request.
	next(client int, r *rand.Rand) Task
	// done tells it how a request of next ended.
	done(client int, op *Op, res *kv.Response)
	// final returns the reads to make after the run.
	final() []Task
}

// Workload makes the operations of a run. Given the same random source and the same answers in the same order, it makes the
// same ones.
type Workload struct {
	cfg Config

	// mu guards the fields below.
	mu      sync.Mutex
	gen     generator
	rands   []*rand.Rand // one a client
	started int          // operations
}

// NewWorkload makes a workload.
func NewWorkload(cfg Config, r *rand.Rand) (*Workload, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	w := &Workload{cfg: cfg, gen: newGenerator(cfg)}
	for range cfg.Clients {
		w.rands = append(w.rands, rand.New(rand.NewPCG(r.Uint64(), r.Uint64())))
	}
	return w, nil
}

// Policies returns the policies that the cluster must have before the run.
func (w *Workload) Policies() []kv.Policy {
	if w.cfg.Workload != WorkloadCausal {
		return nil
	}
	return []kv.Policy{{Prefix: []byte(w.cfg.Prefix), Default: kv.LevelEventual, Resolver: kv.ResolverSiblings}}
}

// Next returns the client's next operation, false when the run has made its number. A client makes one at a time.
func (w *Workload) Next(client int) (Task, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cfg.Operations > 0 && w.started >= w.cfg.Operations {
		return Task{}, false
	}
	w.started++
	return w.gen.next(client, w.rands[client]), true
}

// Done tells the workload how the client's operation ended.
func (w *Workload) Done(client int, op Op, res kv.Response) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gen.done(client, &op, &res)
}

// Run makes operations until ctx is done or there have been enough. Operations under way are not cut short: Run returns
// when the last of them has ended, each after its own timeout at the latest.
func (w *Workload) Run(ctx context.Context, t Target, h *History) {
	var clients sync.WaitGroup
	for client := range w.cfg.Clients {
		clients.Go(func() { w.client(ctx, t, h, client) })
	}
	clients.Wait()
}

func (w *Workload) client(ctx context.Context, t Target, h *History, client int) {
	for ctx.Err() == nil {
		task, ok := w.Next(client)
		if !ok {
			return
		}
		op, res := w.do(ctx, t, h, client, task)
		w.Done(client, op, res)
		pause := w.jitter(client)
		if op.Outcome != OutcomeOK {
			pause += failurePause
		}
		wait(ctx, pause)
	}
}

// do makes one operation. The end of the run does not end it: that would only make its outcome unknown.
func (w *Workload) do(ctx context.Context, t Target, h *History, client int, task Task) (Op, kv.Response) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.cfg.Timeout)
	defer cancel()
	return Record(ctx, h, t, client, task)
}

// jitter draws a pause from 0 to twice the interval.
func (w *Workload) jitter(client int) time.Duration {
	if w.cfg.Interval == 0 {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rands[client].Int64N(2*int64(w.cfg.Interval) + 1))
}

// Finals returns the reads that the checkers want after the run.
func (w *Workload) Finals() []Task {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gen.final()
}

// Finish makes the final reads, each as several clients. It tries each until it succeeds or ctx is done; then it returns an
// error that says what could not be read.
func (w *Workload) Finish(ctx context.Context, t Target, h *History) error {
	tasks := w.Finals()
	errs := make([]error, w.cfg.Clients)
	var clients sync.WaitGroup
	for client := range w.cfg.Clients {
		clients.Go(func() { errs[client] = w.finish(ctx, t, h, client, tasks) })
	}
	clients.Wait()
	return errors.Join(errs...)
}

// finish makes the client's share of the final reads.
func (w *Workload) finish(ctx context.Context, t Target, h *History, client int, tasks []Task) error {
	readers := min(finalReaders, w.cfg.Clients)
	for i, task := range tasks {
		// Task i is for the clients i, i+1, … of a ring.
		if (client-i%w.cfg.Clients+w.cfg.Clients)%w.cfg.Clients >= readers {
			continue
		}
		for {
			op, _ := w.do(ctx, t, h, client, task)
			if op.Outcome == OutcomeOK {
				break
			}
			wait(ctx, 10*failurePause)
			if ctx.Err() != nil {
				return fmt.Errorf("verify: the final read failed: %s: %s", op.String(), op.Detail)
			}
		}
	}
	return nil
}

// Check runs the checkers that go with the workload. timeout bounds the search of CheckLinearizable; 0 leaves it to the
// limit on its steps.
func (w *Workload) Check(h *History, timeout time.Duration) Report {
	results := []Result{CheckValues(h)}
	switch w.cfg.Workload {
	case WorkloadRegister:
		results = append(results, CheckLinearizable(h, timeout), CheckBounded(h, w.cfg.Overlap))
	case WorkloadCAS, WorkloadExpiry:
		results = append(results, CheckLinearizable(h, timeout))
	case WorkloadAppend:
		results = append(results, CheckAppend(h), CheckLinearizable(h, timeout))
	case WorkloadSet:
		results = append(results, CheckSet(h))
	case WorkloadCausal:
		results = append(results, CheckCausal(h, CausalOptions{Overlap: w.cfg.Overlap}))
	case WorkloadSession:
		results = append(results, CheckSession(h, false))
	case WorkloadBatch:
		results = append(results, CheckBatches(h, timeout))
	case WorkloadMixed:
		results = append(results, CheckMixed(h, timeout), CheckBounded(h, w.cfg.Overlap))
	}
	return NewReport(h, results...)
}

// wait waits, or until ctx is done.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
