package node

import (
	"context"
	"fmt"

	"github.com/caprockdb/caprock/antientropy"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/quorum"
)

// repairer is this node's replica of the eventual lane as anti-entropy sees it: it waits for what quorum.Store reports.
type repairer struct{ n *Node }

var _ antientropy.Replica = repairer{}

// wait starts something and waits until it reports, or ctx is done.
func wait(ctx context.Context, start func(done func(error))) error {
	reported := make(chan error, 1)
	start(func(err error) { reported <- err })
	select {
	case err := <-reported:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Merge implements antientropy.Replica.
func (r repairer) Merge(
	ctx context.Context, p kv.PartitionID, epoch kv.Epoch, key []byte, set causal.SiblingSet, heals bool,
) error {
	if err := r.n.checkEpoch(p, epoch); err != nil {
		return err
	}
	w := quorum.WriteRequest{Partition: p, Epoch: epoch, Key: key, Set: set}
	write := r.n.eventual.Write
	if heals {
		write = r.n.eventual.Heal
	}
	return wait(ctx, func(done func(error)) { write(w, func(_ quorum.WriteReply, err error) { done(err) }) })
}

// Renounce implements antientropy.Replica.
func (r repairer) Renounce(ctx context.Context, p kv.PartitionID, key []byte, theirs causal.SiblingSet, upTo causal.HLC) error {
	return wait(ctx, func(done func(error)) { r.n.eventual.Renounce(p, key, theirs, upTo, done) })
}

// Rewrite implements antientropy.Replica.
func (r repairer) Rewrite(ctx context.Context, p kv.PartitionID, key []byte) error {
	return wait(ctx, func(done func(error)) { r.n.eventual.Rewrite(p, key, done) })
}

// Collect implements antientropy.Replica.
func (r repairer) Collect(ctx context.Context, p kv.PartitionID, key []byte, applied uint64) (gone bool, err error) {
	type result struct {
		gone bool
		err  error
	}
	reported := make(chan result, 1)
	r.n.eventual.Collect(p, key, applied, func(gone bool, err error) { reported <- result{gone, err} })
	select {
	case res := <-reported:
		if res.gone || res.err != nil {
			return res.gone, res.err
		}
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return false, r.n.settleDead(ctx, p, key)
}

// settleDead has the log take in a deletion, or a value that has expired, which stays only because it hides a live state of the strong
// lane. Once that state is a tombstone too, every replica may let go of its own row. Where versions are kept a write has to say what
// becomes of them.
func (n *Node) settleDead(ctx context.Context, p kv.PartitionID, key []byte) error {
	if n.strong.Leader(p.Group()) != n.id.Node || n.keepsSiblings(key) {
		return nil
	}
	s, found, err := n.engine.State().Strong(p.Group(), key)
	if err != nil || !found || s.Deleted {
		return err
	}
	st := n.machine.State()
	rt := route{request: &kv.Request{Op: kv.OpGet, Level: kv.LevelStrong, Key: key}, state: st, partition: p, owners: st.Map.Partitions[p].Replicas}
	_, err = n.settle(ctx, &rt, key, false)
	return err
}

// Flush implements antientropy.Replica.
func (r repairer) Flush(ctx context.Context, p kv.PartitionID) error {
	return r.n.eventual.Flush(ctx, p)
}

// composeExchange builds anti-entropy. The replica comes before it, and tells it of damage.
func (n *Node) composeExchange(deps Deps) (err error) {
	n.exchange, err = antientropy.New(n.cfg.AntiEntropy, antientropy.Deps{
		Self: n.id.Node, Engine: n.engine, Replica: repairer{n}, Peer: n.mux, Owned: n.ownedPartitions, Alive: n.alive,
		Now: n.clock.Now, Applied: n.appliedOf, Violated: func(rows int) { n.rowsDamaged.Add(uint64(rows)) },
		Hints: n.hints, Members: n.memberIDs,
		Rand: n.rand.fork(), Logger: n.log, Registerer: deps.Registerer,
	})
	return err
}

// firstEpoch is the epoch of the first map: before it no replica held anything.
const firstEpoch = 1

// keepPartitions has the disk remember which partitions it keeps, and heals those that were taken away underneath. What the map
// on the disk gives to this node is looked at before anybody is answered.
func (n *Node) keepPartitions(st *meta.State) error {
	for p := range st.Map.Partitions {
		p := kv.PartitionID(p)
		if !st.Map.Owns(p, n.id.Node) {
			continue
		}
		if err := n.engine.KeepSiblings(p, st.Map.Epoch == firstEpoch); err != nil {
			return fmt.Errorf("keep the eventual lane of partition %d: %w", p, err)
		}
		if n.engine.Healing(p) {
			n.log.Warn("this replica has lost rows of the eventual lane: it counts for nothing until it was compared with the others", "partition", p)
		}
	}
	return nil
}

// appliedOf returns how far the log of a partition is applied here.
func (n *Node) appliedOf(p kv.PartitionID) uint64 {
	st, _ := n.strong.Status(p.Group())
	return st.Applied
}

// damaged has a partition checked of which a row could not be read.
func (n *Node) damaged(p kv.PartitionID) {
	if s := n.exchange; s != nil {
		s.Suspect(p)
	}
}

// RepairDocument is the repair of a partition's eventual lane, in GET /admin/partitions.
type RepairDocument struct {
	// ExchangeAge is how long ago, in seconds, the replica was last compared with each of the others.
	ExchangeAge float64 `json:"exchange_age_seconds"`
	// Watermark is the time up to which everything is on every replica; empty before it was first set.
	Watermark string `json:"watermark,omitempty"`
	// State is ok, healing (rows were lost here and are asked back) or quarantined (damaged rows are being replaced).
	State string `json:"state"`
}

// repairOf describes the repair of a partition that this node holds a replica of.
func (n *Node) repairOf(p kv.PartitionID, owners []kv.NodeID) *RepairDocument {
	st := n.exchange.Status(p, owners)
	doc := &RepairDocument{ExchangeAge: st.ExchangeAge.Seconds(), State: "ok"}
	if st.Watermark != 0 {
		doc.Watermark = st.Watermark.Time().Format(timeFormat)
	}
	switch {
	case st.Quarantined:
		doc.State = "quarantined"
	case st.Healing:
		doc.State = "healing"
	}
	return doc
}

const timeFormat = "2006-01-02T15:04:05.000Z07:00"
