package workload

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Target is what a run sends its operations to. Do returns once the operation was answered or op.Timeout has passed; its
// errors are *kv.Error, a read of an absent key one with code CodeKeyNotFound. It is called by all clients at once.
type Target interface {
	Do(ctx context.Context, op Op) error
}

// Deps are what a run needs from outside.
type Deps struct {
	Target Target
}

// Run sends the configured load and returns what it measured. Failed operations are part of the result, not an
// error of the run; a run that ctx cut short returns what it has, with ctx's error.
func Run(ctx context.Context, cfg Config, deps Deps) (Result, error) {
	if err := cfg.Validate(); err != nil {
		return Result{}, err
	}
	if deps.Target == nil {
		return Result{}, errors.New("workload: no target")
	}
	r := &run{cfg: cfg, target: deps.Target}
	block := make([]byte, cfg.ValueBytes+valueWindows)
	fillRandom(block, newRand(cfg.Seed, 0))
	tallies := make([]*tally, cfg.Clients)

	start := time.Now()
	r.measureFrom = start.Add(cfg.Warmup)
	r.end = r.measureFrom.Add(cfg.Duration)
	// The end cancels what is under way. As a deadline it would make targets cut the last operations' timeouts short, and these would
	// fail with an error of their own right before the end.
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(time.Until(r.end), cancel).Stop()
	r.stop = cancel
	var clients errgroup.Group
	for i := range cfg.Clients {
		tallies[i] = newTally()
		generator := newGenerator(cfg, newRand(cfg.Seed, uint64(i)+1), block)
		clients.Go(func() error {
			r.client(runCtx, generator, tallies[i])
			return nil
		})
	}
	_ = clients.Wait() // clients never fail; errors of operations are counted
	// Waiting for the operations that the end cut off is not part of the measured time.
	elapsed := min(max(time.Since(r.measureFrom), 0), cfg.Duration)
	return merge(tallies, elapsed), ctx.Err()
}

func newRand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// run is what the clients of one run share. Read-only but for the counter.
type run struct {
	cfg         Config
	target      Target
	measureFrom time.Time
	end         time.Time
	stop        context.CancelFunc
	measured    atomic.Int64
}

// client sends one operation after another until the run ends.
func (r *run) client(ctx context.Context, generator *Generator, out *tally) {
	for ctx.Err() == nil {
		op := generator.Next()
		begin := time.Now()
		err := r.target.Do(ctx, op)
		end := time.Now()
		// An operation that was cut off, or answered after the end, does not belong to the measured time. The context's own
		// timer may be late.
		if !end.Before(r.end) || ctx.Err() != nil {
			return
		}
		if begin.Before(r.measureFrom) {
			continue
		}
		out.record(op.Kind, end.Sub(begin), err)
		if n := r.measured.Add(1); r.cfg.Operations > 0 && n >= r.cfg.Operations {
			r.stop()
		}
	}
}
