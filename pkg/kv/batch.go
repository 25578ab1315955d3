package kv

import (
	"fmt"
	"time"
)

// Limits of a batch (design.md §12).
const (
	BatchItemsMax = 1000
	// BatchBytesMax bounds keys and values together, where each item takes batchItemBytes more and the batch batchBytes.
	BatchBytesMax = 4 << 20

	batchItemBytes = 32
	batchBytes     = 512
)

// BatchItem is one write of an atomic batch.
type BatchItem struct {
	Op         Op // OpPut or OpDelete
	Key, Value []byte
	Condition  Condition
	TTL        time.Duration // as Request.TTL
}

// ItemResult answers a BatchItem of a batch that was applied. Its version is that of the whole batch.
type ItemResult struct {
	// Found says whether the key existed before. An unconditional put does not look, and says false.
	Found bool
}

// BatchSize is what the items take of BatchBytesMax.
func BatchSize(items int, keysAndValues int) int {
	return batchBytes + items*batchItemBytes + keysAndValues
}

// validateBatch checks an atomic batch.
func (r *Request) validateBatch(l Limits) error {
	if len(r.Items) == 0 || len(r.Items) > BatchItemsMax {
		return Errorf(CodeBadRequest, "the batch has %d operations; it has 1 to %d", len(r.Items), BatchItemsMax)
	}
	bytes := 0
	seen := make(map[string]bool, len(r.Items))
	for i := range r.Items {
		item := &r.Items[i]
		if !item.Op.IsWrite() || item.Op == OpBatch {
			return Errorf(CodeBadRequest, "operation %d is a %s; an atomic batch holds puts and deletes", i, item.Op)
		}
		one := Request{Op: item.Op, Level: r.Level, Key: item.Key, Value: item.Value, Condition: item.Condition, TTL: item.TTL}
		if err := one.Validate(l); err != nil {
			e := *AsError(err)
			e.Detail = fmt.Sprintf("operation %d: %s", i, e.Detail)
			return &e
		}
		if seen[string(item.Key)] {
			return Errorf(CodeBadRequest, "operation %d: the key is in the batch twice", i)
		}
		seen[string(item.Key)] = true
		bytes += len(item.Key) + len(item.Value)
	}
	if size := BatchSize(len(r.Items), bytes); size > BatchBytesMax {
		return Errorf(CodeValueTooLarge, "the batch takes %d bytes; the limit is %d", size, BatchBytesMax)
	}
	return nil
}
