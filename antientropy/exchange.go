package antientropy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// errBehind is returned when a peer could not merge all that it was sent.
var errBehind = errors.New("antientropy: the peer could not merge all")

// nodesMax is how many nodes an exchange works on at once: it bounds its memory.
const nodesMax = 128

// exchange makes one partition equal on this node and a peer. What it has carried over when it is broken off is equal from
// then on, so that the next one goes on where this one ended.
type exchange struct {
	*Service
	o      Owned
	to     kv.NodeID
	salted uint64
	// scanned is the time that this node's own reading took.
	scanned time.Duration
	// keys is the number of those that differed; sent and received are how many sets went to the peer, and came back.
	keys, sent, received int
	// carried are bytes that have not been paced yet.
	carried int
	// lagging is the first error of a merge, which does not end the exchange.
	lagging error
	// peer is the peer's standing, healthy only if it was in each answer.
	peer standing
	// losses is how often rows had been lost here when the exchange began; union that it takes what is from before the
	// watermark also from a replica that heals.
	losses uint64
	union  bool
}

func (s *Service) newExchange(o Owned, to kv.NodeID) *exchange {
	x := &exchange{Service: s, o: o, to: to, salted: s.salt(), losses: s.deps.Engine.Losses(o.Partition)}
	x.union = s.healingBy(o.Partition, x.losses).union
	return x
}

// run compares and repairs. Only nil says that everything that both held when it was called is on both.
func (x *exchange) run(ctx context.Context) error {
	nodes, err := x.nodes(ctx)
	for len(nodes) > 0 && err == nil {
		n := min(len(nodes), nodesMax)
		n, err = x.repair(ctx, nodes[:n])
		nodes = nodes[n:]
		if err == nil {
			err = x.pace(ctx)
		}
	}
	return errors.Join(err, x.lagging)
}

func (x *exchange) request(kind byte) []byte {
	return header{kind, x.o.Partition, x.o.Epoch, x.standing(x.o.Partition)}.append(nil)
}

func (x *exchange) ask(ctx context.Context, payload []byte) ([]byte, error) {
	reply, err := x.Service.ask(ctx, x.to, payload)
	x.carried += len(payload) + len(reply)
	return reply, err
}

// pace waits as long as what was carried may take.
func (x *exchange) pace(ctx context.Context) error {
	pause := time.Duration(float64(x.carried) / float64(x.cfg.RateBytes) * float64(time.Second))
	x.carried = 0
	return sleep(ctx, pause)
}

// nodes returns the nodes of the tree that differ.
func (x *exchange) nodes(ctx context.Context) ([]int, error) {
	began := time.Now()
	own, err := x.digests(ctx, x.o.Partition)
	x.scanned += time.Since(began)
	if err != nil {
		return nil, err
	}
	reply, err := x.ask(ctx, appendSums(x.request(askRoot), []uint64{rootDigest(own)}))
	if err != nil {
		return nil, err
	}
	if x.peer, reply, err = decodeStanding(reply); err != nil || len(reply) == 0 {
		return nil, err
	}
	theirs, err := decodeSums(reply, groups)
	if err != nil {
		return nil, err
	}
	which := differing(groupDigests(own), theirs)
	if which == 0 {
		return nil, nil // they were written to meanwhile
	}
	reply, err = x.ask(ctx, appendSums(x.request(askNodes), []uint64{x.salted, uint64(which)}))
	if err != nil {
		return nil, err
	}
	halves, err := decodeHalves(reply, which.count()*fanOut)
	if err != nil {
		return nil, err
	}
	var out []int
	for g := range groups {
		if !which.has(g) {
			continue
		}
		nodes := differing(nodeDigests(own, g, x.salted), halves[:fanOut])
		halves = halves[fanOut:]
		for i := range fanOut {
			if nodes.has(i) {
				out = append(out, g*fanOut+i)
			}
		}
	}
	return out, nil
}

// nodeDiff is a node under comparison.
type nodeDiff struct {
	node  int
	ours  []row
	parts bitmap
}

// repair compares the rows of some nodes and carries over what differs. It returns how many it dealt with.
func (x *exchange) repair(ctx context.Context, nodes []int) (int, error) {
	reply, err := x.ask(ctx, appendNodes(appendSums(x.request(askRows), []uint64{x.salted}), nodes))
	if err != nil {
		return 0, err
	}
	var send [][]byte
	var want []wanted
	var cut []nodeDiff
	r, done := reader{b: reply}, 0
	for ; done < len(nodes) && len(r.b) > 0; done++ {
		theirs := r.nodeRows()
		if r.err != nil {
			return 0, r.err
		}
		ours, err := x.read(nodes[done])
		if err != nil {
			return 0, err
		}
		if theirs.parts != nil {
			cut = append(cut, nodeDiff{nodes[done], ours, differing(partSums(ours, x.salted), theirs.parts)})
			continue
		}
		keys, ids := diffRows(ours, ^bitmap(0), theirs.marks)
		send = append(send, keys...)
		if len(ids) > 0 {
			want = append(want, wanted{nodes[done], ids})
		}
	}
	if done == 0 || len(r.b) > 0 {
		return 0, fmt.Errorf("%w: answer of %d bytes for %d nodes", ErrPayload, len(reply), len(nodes))
	}
	for len(cut) > 0 {
		n, err := x.compareParts(ctx, cut, &send, &want)
		if err != nil {
			return 0, err
		}
		cut = cut[n:]
	}
	x.keys += len(send)
	for _, w := range want {
		x.keys += len(w.ids)
	}
	if err := x.send(ctx, send); err != nil {
		return 0, err
	}
	return done, x.fetch(ctx, want)
}

func (x *exchange) read(node int) ([]row, error) {
	began := time.Now()
	defer func() { x.scanned += time.Since(began) }()
	return x.rows(x.o.Partition, node, x.salted)
}

// compareParts compares the parts of nodes that differ, and returns of how many nodes it did.
func (x *exchange) compareParts(ctx context.Context, cut []nodeDiff, send *[][]byte, want *[]wanted) (int, error) {
	request := appendSums(x.request(askParts), []uint64{x.salted})
	for _, c := range cut {
		request = binary.BigEndian.AppendUint16(request, uint16(c.node))
		request = binary.BigEndian.AppendUint64(request, uint64(c.parts))
	}
	reply, err := x.ask(ctx, request)
	if err != nil {
		return 0, err
	}
	r, done := reader{b: reply}, 0
	for ; done < len(cut) && len(r.b) > 0; done++ {
		marks := r.marks()
		if r.err != nil {
			return 0, r.err
		}
		keys, ids := diffRows(cut[done].ours, cut[done].parts, marks)
		*send = append(*send, keys...)
		if len(ids) > 0 {
			*want = append(*want, wanted{cut[done].node, ids})
		}
	}
	if done == 0 || len(r.b) > 0 {
		return 0, fmt.Errorf("%w: answer of %d bytes for the parts of %d nodes", ErrPayload, len(reply), len(cut))
	}
	return done, nil
}

// send sends this node's sets of the keys to the peer and merges what comes back, chunk by chunk.
func (x *exchange) send(ctx context.Context, keys [][]byte) error {
	for len(keys) > 0 {
		request := x.request(askMerge)
		var sets []keySet
		for len(sets) < len(keys) && (len(sets) == 0 || len(request) < x.cfg.ChunkBytesMax) {
			key := keys[len(sets)]
			set, _, err := x.deps.Engine.State().Siblings(x.o.Partition, key)
			if err != nil {
				return x.unread(x.o.Partition, err)
			}
			sets = append(sets, keySet{key: key, set: set})
			request = sets[len(sets)-1].append(request)
		}
		reply, err := x.ask(ctx, request)
		if err != nil {
			return err
		}
		m, err := decodeMerged(reply, len(sets))
		if err != nil {
			return err
		}
		if m.taken == 0 {
			return fmt.Errorf("%w: no set was merged", ErrPayload)
		}
		if err := x.merge(ctx, m); err != nil {
			return err
		}
		x.sent += m.taken
		keys = keys[m.taken:]
		if err := x.pace(ctx); err != nil {
			return err
		}
	}
	return nil
}

// merge merges what the peer sent. A replica that heals also gives up what the peer has been without since before the
// peer's watermark.
func (x *exchange) merge(ctx context.Context, m merged) error {
	m.from.healthy = m.from.healthy && x.peer.healthy
	x.peer = m.from
	x.received += len(m.sets)
	own := x.deps.Engine.State().Repair(x.o.Partition)
	err := x.mergeAll(ctx, x.o, x.union && own.Healing || m.from.healthy && m.from.committed >= own.Committed, m.sets)
	if err == nil && m.from.healthy && own.Healing {
		err = x.forAll(len(m.sets), func(i int) error {
			return x.deps.Replica.Renounce(ctx, x.o.Partition, m.sets[i].key, m.sets[i].set, m.from.committed)
		})
	}
	if err == nil && m.behind {
		err = errBehind
	}
	if err != nil && x.lagging == nil {
		x.lagging = fmt.Errorf("antientropy: a set could not be merged: %w", err)
	}
	return ctx.Err()
}

// fetch asks the peer for sets that this node has nothing of, and merges them.
func (x *exchange) fetch(ctx context.Context, want []wanted) error {
	for len(want) > 0 {
		request := appendSums(x.request(askSets), []uint64{x.salted})
		for _, w := range want {
			request = w.append(request)
		}
		reply, err := x.ask(ctx, request)
		if err != nil {
			return err
		}
		m, err := decodeMerged(reply, len(want))
		if err != nil {
			return err
		}
		if err := x.merge(ctx, m); err != nil {
			return err
		}
		if err := x.pace(ctx); err != nil {
			return err
		}
		want = want[m.taken:]
		if len(want) == 0 {
			return nil
		}
		// Of the node in which the answer ended, what came need not come again.
		got := map[uint32]bool{}
		for _, k := range m.sets {
			got[uint32(mix(xxhash.Sum64(k.key)^x.salted))] = true
		}
		var ids []uint32
		for _, id := range want[0].ids {
			if !got[id] {
				ids = append(ids, id)
			}
		}
		want[0].ids = ids
	}
	return nil
}

// sleep waits for d or until ctx is done, whose error it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
