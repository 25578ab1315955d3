package ring

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Node is a node that partitions can be placed on.
type Node struct {
	ID kv.NodeID `json:"id"`
	// Zone and DC are failure domains; a zone belongs to the data center it is named with. Empty is a zone like any
	// other, so a cluster that names none has one zone.
	Zone string `json:"zone,omitempty"`
	DC   string `json:"dc,omitempty"`
	// Weight is the node's size relative to others, 1 to WeightMax; 0 means 1.
	Weight int `json:"weight,omitempty"`
}

// rebalanceSlack is how many replicas a node may be short of its share before data is moved to it.
const rebalanceSlack = 1

// Limits of a placement.
const (
	WeightMax = 256
	// VnodesMax bounds the memory and time of a placement; more points than this change nothing that can be measured.
	VnodesMax = 4096
)

// Config is what a placement is computed for.
type Config struct {
	// Partitions is Q, 1 to PartitionsMax, fixed for the life of the cluster. Default 16. Each is a Raft group: more
	// spread better over many nodes and cost CPU on few.
	Partitions int
	// Replicas is N, at least 1 and at most the number of nodes. Default 3.
	Replicas int
	// Vnodes is the number of points that a node of weight 1 has on the hash ring, 1 to VnodesMax. Default 64. With
	// fewer the partitions of a lost node fall to fewer others.
	Vnodes int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Partitions: 16, Replicas: 3, Vnodes: 64} }

// Validate reports the first value that makes no sense.
func (c Config) Validate() error {
	switch {
	case c.Partitions < 1 || c.Partitions > PartitionsMax:
		return fmt.Errorf("ring: partitions=%d is out of range: 1 to %d", c.Partitions, PartitionsMax)
	case c.Replicas < 1:
		return fmt.Errorf("ring: n=%d is out of range: at least 1", c.Replicas)
	case c.Vnodes < 1 || c.Vnodes > VnodesMax:
		return fmt.Errorf("ring: vnodes=%d is out of range: 1 to %d", c.Vnodes, VnodesMax)
	}
	return nil
}

// Place computes the first map of a cluster, at epoch 1. Partitions walk the ring for owners; then replicas are
// exchanged until every node is within one of its share.
func Place(nodes []Node, cfg Config) (Map, error) {
	l, err := newLayout(nodes, cfg)
	if err != nil {
		return Map{}, err
	}
	a := newAssignment(l)
	for p := range a.held {
		if err := a.fill(p, l.ceil); err != nil {
			return Map{}, err
		}
	}
	a.relieve(l.ceil)
	a.feed(0)
	a.balanceLeaders()
	return a.toMap(1), nil
}

// Rebalance computes the map that follows prev now that the nodes are these, at the next epoch, and moves as few
// replicas as the invariants of the package allow. Replicas of nodes that are no longer listed move to others.
func Rebalance(prev Map, nodes []Node, cfg Config) (Map, error) {
	l, err := newLayout(nodes, cfg)
	if err != nil {
		return Map{}, err
	}
	if err := prev.Validate(); err != nil {
		return Map{}, err
	}
	if len(prev.Partitions) != cfg.Partitions {
		return Map{}, fmt.Errorf("ring: the map has %d partitions and the configuration %d; the number cannot change",
			len(prev.Partitions), cfg.Partitions)
	}
	a := newAssignment(l)
	a.adopt(prev)
	for p := range a.held {
		// Replicas go first where they are missed most, and beyond a node's share only when nothing else is left.
		if err := a.fill(p, l.floor, l.ceil, l.limit); err != nil {
			return Map{}, err
		}
	}
	a.relieve(l.limit)
	a.feed(rebalanceSlack)
	a.balanceLeaders()
	return a.toMap(prev.Epoch + 1), nil
}

// layout is the input of a placement in the form that the algorithms want: nodes, zones and data centers as small
// integers, and what each may hold.
type layout struct {
	q, n   int
	ids    []kv.NodeID
	weight []int
	zoneOf []int
	dcOf   []int // by zone

	// A partition has lo to hi replicas in a zone or data center: as even a spread as their nodes permit. hi exceeds lo
	// by at most one.
	zone, dc []span

	// floor and ceil enclose each node's share; limit is one above ceil and is never exceeded.
	floor, ceil, limit loads

	points []point
}

// loads is a number of replicas by node.
type loads []int

// span is a closed interval of replica counts.
type span struct{ lo, hi int }

func (s span) clamp(v int) int { return min(max(v, s.lo), s.hi) }

func newLayout(nodes []Node, cfg Config) (*layout, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(nodes) < cfg.Replicas {
		return nil, fmt.Errorf("ring: n=%d needs at least as many nodes; there are %d", cfg.Replicas, len(nodes))
	}
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	l := &layout{q: cfg.Partitions, n: cfg.Replicas}
	for i, n := range nodes {
		switch {
		case n.ID == kv.NoNode:
			return nil, fmt.Errorf("ring: a node has no id")
		case i > 0 && nodes[i-1].ID == n.ID:
			return nil, fmt.Errorf("ring: node %d is listed twice", n.ID)
		case n.Weight < 0 || n.Weight > WeightMax:
			return nil, fmt.Errorf("ring: weight %d of node %d is out of range: 1 to %d", n.Weight, n.ID, WeightMax)
		}
		l.ids = append(l.ids, n.ID)
		l.weight = append(l.weight, max(n.Weight, 1))
	}
	l.setDomains(nodes)
	l.setSpans()
	l.setShares()
	l.points = makePoints(l.ids, l.weight, cfg.Vnodes)
	return l, nil
}

// setDomains numbers zones and data centers in the order of their names, so that the order in which nodes are listed
// does not matter.
func (l *layout) setDomains(nodes []Node) {
	type place struct{ dc, zone string }
	var zones []place
	var dcs []string
	for _, n := range nodes {
		zones = append(zones, place{n.DC, n.Zone})
		dcs = append(dcs, n.DC)
	}
	slices.SortFunc(zones, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.dc, b.dc), cmp.Compare(a.zone, b.zone))
	})
	zones = slices.Compact(zones)
	slices.Sort(dcs)
	dcs = slices.Compact(dcs)
	for _, z := range zones {
		l.dcOf = append(l.dcOf, slices.Index(dcs, z.dc))
	}
	for _, n := range nodes {
		l.zoneOf = append(l.zoneOf, slices.Index(zones, place{n.DC, n.Zone}))
	}
	l.zone = make([]span, len(zones))
	l.dc = make([]span, len(dcs))
}

// setSpans spreads the replicas of a partition over zones first and then, as far as that leaves a choice, over data
// centers.
func (l *layout) setSpans() {
	for _, z := range l.zoneOf {
		l.zone[z].hi++
	}
	spread(l.zone, l.n)
	for z, d := range l.dcOf {
		l.dc[d].lo += l.zone[z].lo
		l.dc[d].hi += l.zone[z].hi
	}
	spread(l.dc, l.n)
}

// spread narrows spans to the most even split of total. What one can take beyond the even level goes to some of those
// that have room; which ones is left open.
func spread(spans []span, total int) {
	sum := func(level int) int {
		t := 0
		for _, s := range spans {
			t += s.clamp(level)
		}
		return t
	}
	level := 0
	for level < total && sum(level+1) <= total {
		level++
	}
	exact := sum(level) == total
	for i, s := range spans {
		spans[i].lo = s.clamp(level)
		spans[i].hi = s.clamp(level)
		if !exact {
			spans[i].hi = s.clamp(level + 1)
		}
	}
}

// setShares divides the replicas of all partitions by weight: among data centers, within each among its zones, within
// each among its nodes, at each step within the spans. Whatever loads between floor and ceil these shares give, an
// assignment that has them exists, because the constraints nest: it is an integral flow.
func (l *layout) setShares() {
	zoneWeight := make([]float64, len(l.zone))
	dcWeight := make([]float64, len(l.dc))
	for i, w := range l.weight {
		zoneWeight[l.zoneOf[i]] += float64(w)
		dcWeight[l.dcOf[l.zoneOf[i]]] += float64(w)
	}
	dcShare := divide(float64(l.n), dcWeight, l.dc)
	zoneShare := divideNested(dcShare, zoneWeight, l.zone, l.dcOf)
	nodeWeight := make([]float64, len(l.weight))
	nodeSpan := make([]span, len(l.weight))
	for i, w := range l.weight {
		nodeWeight[i] = float64(w)
		nodeSpan[i] = span{0, 1}
	}
	for _, share := range divideNested(zoneShare, nodeWeight, nodeSpan, l.zoneOf) {
		low, high := roundShare(share * float64(l.q))
		l.floor = append(l.floor, low)
		l.ceil = append(l.ceil, high)
		l.limit = append(l.limit, min(high+1, l.q))
	}
}
