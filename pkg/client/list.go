package client

import (
	"context"
	"iter"
	"time"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// ListResult is a page of keys, in the order of their bytes.
type ListResult struct {
	Items []kv.ListItem
	// More says that others follow the last of Items.
	More bool
	// Staleness is Result.Staleness, of the stalest partition.
	Staleness time.Duration
}

// List returns a page of the keys that begin with query.Prefix and come after query.After. What it shows of each partition is
// what the level says, linearizable at level strong; all of them together are no snapshot. A limit of 0 means kv.ListItemsDefault.
func (c *Client) List(ctx context.Context, query kv.ListQuery, options ...Option) (ListResult, error) {
	r := request{timeout: c.cfg.Timeout}
	for _, option := range options {
		option(&r)
	}
	if r.refused != nil {
		return ListResult{}, r.refused
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	in := &kvpb.ListRequest{
		Prefix: query.Prefix, After: query.After, Limit: uint32(max(query.Limit, 0)), KeysOnly: query.KeysOnly, Level: kvpb.Level(r.Level),
		MaxStalenessMs: uint32(r.MaxStaleness.Milliseconds()),
	}
	for attempt := 1; ; attempt++ {
		conn := c.conns[(c.first()+attempt-1)%len(c.conns)]
		deadline, _ := ctx.Deadline()
		in.TimeoutMs = uint32(max(time.Until(deadline).Milliseconds(), 1))
		out, err := kvpb.NewKVClient(conn.cc).List(ctx, in)
		if err == nil {
			return listResult(out), nil
		}
		failed := errorOf(err, conn.endpoint)
		pause := max(c.pacing.pause(attempt), failed.RetryAfter)
		if !failed.Retryable || attempt >= attemptsMax || time.Until(deadline) <= pause || !sleep(ctx, pause) {
			return ListResult{}, failed
		}
	}
}

// Keys goes through all keys that begin with the prefix, page by page, in the order of their bytes. It ends with the first
// error, if there is one.
func (c *Client) Keys(ctx context.Context, prefix string, options ...Option) iter.Seq2[kv.ListItem, error] {
	return func(yield func(kv.ListItem, error) bool) {
		query := kv.ListQuery{Prefix: []byte(prefix), Limit: kv.ListItemsMax}
		for {
			page, err := c.List(ctx, query, options...)
			if err != nil {
				yield(kv.ListItem{}, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if !page.More || len(page.Items) == 0 {
				return
			}
			query.After = page.Items[len(page.Items)-1].Key
		}
	}
}

func listResult(in *kvpb.ListResponse) ListResult {
	out := ListResult{More: in.GetMore(), Staleness: time.Duration(in.GetStalenessBoundMs()) * time.Millisecond, Items: make([]kv.ListItem, len(in.GetItems()))}
	for i, item := range in.GetItems() {
		out.Items[i] = kv.ListItem{
			Key: item.GetKey(), Value: item.GetValue(), Version: item.GetVersion(), Timestamp: timeOf(item.GetTimestampMs()),
		}
	}
	return out
}
