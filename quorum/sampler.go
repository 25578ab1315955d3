package quorum

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// sampler picks a share of the requests. It takes no lock, and its picks follow no rhythm that requests could have too.
type sampler struct {
	// limit is the share of 2^64 below which a number is picked.
	limit uint64
	seed  uint64
	count atomic.Uint64
}

func newSampler(share float64, seed uint64) *sampler {
	s := &sampler{seed: seed, limit: math.MaxUint64}
	if share < 1 {
		s.limit = uint64(share * (1 << 63) * 2)
	}
	return s
}

// take reports whether the next request is one of the share.
func (s *sampler) take() bool {
	if s.limit == 0 {
		return false
	}
	// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
	z := s.seed + s.count.Add(1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z^z>>31 <= s.limit
}

const (
	// latencyStep is the latency below which replicas count as equally fast: what a busy node adds by chance should not
	// decide who is asked, or all coordinators would ask the same one.
	latencyStep = 2 * time.Millisecond
	// latencyShift makes a new measurement count for an eighth.
	latencyShift = 3
)

// latencies are how long replicas took to answer reads lately. It has an entry for each node ever asked.
type latencies struct {
	nodes atomic.Pointer[map[kv.NodeID]*atomic.Int64]
}

func newLatencies() *latencies {
	l := &latencies{}
	l.nodes.Store(&map[kv.NodeID]*atomic.Int64{})
	return l
}

func (l *latencies) of(node kv.NodeID) *atomic.Int64 {
	for {
		old := l.nodes.Load()
		if v := (*old)[node]; v != nil {
			return v
		}
		next := make(map[kv.NodeID]*atomic.Int64, len(*old)+1)
		for k, v := range *old {
			next[k] = v
		}
		next[node] = &atomic.Int64{}
		l.nodes.CompareAndSwap(old, &next)
	}
}

// observe notes how long the node took. Measurements that come at the same moment may overwrite one another.
func (l *latencies) observe(node kv.NodeID, took time.Duration) {
	v := l.of(node)
	old := v.Load()
	v.Store(old + (int64(took)-old)>>latencyShift)
}

// class returns how slow the node is: 0 below latencyStep, one more with each doubling.
func (l *latencies) class(node kv.NodeID) int {
	return bits.Len64(uint64(max(l.of(node).Load(), 0)) / uint64(latencyStep))
}
