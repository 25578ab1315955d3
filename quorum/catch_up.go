package quorum

import (
	"context"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// A writer may come to a coordinator that has not seen yet what the writer has seen: its own last write, say, made through
// another replica a moment ago. Placed there and then, the new version would stand beside the one that it replaces, since
// neither set's context covers the other's dot. So the coordinator asks the others first.

// catchUp brings this replica up to what the writer had seen of the key, as far as the others answer soon. What is not found
// stays in the writer's context, and the next coordinator that holds it drops it.
func (c *Coordinator) catchUp(ctx context.Context, call *Call, dots []causal.Dot) {
	if !c.deps.Store.lacks(call.Partition, call.Request.Key, dots) {
		return
	}
	c.metrics.catchUps.Inc()
	answers := make(chan ReadReply, len(call.Owners)) // nobody blocks who answers after the wait is over
	until, asked := c.callContext(ctx), 0
	for _, node := range call.Owners {
		if node != c.deps.Self && c.deps.Alive(node) {
			asked++
			c.askReplica(until, node, call.readRequest(), func(_ kv.NodeID, r ReadReply, err error) {
				if err != nil {
					r = ReadReply{}
				}
				answers <- r
			})
		}
	}
	timer := time.NewTimer(c.hedgeDelay(call.Owners))
	defer timer.Stop()
	for range asked {
		select {
		case r := <-answers:
			if r.Set.IsZero() {
				continue
			}
			w := WriteRequest{Partition: call.Partition, Epoch: call.Epoch, Key: call.Request.Key, Set: r.Set}
			// The write that follows rests on the merge, durable or not, as any write does on what came before it; if that fails it
			// fails too.
			c.deps.Store.Write(w, func(WriteReply, error) {})
			if !c.deps.Store.lacks(call.Partition, call.Request.Key, dots) {
				return
			}
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// lacks reports whether this replica has not seen one of the dots. One from before the repair watermark has been seen by all.
func (s *Store) lacks(p kv.PartitionID, key []byte, dots []causal.Dot) bool {
	e, known := s.pending.enter(p, key)
	defer s.close(e)
	var set causal.SiblingSet
	if !known {
		var err error
		if set, _, err = s.deps.State.Siblings(p, key); err != nil {
			return false // the write will meet the same failure and say so
		}
	}
	e.stripe.mu.Lock()
	set = e.load(set)
	e.stripe.mu.Unlock()
	mark := s.deps.State.Repair(p).Committed
	for _, d := range dots {
		if d.Time > mark && !set.Covers(d) {
			return true
		}
	}
	return false
}
