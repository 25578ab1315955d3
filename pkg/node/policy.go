package node

import (
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/quorum"
)

// withTTL returns the request with the times to live that the policies of its keys have for puts that come without one. It
// changes a copy: the caller may offer the request again, when other policies may be in force.
func withTTL(st *meta.State, r *kv.Request, ttl time.Duration) *kv.Request {
	switch {
	case r.Op == kv.OpPut && r.TTL == 0 && ttl != 0:
		c := *r
		c.TTL = ttl
		return &c
	case r.Op != kv.OpBatch || !st.HasTTL():
		return r
	}
	c := *r
	c.Items = append([]kv.BatchItem(nil), r.Items...)
	for i := range c.Items {
		item := &c.Items[i]
		if p, _ := st.PolicyFor(item.Key); item.Op == kv.OpPut && item.TTL == 0 {
			item.TTL = p.TTL
		}
	}
	return &c
}

// admit refuses a request of a level that the policies of its keys do not allow. What became of an operation may always be asked.
// What depends on when each node learns of a policy is up to the fences (lanes.go).
func admit(st *meta.State, p *kv.Policy, r *kv.Request) error {
	if r.Op == kv.OpInquire {
		return nil
	}
	if r.Op != kv.OpBatch {
		key := r.Key
		if r.Op == kv.OpList && r.List != nil {
			key = r.List.Prefix
		}
		return admitKey(st, p, key, r)
	}
	for i := range r.Items {
		of, _ := st.PolicyFor(r.Items[i].Key)
		if err := admitKey(st, &of, r.Items[i].Key, r); err != nil {
			return err
		}
	}
	return nil
}

// async reports whether the policy in force on this node has eventual writes of the key acknowledged before the disk has synced them.
func (n *Node) async(key []byte) bool {
	p, _ := n.machine.State().PolicyFor(key)
	return p.Async()
}

// repairMode returns what the policy of a key says about read repair.
func repairMode(p *kv.Policy) quorum.RepairMode {
	switch p.ReadRepair {
	case kv.RepairBlocking:
		return quorum.RepairBlocking
	case kv.RepairOff:
		return quorum.RepairOff
	default:
		return quorum.RepairBackground
	}
}

// planEventual works out what the levels eventual and local need to know of the key's policy.
func (n *Node) planEventual(rt *route, policy *kv.Policy) (err error) {
	rt.resolvers, rt.repair = n.resolvers, repairMode(policy)
	if rt.resolver, err = n.resolvers.Resolver(policy.Resolver, policy.Expr); err != nil {
		return kv.Errorf(kv.CodeInternal, "the key's policy cannot be honoured by this node: %w", err)
	}
	want := rt.request.Quorum
	if rt.request.Level == kv.LevelLocal {
		want = kv.Quorum{N: len(rt.owners), R: 1, W: 1}
	}
	defaults, err := policy.Quorum.Resolve(n.cfg.Quorum, len(rt.owners))
	if err != nil {
		return err
	}
	rt.quorum, err = want.Resolve(defaults, len(rt.owners))
	return err
}
