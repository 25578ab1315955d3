package api

import (
	"context"
	"time"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// List implements the unary listing.
func (g *GRPC) List(ctx context.Context, in *kvpb.ListRequest) (*kvpb.ListResponse, error) {
	var op kvwire.Operation
	failure := g.decode(&kvpb.Operation{Op: kvpb.Op_OP_GET, Level: in.GetLevel(), TimeoutMs: in.GetTimeoutMs(), MaxStalenessMs: in.GetMaxStalenessMs()}, &op)
	if failure == nil && len(in.ProtoReflect().GetUnknown()) > 0 {
		failure = kv.Errorf(kv.CodeBadRequest, "a field of the listing is not known to this node")
	}
	if failure != nil {
		g.exec.refuse(op.Request.Level, kv.OpList)
		return nil, statusOf(failure)
	}
	query := &kv.ListQuery{Prefix: in.GetPrefix(), After: in.GetAfter(), Limit: int(in.GetLimit()), KeysOnly: in.GetKeysOnly()}
	if query.Limit == 0 {
		query.Limit = kv.ListItemsDefault
	}
	ctx, cancel := context.WithTimeout(ctx, op.Timeout)
	defer cancel()
	resp, failure := g.exec.execute(ctx, &kv.Request{Op: kv.OpList, Level: op.Request.Level, MaxStaleness: op.Request.MaxStaleness, List: query})
	if failure != nil {
		g.note(failure)
		return nil, statusOf(failure)
	}
	out := &kvpb.ListResponse{More: resp.More, StalenessBoundMs: uint32(min(resp.StalenessMillis(), 1<<31)), Items: make([]*kvpb.ListItem, len(resp.Listed))}
	for i := range resp.Listed {
		item := &resp.Listed[i]
		item.Value = lastWritten(item)
		out.Items[i] = &kvpb.ListItem{Key: item.Key, Value: item.Value, Version: item.Version, TimestampMs: item.Timestamp.UnixMilli()}
	}
	return out, nil
}

// lastWritten returns the item's value. The message has no place for concurrent versions, so that it shows the last one
// written, as a read with siblings=resolve does.
func lastWritten(item *kv.ListItem) []byte {
	value := item.Value
	var last time.Time
	for i := range item.Siblings {
		if s := &item.Siblings[i]; !s.Deleted && !s.Timestamp.Before(last) {
			value, last = s.Value, s.Timestamp
		}
	}
	return value
}
