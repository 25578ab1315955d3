package api

import (
	"context"
	"errors"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// executor runs requests of every front against the backend: what one protocol counts and classifies, all do.
type executor struct {
	backend Backend
	metrics *operationMetrics
	limits  kv.Limits
}

func newExecutor(deps Deps, limits kv.Limits) (*executor, error) {
	m, err := newOperationMetrics(deps.Registerer)
	if err != nil {
		return nil, err
	}
	return &executor{backend: deps.Backend, metrics: m, limits: limits}, nil
}

// executorOf is newExecutor for a front, whose configuration is as invalid says and whose collaborators are not checked yet.
func executorOf(invalid error, deps Deps, limits kv.Limits) (*executor, error) {
	if invalid != nil {
		return nil, invalid
	}
	if err := deps.Validate(); err != nil {
		return nil, err
	}
	return newExecutor(deps, limits)
}

// execute runs the request, whose deadline is in ctx, and counts it. A read of an absent key is no error.
//
// A request that names its level is validated here already, so that nonsense is refused before it costs an admission
// slot; one that names none is validated by the backend, once the level is known.
func (x *executor) execute(ctx context.Context, r *kv.Request) (kv.Response, *kv.Error) {
	// The backend owns the request from here on, and may fill in the level it resolved.
	op, level := r.Op, r.Level
	start := time.Now()
	var (
		resp kv.Response
		err  error
	)
	if level != kv.LevelUnset {
		err = r.Validate(x.limits)
	}
	if err == nil {
		resp, err = x.backend.Execute(ctx, r)
	}
	failure := classify(op, err)
	result := resultOf(failure)
	if failure == nil {
		level = resp.Level
		if op == kv.OpGet && !resp.Found {
			result = resultNotFound
		}
	}
	x.metrics.observe(level, op, result, time.Since(start))
	return resp, failure
}

// executeEach runs requests that came together, each by itself, and counts each. Those on one key run in their order.
func (x *executor) executeEach(ctx context.Context, items []kv.Request) []itemOutcome {
	out := make([]itemOutcome, len(items))
	start := time.Now()
	sent, places := make([]kv.Request, 0, len(items)), make([]int, 0, len(items))
	for i := range items {
		if level := items[i].Level; level != kv.LevelUnset {
			if err := items[i].Validate(x.limits); err != nil {
				out[i].err = classify(items[i].Op, err)
				x.metrics.observe(level, items[i].Op, resultOf(out[i].err), time.Since(start))
				continue
			}
		}
		sent, places = append(sent, items[i]), append(places, i)
	}
	if len(sent) == 0 {
		return out
	}
	for at, a := range x.backend.ExecuteEach(ctx, sent) {
		i := places[at]
		op, level := items[i].Op, items[i].Level
		out[i].resp = a.Response
		if a.Err != nil {
			out[i].err = classify(op, a.Err)
		}
		result := resultOf(out[i].err)
		if out[i].err == nil {
			level = a.Response.Level
			if op == kv.OpGet && !a.Response.Found {
				result = resultNotFound
			}
		}
		x.metrics.observe(level, op, result, time.Since(start))
	}
	return out
}

// refuse counts an operation that never reached the backend because its request was malformed.
func (x *executor) refuse(level kv.Level, op kv.Op) {
	x.metrics.count(level, op, resultRefused)
}

// classify turns any error into a kv.Error that is honest about its outcome: a read applies nothing whatever happens,
// and a write that was abandoned at its deadline may have been applied unless the backend knows better.
func classify(op kv.Op, err error) *kv.Error {
	if err == nil {
		return nil
	}
	failure, ok := errors.AsType[*kv.Error](err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		failure = kv.Errorf(kv.CodeDeadlineExceeded, "no answer before the deadline: %w", err).WithOutcome(kv.OutcomeUnknown)
	case errors.Is(err, context.Canceled):
		failure = kv.Errorf(kv.CodeDeadlineExceeded, "the request was abandoned: %w", err).WithOutcome(kv.OutcomeUnknown)
	default:
		failure = kv.AsError(err)
	}
	if (op == kv.OpGet || op == kv.OpList) && failure.Outcome != kv.OutcomeNotApplied {
		return failure.WithOutcome(kv.OutcomeNotApplied)
	}
	return failure
}
