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
// stays in the writer's context, and the next coordinator that holds it drops it. A state of the strong lane the log brings: it is
// waited for as long, and what was not applied by then is not replaced.
func (c *Coordinator) catchUp(ctx context.Context, call *Call, seen *causal.Seen) {
	if !c.deps.Store.lacks(call.Partition, call.Request.Key, seen) {
		return
	}
	c.metrics.catchUps.Inc()
	answers := make(chan ReadReply, len(call.Owners)) // nobody blocks who answers after the wait is over
	until, asked := c.callContext(ctx), 0
	for _, node := range call.Owners {
		if len(seen.Dots) > 0 && node != c.deps.Self && c.deps.Alive(node) {
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
	poll := time.NewTicker(lagPoll)
	defer poll.Stop()
	for asked > 0 || c.deps.Store.applies(call.Partition) < seen.Vector.Log() {
		select {
		case <-poll.C:
		case r := <-answers:
			asked--
			if r.Set.IsZero() {
				continue
			}
			w := WriteRequest{Partition: call.Partition, Epoch: call.Epoch, Key: call.Request.Key, Set: r.Set}
			// The write that follows rests on the merge, durable or not, as any write does on what came before it; if that fails it
			// fails too.
			c.deps.Store.Write(w, func(WriteReply, error) {})
			if !c.deps.Store.lacks(call.Partition, call.Request.Key, seen) {
				return
			}
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// applies returns how far this replica has applied the log.
func (s *Store) applies(p kv.PartitionID) uint64 { return s.deps.Applied(p.Group()) }

// lacks reports whether this replica has not seen one of the dots, or the state of the strong lane. What is from before the repair
// watermark has been seen by all.
func (s *Store) lacks(p kv.PartitionID, key []byte, seen *causal.Seen) bool {
	if s.applies(p) < seen.Vector.Log() {
		return true
	}
	if len(seen.Dots) == 0 {
		return false
	}
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
	for _, d := range seen.Dots {
		if d.Time > mark && !set.Covers(d) {
			return true
		}
	}
	return false
}
