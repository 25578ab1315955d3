package verify

import (
	"context"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Target takes a client's request to a node of the cluster. It returns once it has an answer or ctx is done. An error is,
// or wraps, a *kv.Error; one that nobody classified leaves a write unknown, so a node that cannot even be asked
// should be a kv.Errorf(kv.CodeNotReady, …), whose outcome is not_applied. A read of an absent key is answered with Found
// false or fails with kv.CodeKeyNotFound, as the target likes. Called by all clients at once.
type Target interface {
	Do(ctx context.Context, client int, r *kv.Request) (kv.Response, error)
}

// TargetFunc is a function that is a Target.
type TargetFunc func(ctx context.Context, client int, r *kv.Request) (kv.Response, error)

// Do calls the function.
func (f TargetFunc) Do(ctx context.Context, client int, r *kv.Request) (kv.Response, error) {
	return f(ctx, client, r)
}

// Task is a request to be made, with what a history has to know about it and the request does not say.
type Task struct {
	Request kv.Request
	// Covers and MayCover tell what the request's context had read: see Op.
	Covers, MayCover []string
	// Final marks a read made after the run.
	Final bool
}

// Record makes the task's request as the client and records it. The response is the target's; it is zero when the
// operation failed.
func Record(ctx context.Context, h *History, t Target, client int, task Task) (Op, kv.Response) {
	r := task.Request
	key := r.Key
	if r.Op == kv.OpList {
		key = r.List.Prefix
	}
	id := h.Call(Op{
		Client: client, Kind: r.Op, Level: r.Level, Quorum: r.Quorum, Key: text(key), Value: text(r.Value),
		Condition: r.Condition, TTL: r.TTL, MaxStaleness: r.MaxStaleness, Items: itemsOf(&r), Covers: slices.Clone(task.Covers), MayCover: slices.Clone(task.MayCover), Final: task.Final,
	})
	res, err := t.Do(ctx, client, &r)
	op := h.Return(id, func(op *Op) { classify(op, &res, err) })
	if err != nil {
		res = kv.Response{}
	}
	return op, res
}

// classify fills in what the answer says.
func classify(op *Op, res *kv.Response, err error) {
	if err != nil {
		classifyError(op, kv.AsError(err))
		op.Staleness = res.Staleness // a key that does not exist is an error of the Go client's, and an answer
		return
	}
	op.Outcome = OutcomeOK
	if op.IsWrite() && res.Outcome == kv.OutcomeUnknown {
		op.Outcome = OutcomeUnknown
		return
	}
	// A write that is answered without an error has been acknowledged, whatever else the answer says.
	op.Version, op.Found, op.Staleness = res.Version, res.Found, res.Staleness
	op.answered(res)
	if op.Kind != kv.OpGet {
		return
	}
	op.Result = text(res.Value)
	for _, s := range res.Siblings {
		op.Siblings = append(op.Siblings, Seen{Value: text(s.Value), Deleted: s.Deleted})
	}
}

// itemsOf returns the writes of a batch.
func itemsOf(r *kv.Request) []Item {
	var out []Item
	for i := range r.Items {
		it := &r.Items[i]
		out = append(out, Item{Kind: it.Op, Key: text(it.Key), Value: text(it.Value), Condition: it.Condition, TTL: it.TTL})
	}
	return out
}

// answered fills in what the answer says about several keys.
func (o *Op) answered(res *kv.Response) {
	if o.Kind == kv.OpBatch {
		// The items of a history that was handed out do not change any more.
		o.Items = slices.Clone(o.Items)
		for i := range o.Items {
			o.Items[i].Found = i < len(res.Items) && res.Items[i].Found
		}
	}
	if o.Kind == kv.OpList {
		for i := range res.Listed {
			row := &res.Listed[i]
			o.Listed = append(o.Listed, Row{Key: text(row.Key), Value: text(row.Value), Version: row.Version})
		}
	}
}

func classifyError(op *Op, e *kv.Error) {
	op.Code, op.Detail = e.Code, e.Detail
	switch {
	case op.Kind == kv.OpGet && e.Code == kv.CodeKeyNotFound:
		op.Outcome = OutcomeOK
	case op.IsRead():
		op.Outcome = OutcomeFail
	case e.Outcome != kv.OutcomeNotApplied:
		op.Outcome = OutcomeUnknown
	case e.Code == kv.CodeVersionMismatch:
		op.Outcome, op.Missed, op.Version = OutcomeOK, true, e.CurrentVersion
	default:
		op.Outcome = OutcomeFail
	}
}

// text makes a string that JSON can hold out of what a cluster answered, which a broken one may have made of anything.
func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return "(not text) " + strconv.Quote(string(b))
}
