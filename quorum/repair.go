package quorum

import (
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// RepairMode says what a read does about replicas that it finds behind.
type RepairMode uint8

// The modes. The zero value is the default of policies.
const (
	// RepairBackground sends them what they lack once the read is answered.
	RepairBackground RepairMode = iota
	// RepairBlocking answers only once R replicas hold what is answered, so that no later read of as many, where R is a
	// majority, goes back behind it.
	RepairBlocking
	// RepairOff leaves them to anti-entropy.
	RepairOff
)

// repair is what one replica was found to lack.
type repair struct {
	node kv.NodeID
	set  causal.SiblingSet
}

// lacking returns the replicas whose answer lacks something of what all of them hold together. What the strong lane
// has taken in is no part of it: the log brings that to every replica. Nor is how far their sets were pruned, as each says
// that of what it holds itself.
func lacking(all []heard, merged *versions, keeps bool) []repair {
	var out []repair
	for i := range all {
		if !merged.surviving(all[i].reply.Set, keeps).SameVersions(merged.set) {
			out = append(out, repair{all[i].node, merged.set})
		}
	}
	return out
}

// late takes an answer that came after the request's and returns who is behind now: the replica itself, or those that
// answered before it. o.mu must be held.
func (o *readOp) late(h heard) []repair {
	if o.call.Repair == RepairOff {
		return nil
	}
	keeps := o.call.Resolver.KeepsSiblings()
	before := o.merged.set
	o.merged.add(&h.reply)
	o.merged.set = o.merged.surviving(o.merged.set, keeps)
	behind := lacking([]heard{h}, &o.merged, keeps)
	if !o.merged.surviving(before, keeps).SameVersions(o.merged.set) {
		// Those that were behind before were sent the old merge; all of them lack what came now.
		behind = append(behind, lacking(o.heard, &o.merged, keeps)...)
	}
	o.heard = append(o.heard, h)
	return behind
}

// sendRepairs sends the replicas what they lack. Nobody waits for it and a failure changes no answer; when too many
// repairs are under way, this one is left to a later read or to anti-entropy.
func (c *Coordinator) sendRepairs(call *Call, behind []repair) {
	for _, b := range behind {
		if c.repairing.Add(1) > int64(c.cfg.RepairsMax) {
			c.repairing.Add(-1)
			c.metrics.repairsDropped.Inc()
			continue
		}
		c.sendRepair(call, b)
	}
}

func (c *Coordinator) sendRepair(call *Call, b repair) {
	if !c.calls.begin(b.node) {
		c.repairing.Add(-1)
		c.metrics.callsDropped.Inc()
		return
	}
	c.metrics.repairs.Inc()
	if mutant.Planted == mutant.RepairWritesNothing {
		b.set = causal.SiblingSet{}
	}
	c.writeRepair(call, b, func(err error) {
		c.repairing.Add(-1)
		if err != nil {
			c.deps.Logger.Debug("a read repair failed", "node", uint64(b.node), "partition", uint16(call.Partition), "error", err)
		}
	})
}

// writeRepair makes the call of a repair, which calls.begin has counted.
func (c *Coordinator) writeRepair(call *Call, b repair, done func(error)) {
	w := WriteRequest{Partition: call.Partition, Epoch: call.Epoch, Key: call.Request.Key, Set: b.set}
	ended := func(_ WriteReply, err error) {
		c.calls.end(b.node)
		done(err)
	}
	if b.node == c.deps.Self {
		c.deps.Store.Write(w, ended)
		return
	}
	now := time.Now()
	c.deps.Replicas.Write(callContext{Context: c.life, deadline: now.Add(c.cfg.ReplicaTimeout), made: now}, b.node, w, ended)
}
