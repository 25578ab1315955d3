package node

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// settleWorkersMax bounds the keys of a listing that are settled at once.
const settleWorkersMax = 32

// besides is what a strong listing has to know beside the strong lane's state.
type besides struct {
	// items are the keys under resolvers that keep versions, as a strong read would find them; gone those that it would not find.
	items []kv.ListItem
	gone  [][]byte
	// bound is the last key of which it is known that nothing is missing; nil for all of them.
	bound []byte
}

// settleRange settles the keys of a listing's page of which a majority holds unsettled versions. When it returns, the state here
// has everything that was acknowledged before, up to the bound.
func (n *Node) settleRange(ctx context.Context, rt *route) (besides, error) {
	q := rt.request.List
	ask := quorum.ScanRequest{
		Partition: rt.partition, Epoch: rt.state.Map.Epoch, Prefix: q.Prefix, After: q.After, Limit: min(q.Limit, kv.ListItemsMax) + 1,
	}
	parts, err := n.scanMajority(ctx, rt, ask)
	if err != nil {
		return besides{}, err
	}
	var out besides
	var keys [][]byte
	for _, part := range parts {
		for i := range part.Rows {
			if len(part.Rows[i].Set.Siblings) > 0 || part.Rows[i].Set.Pruned > 0 {
				keys = append(keys, part.Rows[i].Key)
			}
		}
		if part.More {
			if last := part.Rows[len(part.Rows)-1].Key; out.bound == nil || bytes.Compare(last, out.bound) < 0 {
				out.bound = last
			}
		}
	}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	if out.bound != nil {
		keys = slices.DeleteFunc(keys, func(key []byte) bool { return bytes.Compare(key, out.bound) > 0 })
	}
	return out, n.settleAll(ctx, rt, keys, &out)
}

// settleAll settles the keys, several at once.
func (n *Node) settleAll(ctx context.Context, rt *route, keys [][]byte, out *besides) error {
	var mu sync.Mutex // guards out and failed
	var failed error
	var all sync.WaitGroup
	slots := make(chan struct{}, settleWorkersMax)
	for _, key := range keys {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			one := *rt
			r := kv.Request{Op: kv.OpGet, Level: kv.LevelStrong, Key: key}
			one.request = &r
			st, err := n.settle(ctx, &one, key, false)
			var res kv.Response
			if err == nil && st.beside != nil {
				res, err = n.strongBeside(one, &st)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				failed = err
			case st.beside == nil:
			case !res.Found:
				out.gone = append(out.gone, key)
			default:
				item := kv.ListItem{Key: key, Value: res.Value, Version: res.Version, Timestamp: res.Timestamp, Siblings: res.Siblings}
				if rt.request.List.KeysOnly {
					item.Value, item.Siblings = nil, nil
				}
				out.items = append(out.items, item)
			}
		})
	}
	all.Wait()
	return failed
}

// scanMajority returns what a majority of the voters holds of the keys that are asked for.
func (n *Node) scanMajority(ctx context.Context, rt *route, ask quorum.ScanRequest) ([]quorum.ScanReply, error) {
	type answer struct {
		reply quorum.ScanReply
		err   error
	}
	voters := n.votersOf(rt)
	answers := make(chan answer, len(voters))
	ctx, cancel := context.WithTimeout(ctx, peekTimeout)
	defer cancel()
	for _, id := range voters {
		scan := func() {
			var a answer
			if id == n.id.Node {
				a.reply, a.err = n.eventual.Scan(ask)
			} else {
				a.reply, a.err = n.mux.Scan(ctx, id, ask)
			}
			answers <- a
		}
		if !n.spawn(scan) {
			return nil, kv.Errorf(kv.CodeNotReady, "node %s is stopping", n.cfg.Name)
		}
	}
	required := kv.Majority(len(voters))
	var parts []quorum.ScanReply
	var cause error
	for failed := 0; len(parts) < required; {
		select {
		case a := <-answers:
			if a.err == nil && a.reply.Healing {
				a.err = kv.Errorf(kv.CodeNotReady, "a replica of partition %d has lost rows and is being repaired", rt.partition)
			}
			if a.err == nil {
				parts = append(parts, a.reply)
				continue
			}
			cause = a.err
			if failed++; failed > len(voters)-required {
				return nil, unsaid(required, len(parts), cause)
			}
		case <-ctx.Done():
			return nil, unsaid(required, len(parts), ctx.Err())
		}
	}
	return parts, nil
}

// into adds what was found beside the state to a page of it, and ends the page where it is known to be complete. When nothing is left of
// a page that is not the last it returns that end; nil otherwise.
func (b *besides) into(res *kv.Response, limit int) (end []byte) {
	replaced := func(key []byte) bool {
		return slices.ContainsFunc(b.items, func(x kv.ListItem) bool { return bytes.Equal(x.Key, key) }) ||
			slices.ContainsFunc(b.gone, func(x []byte) bool { return bytes.Equal(x, key) })
	}
	page := res.Listed
	end = b.bound
	if res.More && len(page) > 0 {
		if last := page[len(page)-1].Key; end == nil || bytes.Compare(last, end) < 0 {
			end = last
		}
	}
	if len(b.items)+len(b.gone) > 0 {
		page = slices.DeleteFunc(page, func(x kv.ListItem) bool { return replaced(x.Key) })
		for _, x := range b.items {
			if end == nil || bytes.Compare(x.Key, end) <= 0 {
				page = append(page, x)
			}
		}
		slices.SortFunc(page, func(x, y kv.ListItem) int { return bytes.Compare(x.Key, y.Key) })
	}
	if b.bound != nil {
		page = slices.DeleteFunc(page, func(x kv.ListItem) bool { return bytes.Compare(x.Key, b.bound) > 0 })
		res.More = true
	}
	if len(page) > limit {
		page, res.More = page[:limit], true
	}
	res.Listed = page
	if len(page) > 0 || !res.More {
		return nil
	}
	return end
}
