package node

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// coordinates reports whether this node coordinates the request, of level eventual or local.
func (n *Node) coordinates(rt *route) bool {
	_, sound := n.strong.Sound(rt.partition.Group())
	fast := rt.request.Op.IsWrite() && rt.request.Hops == 0 && n.clock.Lead() > n.cfg.Clock.MaxOffset &&
		n.pickOwner(rt.owners, 0) != kv.NoNode
	return sound && !fast && slices.Contains(rt.owners, n.id.Node)
}

// call is the request as the coordinator takes it.
func (n *Node) call(rt *route) quorum.Call {
	return quorum.Call{
		Request: rt.request, Partition: rt.partition, Epoch: rt.state.Map.Epoch, Owners: rt.owners,
		Quorum: rt.quorum, Resolver: rt.resolver, ResolverOf: rt.resolverOf, Repair: rt.repair,
		Fallbacks: func() []kv.NodeID { return n.stand.of(rt.state, rt.partition) },
	}
}

// errHops is the failure of a request that was forwarded too often.
func errHops(r *kv.Request) error {
	return kv.Errorf(kv.CodeQuorumUnavailable, "the request was forwarded %d times without reaching a replica of its key", r.Hops)
}

// errNoOwner is the failure of a request that nobody can coordinate.
func errNoOwner(rt *route) error {
	return kv.Errorf(kv.CodeQuorumUnavailable, "no replica of partition %d is alive", rt.partition)
}
