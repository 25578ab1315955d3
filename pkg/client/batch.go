package client

import (
	"context"
	"time"

	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// BatchResult answers one operation of a batch: Err is a *kv.Error where it failed.
type BatchResult struct {
	Result
	Err error
}

// Batch runs up to 1,000 operations, of 4 MiB, each on its own: those on one key in their order, others at once. The error is
// about all of them; whether a single one failed, its result says. Options apply to every operation, except Timeout, which
// bounds the whole.
func (c *Client) Batch(ctx context.Context, operations []kv.Request, options ...Option) ([]BatchResult, error) {
	return c.batch(ctx, operations, false, options)
}

// AtomicBatch applies puts and deletes on distinct keys of one partition, all or none, at level strong. Keys with the same {tag}
// share a partition. When a condition of any of them misses, nothing is written and the error says which missed.
func (c *Client) AtomicBatch(ctx context.Context, operations []kv.Request, options ...Option) ([]BatchResult, error) {
	return c.batch(ctx, operations, true, options)
}

func (c *Client) batch(ctx context.Context, operations []kv.Request, atomic bool, options []Option) ([]BatchResult, error) {
	in := &kvpb.BatchRequest{Atomic: atomic, Operations: make([]*kvpb.Operation, len(operations))}
	whole := request{timeout: c.cfg.Timeout}
	for _, option := range options {
		option(&whole)
	}
	for i := range operations {
		r := request{Request: operations[i]}
		for _, option := range options {
			option(&r)
		}
		if r.refused != nil {
			return nil, r.refused
		}
		in.Operations[i] = operationOf(&r.Request)
	}
	ctx, cancel := context.WithTimeout(ctx, whole.timeout)
	defer cancel()
	if whole.ID.IsZero() && atomic && len(operations) > 0 {
		s := c.sessions[ring.PartitionOf(operations[0].Key, sessionCount)]
		n := s.begin()
		defer s.end(n)
		whole.ID = kv.OpID{Session: s.name, Sequence: n, Floor: min(s.floor.Load(), n), Required: true}
	}
	if !whole.ID.IsZero() {
		in.OperationId = &kvpb.OperationId{
			Session: whole.ID.Session, Sequence: whole.ID.Sequence, Floor: whole.ID.Floor, Required: whole.ID.Required,
		}
	}
	return c.tryBatch(ctx, in)
}

// tryBatch asks one endpoint after another until one answers or the deadline passes. An atomic batch has an id and may be
// sent again whatever became of it; any other only when certainly nothing of it was applied.
func (c *Client) tryBatch(ctx context.Context, in *kvpb.BatchRequest) ([]BatchResult, error) {
	unsure := false
	for attempt := 1; ; attempt++ {
		conn := c.conns[(c.first()+attempt-1)%len(c.conns)]
		deadline, _ := ctx.Deadline()
		in.TimeoutMs = uint32(max(time.Until(deadline).Milliseconds(), 1))
		out, err := kvpb.NewKVClient(conn.cc).Batch(ctx, in)
		if err == nil {
			return c.batchResults(in, out), nil
		}
		failed := writeErrorOf(err, conn.endpoint)
		unsure = unsure || failed.Outcome != kv.OutcomeNotApplied
		again := failed.Retryable && (!unsure || in.GetAtomic()) && attempt < attemptsMax
		pause := max(c.pacing.pause(attempt), failed.RetryAfter)
		if again && time.Until(deadline) > pause && sleep(ctx, pause) {
			continue
		}
		if unsure && failed.Code != kv.CodeVersionMismatch {
			failed.Outcome = kv.OutcomeUnknown
		}
		return nil, failed
	}
}

// writeErrorOf is errorOf for a call that writes: what the server did not say is not known.
func writeErrorOf(err error, endpoint string) *kv.Error {
	out := errorOf(err, endpoint)
	out.Outcome = kv.OutcomeUnknown
	for _, detail := range status.Convert(err).Details() {
		if e, ok := detail.(*kvpb.Error); ok {
			out.Outcome, out.CurrentVersion = outcomeOf(e.GetOutcome()), e.GetCurrentVersion()
		}
	}
	return out
}

func outcomeOf(o kvpb.Outcome) kv.Outcome {
	switch o {
	case kvpb.Outcome_OUTCOME_NOT_APPLIED:
		return kv.OutcomeNotApplied
	case kvpb.Outcome_OUTCOME_APPLIED:
		return kv.OutcomeApplied
	default:
		return kv.OutcomeUnknown
	}
}

func operationOf(r *kv.Request) *kvpb.Operation {
	op := &kvpb.Operation{
		Op: kvpb.Op(r.Op), Key: r.Key, Value: r.Value, Level: kvpb.Level(r.Level), Context: r.Context, Siblings: kvpb.SiblingMode(r.Siblings),
		TtlMs: uint64(r.TTL.Milliseconds()), Sloppy: r.Sloppy,
		MaxStalenessMs: uint32(r.MaxStaleness.Milliseconds()),
		N:              uint32(r.Quorum.N), R: uint32(r.Quorum.R), W: uint32(r.Quorum.W),
	}
	if r.Condition != (kv.Condition{}) {
		op.Condition = &kvpb.Condition{Kind: kvpb.ConditionKind(r.Condition.Kind), Version: r.Condition.Version}
	}
	return op
}

func (c *Client) batchResults(asked *kvpb.BatchRequest, in *kvpb.BatchResponse) []BatchResult {
	out := make([]BatchResult, len(in.GetResults()))
	for i, r := range in.GetResults() {
		out[i].Result = Result{
			Value: r.GetValue(), Found: r.GetFound(), Settled: r.GetSettled(), Level: kv.Level(r.GetLevel()), Outcome: outcomeOf(r.GetOutcome()),
			Acks: int(r.GetAcks()), Hinted: int(r.GetHinted()), Version: r.GetVersion(), Context: r.GetContext(), Timestamp: timeOf(r.GetTimestampMs()),
			Concurrent: int(r.GetConcurrent()), Coordinator: r.GetCoordinator(), Replicas: r.GetReplicas(),
			Staleness: time.Duration(r.GetStalenessBoundMs()) * time.Millisecond,
		}
		for _, s := range r.GetSiblings() {
			out[i].Siblings = append(out[i].Siblings, Sibling{
				Value: s.GetValue(), Deleted: s.GetDeleted(), Timestamp: timeOf(s.GetTimestampMs()), Node: s.GetNode(),
			})
		}
		if i < len(asked.GetOperations()) && asked.GetOperations()[i].GetOp() == kvpb.Op_OP_GET && !r.GetFound() && len(r.GetSiblings()) == 0 {
			out[i].Err = c.notFound
		}
		if e := r.GetError(); e != nil {
			failed := kv.Errorf(kv.Code(e.GetCode()), "%s", e.GetDetail()).WithOutcome(outcomeOf(e.GetOutcome()))
			failed.Retryable, failed.CurrentVersion, failed.Leader = e.GetRetryable(), e.GetCurrentVersion(), e.GetLeader()
			failed.Staleness = time.Duration(e.GetStalenessMs()) * time.Millisecond
			out[i].Err = failed
		}
	}
	return out
}
