package antientropy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// mergesMax bounds the merges under way at once. Each waits for the disk, and those that wait together share a sync: one
// after the other a message of small values would take longer than a request may.
const mergesMax = 256

// mergeAll merges the sets into this node's replica and returns once all of them are durable. A set that cannot be merged
// does not keep the others from it. heals is as in Replica.Merge.
func (s *Service) mergeAll(ctx context.Context, o Owned, heals bool, sets []keySet) error {
	return s.forAll(len(sets), func(i int) error {
		if sets[i].set.IsZero() {
			return nil
		}
		if _, dead := storage.DeadSince(sets[i].set); dead && mutant.Planted == mutant.ExchangeSkipsTombstones {
			return nil
		}
		return s.deps.Replica.Merge(ctx, o.Partition, o.Epoch, sets[i].key, sets[i].set, heals)
	})
}

// forAll runs do for 0 to n-1, many at once, and returns the first error once all of them ended.
func (s *Service) forAll(n int, do func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(mergesMax)
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}

// Handle answers one request of a peer's exchange. It reads storage and may wait for the disk.
func (s *Service) Handle(ctx context.Context, from kv.NodeID, payload []byte) ([]byte, error) {
	h, body, err := decodeHeader(payload)
	if err != nil {
		return nil, err
	}
	if h.kind == askWatermark {
		return s.answerWatermark(ctx, from, h, body)
	}
	o, err := s.owned(h, from)
	if err != nil {
		return nil, err
	}
	if s.deps.Engine.State().Repair(o.Partition).Quarantined {
		return nil, fmt.Errorf("%w: partition %d", ErrQuarantined, o.Partition)
	}
	s.catchUp(o.Partition, h.from)
	switch h.kind {
	case askRoot:
		return s.answerRoot(ctx, o, body)
	case askNodes:
		return s.answerNodes(ctx, o, body)
	case askRows:
		return s.answerRows(o, body)
	case askParts:
		return s.answerParts(o, body)
	case askSets:
		return s.answerSets(o, body)
	case askMerge:
		return s.answerMerge(ctx, o, h.from, body)
	default:
		return nil, fmt.Errorf("%w: request of kind %d", ErrPayload, h.kind)
	}
}

// owned finds the partition among this node's, at the peer's epoch, with the peer as another owner.
func (s *Service) owned(h header, from kv.NodeID) (Owned, error) {
	for _, o := range s.deps.Owned() {
		if o.Partition == h.partition && o.Epoch == h.epoch && slices.Contains(o.Owners, from) {
			return o, nil
		}
	}
	return Owned{}, fmt.Errorf("%w: partition %d, epoch %d, asked by node %d", ErrNotOwner, h.partition, h.epoch, from)
}

// standing is what this replica's word is worth.
func (s *Service) standing(p kv.PartitionID) standing {
	r := s.deps.Engine.State().Repair(p)
	return standing{committed: r.Committed, healthy: !r.Healing}
}

// catchUp raises the watermark to another replica's. Where one has set it the protocol had come to its end, and only the
// message was lost that says so: otherwise a replica that heals, and so holds back the next watermark, might wait for ever for
// one that is as far as itself.
func (s *Service) catchUp(p kv.PartitionID, theirs standing) {
	if theirs.committed <= s.deps.Engine.State().Repair(p).Committed {
		return
	}
	if err := s.commit(p, theirs.committed); err != nil {
		s.deps.Logger.Debug("another replica is ahead with its repair watermark", "partition", p, "error", err)
	}
}

// digests returns the digests of the partition's tree. A tree that cannot be read is looked into.
func (s *Service) digests(ctx context.Context, p kv.PartitionID) (*storage.TreeDigests, error) {
	t, err := s.deps.Engine.Digests(ctx, p)
	if errors.Is(err, storage.ErrCorruption) {
		s.Suspect(p)
	}
	return t, err
}

func (s *Service) answerRoot(ctx context.Context, o Owned, body []byte) ([]byte, error) {
	r := reader{b: body}
	theirs := r.uint64("root")
	if r.err != nil {
		return nil, r.err
	}
	own, err := s.digests(ctx, o.Partition)
	if err != nil {
		return nil, err
	}
	out := s.standing(o.Partition).append(nil)
	if rootDigest(own) == theirs {
		return out, nil
	}
	return appendSums(out, groupDigests(own)), nil
}

func (s *Service) answerNodes(ctx context.Context, o Owned, body []byte) ([]byte, error) {
	r := reader{b: body}
	salt, which := r.uint64("salt"), bitmap(r.uint64("groups"))
	if r.err != nil {
		return nil, r.err
	}
	own, err := s.digests(ctx, o.Partition)
	if err != nil {
		return nil, err
	}
	var out []byte
	for g := range groups {
		if which.has(g) {
			out = appendHalves(out, nodeDigests(own, g, salt))
		}
	}
	return out, nil
}

// rows lists the rows of a node.
func (s *Service) rows(p kv.PartitionID, node int, salt uint64) ([]row, error) {
	var out []row
	from, to := storage.NodePlaces(node)
	width := (to - uint64(from)) / fanOut
	err := s.deps.Engine.State().ScanTree(p, from, to, func(place storage.Place, key []byte, hash uint64) (bool, error) {
		out = append(out, row{
			key: bytes.Clone(key), part: int(uint64(place-from) / width), hash: hash,
			mark: rowMark{id: uint32(mix(xxhash.Sum64(key) ^ salt)), sum: uint32(mix(hash ^ salt))},
		})
		return true, nil
	})
	if errors.Is(err, storage.ErrCorruption) {
		s.Suspect(p)
	}
	return out, err
}

// answerRows stops when the answer grows too large; the peer asks for the rest again.
func (s *Service) answerRows(o Owned, body []byte) ([]byte, error) {
	r := reader{b: body}
	salt := r.uint64("salt")
	var out []byte
	for len(r.b) > 0 && len(out) < s.cfg.ChunkBytesMax {
		node := r.node()
		if r.err != nil {
			return nil, r.err
		}
		rows, err := s.rows(o.Partition, node, salt)
		if err != nil {
			return nil, err
		}
		n := nodeRows{marks: marksOf(rows, ^bitmap(0))}
		if len(rows) > listRowsMax {
			n = nodeRows{parts: partSums(rows, salt)}
		}
		out = n.append(out)
	}
	return out, r.err
}

func (s *Service) answerParts(o Owned, body []byte) ([]byte, error) {
	r := reader{b: body}
	salt := r.uint64("salt")
	var out []byte
	for len(r.b) > 0 && len(out) < s.cfg.ChunkBytesMax {
		node, parts := r.node(), bitmap(r.uint64("parts"))
		if r.err != nil {
			return nil, r.err
		}
		rows, err := s.rows(o.Partition, node, salt)
		if err != nil {
			return nil, err
		}
		out = appendMarks(out, marksOf(rows, parts))
	}
	return out, r.err
}

// answerSets stops when the answer grows too large, also amid a node, which then does not count as taken.
func (s *Service) answerSets(o Owned, body []byte) ([]byte, error) {
	r := reader{b: body}
	salt := r.uint64("salt")
	m := merged{from: s.standing(o.Partition)}
	for size := 0; len(r.b) > 0; m.taken++ {
		w := r.wanted()
		if r.err != nil {
			return nil, r.err
		}
		rows, err := s.rows(o.Partition, w.node, salt)
		if err != nil {
			return nil, err
		}
		for i := range rows {
			if !slices.Contains(w.ids, rows[i].mark.id) {
				continue
			}
			if size >= s.cfg.ChunkBytesMax {
				return m.append(nil), nil
			}
			set, found, err := s.deps.Engine.State().Siblings(o.Partition, rows[i].key)
			if err != nil {
				return nil, s.unread(o.Partition, err)
			}
			if found {
				m.sets = append(m.sets, keySet{key: rows[i].key, set: set})
				size += len(rows[i].key) + setBytes(set.Siblings)
			}
		}
	}
	return m.append(nil), r.err
}

// unread notes that a row of the partition could not be read.
func (s *Service) unread(p kv.PartitionID, err error) error {
	if errors.Is(err, storage.ErrCorruption) {
		s.Suspect(p)
	}
	return err
}

// answerMerge merges the peer's sets and returns what this replica holds afterwards of those that differ. The answer stops
// early when it grows too large; the peer sends the rest again, which by then is merged and costs nothing.
func (s *Service) answerMerge(ctx context.Context, o Owned, from standing, body []byte) ([]byte, error) {
	arrived, err := decodeKeySets(body)
	if err != nil {
		return nil, err
	}
	// A set that cannot be merged, one from the future say, must not keep back those behind it.
	heals := from.healthy && from.committed >= s.deps.Engine.State().Repair(o.Partition).Committed
	failed := s.mergeAll(ctx, o, heals, arrived)
	if failed != nil {
		s.deps.Logger.Debug("a set of a peer could not be merged", "partition", o.Partition, "error", failed)
	}
	m := merged{from: s.standing(o.Partition), behind: failed != nil}
	size := 0
	for _, k := range arrived {
		if m.taken > 0 && size >= s.cfg.ChunkBytesMax {
			break
		}
		held, _, err := s.deps.Engine.State().Siblings(o.Partition, k.key)
		if err != nil {
			return nil, s.unread(o.Partition, err)
		}
		m.taken++
		if !held.Equal(k.set) {
			m.sets = append(m.sets, keySet{key: k.key, set: held})
			size += len(k.key) + setBytes(held.Siblings)
		}
		s.doubt(o.Partition, from, k, held)
	}
	return m.append(nil), nil
}

// doubt has the partition checked when a replica as far as this one holds a value from before the watermark of which this
// one knows nothing: one of the two has lost something.
func (s *Service) doubt(p kv.PartitionID, from standing, arrived keySet, held causal.SiblingSet) {
	own := s.standing(p)
	if !own.healthy || !from.healthy || from.committed != own.committed {
		return
	}
	for i := range arrived.set.Siblings {
		v := &arrived.set.Siblings[i]
		if v.Dot.Time <= own.committed && !v.Deleted && !held.Covers(v.Dot) {
			s.Suspect(p)
			return
		}
	}
}

// suspects are partitions to be checked at once.
type suspects struct {
	wake chan struct{}

	mu  sync.Mutex // guards all
	all map[kv.PartitionID]bool
}

// Suspect has the partition's rows checked soon. It does not block.
func (s *Service) Suspect(p kv.PartitionID) {
	s.suspects.add(p)
	select {
	case s.suspects.wake <- struct{}{}:
	default:
	}
}

func (s *suspects) add(p kv.PartitionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[p] = true
}

// take returns the suspects and forgets them.
func (s *suspects) take() map[kv.PartitionID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.all
	s.all = map[kv.PartitionID]bool{}
	return out
}

func appendNodes(dst []byte, nodes []int) []byte {
	for _, n := range nodes {
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	}
	return dst
}
