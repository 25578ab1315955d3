package node

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
	"github.com/caprockdb/caprock/ring"
)

const (
	// listWorkersMax bounds the partitions that one listing asks at once.
	listWorkersMax = 16
	// listExpiredMax bounds how often a partition's part is read again because values in it had expired.
	listExpiredMax = 8
)

// list asks every partition for its part of the page and merges them. Each part is what its level says, all of them
// together are no snapshot. Keys whose prefix has a whole {tag} lie in one partition, which is then the only one that is asked.
func (n *Node) list(ctx context.Context, st *meta.State, r *kv.Request) (kv.Response, error) {
	if ring.HasTag(r.List.Prefix) {
		return n.listOne(ctx, r, st.Map.PartitionOf(r.List.Prefix))
	}
	parts := make([]kv.Response, len(st.Map.Partitions))
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	slots := make(chan struct{}, listWorkersMax)
	for p := range parts {
		slots <- struct{}{}
		wg.Go(func() {
			parts[p], errs[p] = n.listOne(ctx, r, kv.PartitionID(p))
			<-slots
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return kv.Response{}, err
		}
	}
	res := kv.Response{Found: true, Settled: r.Level == kv.LevelStrong, Level: r.Level, Coordinator: n.id.Node}
	res.Listed, res.More = mergeLists(parts, r.List.Limit)
	for _, part := range parts {
		res.Staleness = max(res.Staleness, part.Staleness)
		for _, id := range part.Replicas {
			if !slices.Contains(res.Replicas, id) {
				res.Replicas = append(res.Replicas, id)
			}
		}
	}
	return res, nil
}

// listOne asks one partition.
func (n *Node) listOne(ctx context.Context, r *kv.Request, p kv.PartitionID) (kv.Response, error) {
	one, query := *r, *r.List
	query.Single, query.Partition = true, p
	one.List = &query
	rt, err := n.plan(&one)
	if err != nil {
		return kv.Response{}, err
	}
	if r.Level == kv.LevelStrong {
		return n.routeStrong(ctx, rt)
	}
	if r.Level == kv.LevelBounded {
		return n.routeBounded(ctx, rt)
	}
	return n.routeEventual(ctx, rt)
}

// resolverOf returns the resolver of a key that a listing found, by the policy of that key.
func (rt *route) resolverOf(key []byte) quorum.Resolver {
	policy, _ := rt.state.PolicyFor(key)
	r, err := rt.resolvers.Resolver(policy.Resolver, policy.Expr)
	if err != nil {
		return nil
	}
	return r
}

// mergeLists merges parts, each in the order of its keys, into one page. What a part that has more would go on with is
// not known, so that the page ends where the first such part does.
func mergeLists(parts []kv.Response, limit int) (page []kv.ListItem, more bool) {
	var bound []byte
	for i := range parts {
		page = append(page, parts[i].Listed...)
		if !parts[i].More || len(parts[i].Listed) == 0 {
			continue
		}
		more = true
		if last := parts[i].Listed[len(parts[i].Listed)-1].Key; bound == nil || bytes.Compare(last, bound) < 0 {
			bound = last
		}
	}
	slices.SortFunc(page, func(a, b kv.ListItem) int { return bytes.Compare(a.Key, b.Key) })
	size := 0
	for i := range page {
		size += page[i].Bytes()
		if i == limit || i > 0 && size > kv.ListBytesMax || bound != nil && bytes.Compare(page[i].Key, bound) > 0 {
			return page[:i], true
		}
	}
	return page, more
}

// listHere answers for one partition, which this node leads as far as it knows.
func (n *Node) listHere(ctx context.Context, rt route) (kv.Response, error) {
	g := rt.partition.Group()
	sound, _ := n.strong.Sound(g)
	epoch, closed := n.machine.State().ClosedRange(rt.request.List.Prefix)
	peeked, err := n.strong.Peek(ctx, g, false)
	if err != nil {
		return kv.Response{}, err
	}
	if after, still := n.machine.State().ClosedRange(rt.request.List.Prefix); closed && still && after == epoch {
		peeked.Clean = true
	}
	r, query := *rt.request, *rt.request.List
	r.List = &query
	rt.request = &r
	for {
		res, next, err := n.listPage(ctx, &rt, peeked, sound)
		if err != nil || next == nil {
			return res, err
		}
		query.After = next
	}
}

// listPage is a part of a page, of a partition whose leadership was confirmed. When nothing is in it, and more may come, it returns the key
// after which to go on: a part that is empty says that there is nothing more.
func (n *Node) listPage(ctx context.Context, rt *route, peeked consensus.Peeked, sound uint64) (res kv.Response, next []byte, err error) {
	g := rt.partition.Group()
	var beside besides
	if !peeked.Clean {
		if beside, err = n.settleRange(ctx, rt); err != nil {
			return kv.Response{}, nil, err
		}
	}
	res = kv.Response{
		Found: true, Settled: true, Level: kv.LevelStrong, Acks: kv.Majority(len(rt.owners)), Coordinator: n.id.Node,
		Replicas: n.strongReplicas(*rt),
	}
	for range listExpiredMax {
		var expired []consensus.Expiring
		if res.Listed, res.More, expired, err = n.scan(g, rt.request.List); err != nil {
			return kv.Response{}, nil, n.vouch(g, sound, err)
		}
		if len(expired) == 0 {
			if err := n.vouch(g, sound, nil); err != nil {
				return kv.Response{}, nil, err
			}
			next = beside.into(&res, rt.request.List.Limit)
			return res, next, nil
		}
		// As for a single key: the log has to say that they are gone.
		if err := n.strong.Expire(ctx, g, expired); err != nil {
			return kv.Response{}, nil, kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
	}
	return kv.Response{}, nil, kv.Errorf(kv.CodeNoLeader, "values of partition %d expire faster than they can be listed", rt.partition)
}

// scan reads a partition's part of a page from one view of the storage.
func (n *Node) scan(g kv.GroupID, q *kv.ListQuery) (items []kv.ListItem, more bool, expired []consensus.Expiring, err error) {
	now, err := n.clock.Now()
	if err != nil {
		return nil, false, nil, err
	}
	from := q.Prefix
	if bytes.Compare(q.After, from) >= 0 {
		from = append(bytes.Clone(q.After), 0) // the next key in the order of bytes
	}
	size := 0
	err = n.engine.State().ScanStrong(g, from, func(key []byte, s storage.Strong) (bool, error) {
		switch {
		case !bytes.HasPrefix(key, q.Prefix):
			return false, nil
		case s.Deleted:
			return true, nil
		case consensus.Expired(s, now):
			expired = append(expired, consensus.Expiring{At: s.Expiry, Key: key})
			return len(expired) < consensus.ExpireMax, nil
		}
		item := kv.ListItem{Key: key, Version: s.Revision, Timestamp: s.Stamp.Time.Time()}
		if !q.KeysOnly {
			item.Value = s.Value
		}
		size += len(item.Key) + len(item.Value)
		if len(items) == q.Limit || len(items) > 0 && size > kv.ListBytesMax {
			more = true
			return false, nil
		}
		items = append(items, item)
		return true, nil
	})
	return items, more, expired, err
}
