package antientropy

import (
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// progress is how far the repair of a partition has come in this life of the node.
type progress struct {
	// began is when the partition was first looked at.
	began time.Time
	// compared is when the last whole exchange with each other owner began.
	compared map[kv.NodeID]time.Time
	healing  healing
	// mending is how many are taking hashes of lost rows away.
	mending int
	// collected is the watermark behind which everything was collected.
	collected causal.HLC
	scrubbed  time.Time
}

// of returns the partition's progress. s.mu must be held.
func (s *Service) of(p kv.PartitionID) *progress {
	g := s.partitions[p]
	if g == nil {
		g = &progress{began: time.Now(), compared: map[kv.NodeID]time.Time{}}
		s.partitions[p] = g
	}
	return g
}

// note notes a whole exchange that began at the time.
func (s *Service) note(x *exchange, began time.Time) {
	s.catchUp(x.o.Partition, x.peer)
	own := s.deps.Engine.State().Repair(x.o.Partition)
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.of(x.o.Partition)
	g.compared[x.to] = began
	if g.healing.losses == x.losses && g.healing.union == x.union {
		g.healing.met(x.to, x.peer.healthy, x.peer.committed >= own.Committed)
	}
}

// Status is the repair of one partition as this node sees it.
type Status struct {
	// ExchangeAge is the time since the partition was last compared with each of its other owners, or since this node looks.
	ExchangeAge time.Duration
	// Watermark is the repair watermark.
	Watermark causal.HLC
	// Healing says that rows were lost here and not all other replicas were asked yet.
	Healing bool
	// Quarantined says that damaged rows are being replaced, so that the replica does not answer.
	Quarantined bool
}

// Status returns the repair of the partition with these owners.
func (s *Service) Status(p kv.PartitionID, owners []kv.NodeID) Status {
	r := s.deps.Engine.State().Repair(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.of(p)
	oldest := time.Now()
	for _, id := range owners {
		if id == s.deps.Self {
			continue
		}
		at, ok := g.compared[id]
		if !ok {
			at = g.began
		}
		if at.Before(oldest) {
			oldest = at
		}
	}
	return Status{ExchangeAge: time.Since(oldest), Watermark: r.Committed, Healing: r.Healing, Quarantined: r.Quarantined}
}
