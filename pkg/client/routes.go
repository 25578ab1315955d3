package client

import (
	"strconv"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/metadata"

	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// partitionsMax bounds what an endpoint can make the client allocate.
const partitionsMax = 1 << 16

// unrouted is a partition whose node is not known.
const unrouted = -1

// routes remembers which endpoint works on a partition, so that operations go straight there: a hop from the node that was
// asked to the one that does the work costs the cluster more than the work. It asks nobody. A stream's header names the
// node at its other end, and each result names the node that worked on it. What is remembered is a hint: a node that does
// not lead any more hands the operation on, and its result says to whom.
type routes struct {
	table atomic.Pointer[routeTable]

	mu sync.Mutex // guards changes of the table
}

// routeTable is replaced when an endpoint turns out to be another node; its entries change in place.
type routeTable struct {
	// partitions is 0 while no endpoint has told.
	partitions int
	endpoints  map[string]int // by the node's name
	// strong and eventual hold the index of an endpoint, or unrouted, by partition.
	strong, eventual []atomic.Int32
}

func newRoutes() *routes {
	r := &routes{}
	r.table.Store(&routeTable{endpoints: map[string]int{}})
	return r
}

// learn notes what a stream's header says about the endpoint's node.
func (r *routes) learn(index int, header metadata.MD) {
	name := first(header, kvwire.HeaderNode)
	partitions, err := strconv.Atoi(first(header, kvwire.HeaderPartitions))
	if name == "" || err != nil || partitions < 1 || partitions > partitionsMax {
		return // an older node, or one that has no map yet: it is used in its turn
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.table.Load()
	if known, ok := old.endpoints[name]; ok && known == index && old.partitions == partitions {
		return
	}
	t := &routeTable{
		partitions: partitions, endpoints: map[string]int{},
		strong: make([]atomic.Int32, partitions), eventual: make([]atomic.Int32, partitions),
	}
	for n, i := range old.endpoints {
		if i != index {
			t.endpoints[n] = i
		}
	}
	t.endpoints[name] = index
	for p := range partitions {
		t.strong[p].Store(unrouted)
		t.eventual[p].Store(unrouted)
	}
	r.table.Store(t)
}

func first(header metadata.MD, key string) string {
	if values := header.Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// endpoint returns the index of the endpoint that the operation should go to, unrouted when it is not known.
func (r *routes) endpoint(req *kv.Request) int {
	t := r.table.Load()
	if t.partitions == 0 {
		return unrouted
	}
	p := ring.PartitionOf(req.Key, t.partitions)
	switch req.Level {
	case kv.LevelStrong, kv.LevelUnset:
		return int(t.strong[p].Load())
	default:
		return int(t.eventual[p].Load())
	}
}

// failed forgets that the endpoint works on the request's partition, if that is what is remembered. A node that is cut off
// from its peers still takes requests, and answers none: whoever went on asking it would fail for as long as that lasts.
func (r *routes) failed(index int, req *kv.Request) {
	t := r.table.Load()
	if t.partitions == 0 {
		return
	}
	p := ring.PartitionOf(req.Key, t.partitions)
	t.strong[p].CompareAndSwap(int32(index), unrouted)
	t.eventual[p].CompareAndSwap(int32(index), unrouted)
}

// blames reports whether a failure is one of the endpoint, which another one may not have.
func blames(err *kv.Error, lost bool) bool {
	switch err.Code {
	case kv.CodeNoLeader, kv.CodeNotReady, kv.CodeQuorumUnavailable, kv.CodeDeadlineExceeded:
		return true
	default:
		return lost
	}
}

// answered notes who worked on an operation that was sent to the endpoint. Of eventual operations it remembers only those
// that were handed on: an endpoint that is a replica itself is as good as any other, and they should take turns.
func (r *routes) answered(index int, key []byte, result *kvwire.Result) {
	t := r.table.Load()
	slots, name := t.strong, result.Coordinator
	if result.Level == kv.LevelStrong && len(result.Replicas) > 0 {
		name = result.Replicas[0] // the leader; a follower that answers a read names it first
	}
	by, known := t.endpoints[name]
	if !known || t.partitions == 0 {
		return
	}
	if result.Level != kv.LevelStrong {
		if by == index {
			return
		}
		slots = t.eventual
	}
	if at := &slots[ring.PartitionOf(key, t.partitions)]; at.Load() != int32(by) {
		at.Store(int32(by))
	}
}
