package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// turnOperations is how many operations in a row a client sends to one node. A node that does not answer loses its turn
// at once, so that a fault costs each client one timeout and not one in two operations.
const turnOperations = 8

// target is a verify.Target that spreads each client's operations over all nodes. It has one Go client for each node, which
// knows only that node: it can repeat what never left, but never take a write to a second node.
type target struct {
	clients []*client.Client
	// turns holds where each client of the workload is. Only that client touches its element: it makes one operation at a time.
	turns []turn
}

type turn struct{ node, made int }

// newTarget returns a target for the nodes' gRPC addresses.
func newTarget(addresses []string, clients int) (*target, error) {
	t := &target{turns: make([]turn, clients)}
	for _, address := range addresses {
		cfg := client.DefaultConfig([]string{address})
		cfg.Timeout = operationTimeout
		// A node that is back should be found soon.
		cfg.ConnectTimeout, cfg.BackoffMax = operationTimeout, 200*time.Millisecond
		c, err := client.New(cfg, client.Deps{})
		if err != nil {
			return nil, errors.Join(err, t.close())
		}
		t.clients = append(t.clients, c)
	}
	for i := range t.turns {
		t.turns[i].node = i % len(t.clients)
	}
	return t, nil
}

// Do implements verify.Target.
func (t *target) Do(ctx context.Context, from int, r *kv.Request) (kv.Response, error) {
	at := &t.turns[from]
	res, err := t.at(ctx, at.node, r)
	at.after(err, len(t.clients))
	return res, err
}

// after decides who is asked next.
func (t *turn) after(err error, nodes int) {
	t.made++
	if t.made < turnOperations && !silent(err) {
		return
	}
	*t = turn{node: (t.node + 1) % nodes}
}

// silent reports whether the error says that the node is of no use at present. A condition that missed, or a key that is not
// there, is an answer.
func silent(err error) bool {
	return err != nil && kv.CodeOf(err) != kv.CodeKeyNotFound && kv.CodeOf(err) != kv.CodeVersionMismatch
}

// at sends the request to one node.
func (t *target) at(ctx context.Context, node int, r *kv.Request) (kv.Response, error) {
	c := t.clients[node]
	switch r.Op {
	case kv.OpList:
		page, err := c.List(ctx, *r.List)
		return kv.Response{Found: true, Listed: page.Items, More: page.More}, err
	case kv.OpBatch:
		return atomicBatch(ctx, c, r)
	default:
		result, err := c.Do(ctx, *r)
		return response(&result), err
	}
}

// atomicBatch sends an atomic batch.
func atomicBatch(ctx context.Context, c *client.Client, r *kv.Request) (kv.Response, error) {
	operations := make([]kv.Request, len(r.Items))
	for i := range r.Items {
		it := &r.Items[i]
		operations[i] = kv.Request{Op: it.Op, Key: it.Key, Value: it.Value, Condition: it.Condition, TTL: it.TTL}
	}
	results, err := c.AtomicBatch(ctx, operations)
	if err != nil {
		return kv.Response{}, err
	}
	var out kv.Response
	for i := range results {
		if results[i].Err != nil {
			return kv.Response{}, results[i].Err
		}
		out.Version, out.Outcome = results[i].Version, results[i].Outcome
		out.Items = append(out.Items, kv.ItemResult{Found: results[i].Found})
	}
	return out, nil
}

// response turns the Go client's result into the node's answer. Which nodes answered is of no interest here, and the
// client knows them by name only.
func response(r *client.Result) kv.Response {
	out := kv.Response{
		Found: r.Found, Settled: r.Settled, Level: r.Level, Outcome: r.Outcome, Acks: r.Acks, Version: r.Version,
		Value: r.Value, Context: r.Context, Timestamp: r.Timestamp, Concurrent: r.Concurrent,
		Staleness: r.Staleness,
	}
	for _, s := range r.Siblings {
		out.Siblings = append(out.Siblings, kv.Sibling{Value: s.Value, Deleted: s.Deleted, Timestamp: s.Timestamp})
	}
	return out
}

func (t *target) close() error {
	var errs []error
	for _, c := range t.clients {
		if err := c.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close a client: %w", err))
		}
	}
	return errors.Join(errs...)
}
