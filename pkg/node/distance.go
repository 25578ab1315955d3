package node

import (
	"cmp"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// How far a node is.
const (
	sameZone = iota
	sameDC
	elsewhere
)

// distance returns how far the member is from this node, by what both have declared. Zones of different datacentres
// are different zones, whatever their names.
func (n *Node) distance(id kv.NodeID) int {
	m, ok := n.machine.State().Member(id)
	switch {
	case !ok || m.DC != n.cfg.DC:
		return elsewhere
	case m.Zone != n.cfg.Zone:
		return sameDC
	default:
		return sameZone
	}
}

// nearestFirst returns the owners in the order of their distance, and by preference where that is equal.
func (n *Node) nearestFirst(owners []kv.NodeID) []kv.NodeID {
	out := slices.Clone(owners)
	slices.SortStableFunc(out, func(a, b kv.NodeID) int { return cmp.Compare(n.distance(a), n.distance(b)) })
	return out
}
