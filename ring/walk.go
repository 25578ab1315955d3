package ring

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// point is one virtual node: a place on the ring of 64-bit hashes, and the node it stands for.
type point struct {
	hash uint64
	node int
}

// pointsPerNodeMax bounds the ring's memory. Weights are kept by the shares, not by the number of points, so a heavy
// node that runs into the bound still gets what it should.
const pointsPerNodeMax = 1 << 12

// makePoints gives each node vnodes points a unit of weight.
func makePoints(ids []kv.NodeID, weight []int, vnodes int) []point {
	var out []point
	var buf [12]byte
	for i, id := range ids {
		binary.BigEndian.PutUint64(buf[:8], uint64(id))
		for v := range min(vnodes*weight[i], pointsPerNodeMax) {
			binary.BigEndian.PutUint32(buf[8:], uint32(v))
			out = append(out, point{hash: xxhash.Sum64(buf[:]), node: i})
		}
	}
	slices.SortFunc(out, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.node, b.node))
	})
	return out
}

// Walk returns for each partition all nodes in the order in which they are met going round the ring from its token: its
// owners come first only as far as zones and loads allow. It is where a node's stand-ins are looked for.
func Walk(nodes []Node, cfg Config) ([][]kv.NodeID, error) {
	l, err := newLayout(nodes, cfg)
	if err != nil {
		return nil, err
	}
	out := make([][]kv.NodeID, cfg.Partitions)
	for p := range out {
		for _, n := range l.walk(p) {
			out[p] = append(out[p], l.ids[n])
		}
	}
	return out, nil
}

// walk returns all nodes in the order in which they are met going round the ring from the partition's token.
func (l *layout) walk(p int) []int {
	token := tokenOf(p, l.q)
	start, _ := slices.BinarySearchFunc(l.points, token, func(pt point, t uint64) int { return cmp.Compare(pt.hash, t) })
	met := make([]bool, len(l.ids))
	out := make([]int, 0, len(l.ids))
	for i := 0; len(out) < len(l.ids); i++ {
		n := l.points[(start+i)%len(l.points)].node
		if !met[n] {
			met[n] = true
			out = append(out, n)
		}
	}
	return out
}
