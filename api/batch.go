package api

import (
	"bytes"
	"context"
	"net/http"

	"github.com/caprockdb/caprock/pkg/kv"
)

// itemOutcome is what became of one operation of a batch.
type itemOutcome struct {
	resp kv.Response
	err  *kv.Error
}

// batch runs operations on several keys, whose deadline is in ctx. An error is about all of them.
//
// Without atomic each is an operation of its own: those on one key run in their order, others at once. With atomic they
// are one write.
func (x *executor) batch(ctx context.Context, items []kv.Request, atomic bool, id kv.OpID) ([]itemOutcome, *kv.Error) {
	if err := checkBatch(items); err != nil {
		x.refuse(kv.LevelUnset, kv.OpBatch)
		return nil, err
	}
	if atomic {
		return x.atomicBatch(ctx, items, id)
	}
	if !id.IsZero() {
		x.refuse(kv.LevelUnset, kv.OpBatch)
		return nil, kv.Errorf(kv.CodeBadRequest, "an Idempotency-Key names one write: a batch has one with atomic=true only")
	}
	return x.executeEach(ctx, items), nil
}

func checkBatch(items []kv.Request) *kv.Error {
	if len(items) == 0 || len(items) > kv.BatchItemsMax {
		return kv.Errorf(kv.CodeBadRequest, "the batch has %d operations; it has 1 to %d", len(items), kv.BatchItemsMax)
	}
	total := 0
	for i := range items {
		total += len(items[i].Key) + len(items[i].Value)
	}
	if size := kv.BatchSize(len(items), total); size > kv.BatchBytesMax {
		return kv.Errorf(kv.CodeValueTooLarge, "the batch takes %d bytes; the limit is %d", size, kv.BatchBytesMax)
	}
	return nil
}

// atomicBatch runs the operations as one. Atomic batches are strong: a level that was not named is not left to a policy.
func (x *executor) atomicBatch(ctx context.Context, items []kv.Request, id kv.OpID) ([]itemOutcome, *kv.Error) {
	req := &kv.Request{Op: kv.OpBatch, Level: kv.LevelStrong, Key: items[0].Key, ID: id, Items: make([]kv.BatchItem, len(items))}
	for i := range items {
		r := &items[i]
		if r.Level != kv.LevelUnset && r.Level != kv.LevelStrong {
			x.refuse(r.Level, kv.OpBatch)
			return nil, kv.Errorf(kv.CodeBadRequest, "an atomic batch is applied at level strong, not at %s", r.Level)
		}
		if r.Fallback != kv.LevelUnset {
			x.refuse(r.Level, kv.OpBatch)
			return nil, kv.Errorf(kv.CodeBadRequest, "operation %d: an atomic batch is strong or nothing; it cannot fall back to %s", i, r.Fallback)
		}
		req.Items[i] = kv.BatchItem{Op: r.Op, Key: r.Key, Value: r.Value, Condition: r.Condition, TTL: r.TTL}
	}
	resp, err := x.execute(ctx, req)
	if err != nil {
		return nil, err
	}
	out := make([]itemOutcome, len(items))
	for i := range out {
		out[i].resp = resp
		out[i].resp.Items, out[i].resp.Found = nil, i < len(resp.Items) && resp.Items[i].Found
	}
	return out, nil
}

// batchBodyBytesMax is the longest body of a batch.
const batchBodyBytesMax = kv.BatchBytesMax*jsonOverheadFactor + kv.BatchItemsMax*256

// batch serves POST /batch.
func (x *exchange) batch() {
	items, id, p, err := x.parseBatch()
	if err != nil {
		x.h.exec.refuse(p.level, kv.OpBatch)
		x.fail(err)
		return
	}
	ctx, cancel := x.deadline(p.timeout)
	defer cancel()
	ops := make([]kv.Op, len(items))
	for i := range items {
		ops[i] = items[i].Op
	}
	outcomes, err := x.h.exec.batch(ctx, items, p.atomic, id)
	if err != nil {
		x.fail(err)
		return
	}
	status := http.StatusOK
	dst := append(x.body[:0], `{"results":[`...)
	for i := range outcomes {
		if i > 0 {
			dst = append(dst, ',')
		}
		var code int
		if dst, code = x.appendOutcome(dst, ops[i], items[i].Key, &outcomes[i]); code != http.StatusOK {
			status = http.StatusMultiStatus
		}
	}
	x.body = append(dst, "]}\n"...)
	x.w.Header()["Cache-Control"] = headerNoCache
	x.send(status, contentJSON)
}

// appendOutcome appends what the operation would be answered alone, with its status.
func (x *exchange) appendOutcome(dst []byte, op kv.Op, key []byte, o *itemOutcome) ([]byte, int) {
	start := len(dst)
	status := http.StatusOK
	switch {
	case o.err == nil && op == kv.OpGet && len(o.resp.Siblings) > 0:
		status = http.StatusMultipleChoices
		dst = append(append(dst, `{"status":300,`...), x.appendSiblings(nil, key, &o.resp)[1:]...)
	case o.err == nil && op == kv.OpGet && o.resp.Found:
		dst = append(append(dst, `{"status":200,`...), appendValue(nil, key, &o.resp)[1:]...)
	case o.err == nil && op.IsWrite():
		dst = append(append(dst, `{"status":200,`...), appendWritten(nil, op, key, &o.resp)[1:]...)
	default:
		err := o.err
		if err == nil {
			err = kv.Errorf(kv.CodeKeyNotFound, "the key does not exist")
		}
		status = StatusOf(err.Code)
		member := appendBytes([]byte{','}, "key", "key_encoding", key)
		dst = appendProblem(dst, status, x.id, err, member)
	}
	return append(dst[:start], bytes.TrimRight(dst[start:], "\n")...), status
}
