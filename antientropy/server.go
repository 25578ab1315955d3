package antientropy

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/kv"
)

// mergesMax bounds the merges under way at once. Each waits for the disk, and those that wait together share a sync: one
// after the other a message of small values would take longer than a request may.
const mergesMax = 256

// mergeAll merges the sets into this node's replica and returns once all of them are durable.
func (s *Service) mergeAll(ctx context.Context, o Owned, sets []keySet) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mergesMax)
	for _, k := range sets {
		if k.set.IsZero() {
			continue
		}
		g.Go(func() error { return s.deps.Merger.Merge(ctx, o.Partition, o.Epoch, k.key, k.set) })
	}
	return g.Wait()
}

// Handle answers one request of a peer's exchange. It reads storage and may wait for the disk.
func (s *Service) Handle(ctx context.Context, from kv.NodeID, payload []byte) ([]byte, error) {
	h, body, err := decodeHeader(payload)
	if err != nil {
		return nil, err
	}
	o, err := s.owned(h, from)
	if err != nil {
		return nil, err
	}
	switch h.kind {
	case askLeaves:
		return s.answerLeaves(ctx, o, body)
	case askKeys:
		return s.answerKeys(ctx, o, body)
	case askMerge:
		return s.answerMerge(ctx, o, body)
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

func (s *Service) answerLeaves(ctx context.Context, o Owned, body []byte) ([]byte, error) {
	theirs, err := decodeDigest(body)
	if err != nil {
		return nil, err
	}
	own, err := s.digest(ctx, o.Partition)
	if err != nil {
		return nil, err
	}
	differ := own.differing(theirs)
	return differ[:], nil
}

func (s *Service) answerKeys(ctx context.Context, o Owned, body []byte) ([]byte, error) {
	in, after, err := decodeLeafSet(body)
	if err != nil {
		return nil, err
	}
	if len(after) == 0 {
		after = nil
	}
	c, err := s.keys(ctx, o.Partition, &in, after, nil, s.cfg.ChunkBytesMax)
	if err != nil {
		return nil, err
	}
	return c.append(nil), nil
}

// answerMerge merges the peer's sets and returns what this replica holds afterwards of those that differ. The answer stops
// early when it grows too large; the peer sends the rest again, which by then is merged and costs nothing.
func (s *Service) answerMerge(ctx context.Context, o Owned, body []byte) ([]byte, error) {
	arrived, err := decodeKeySets(body)
	if err != nil {
		return nil, err
	}
	if err := s.mergeAll(ctx, o, arrived); err != nil {
		return nil, err
	}
	var m merged
	bytes := 0
	for _, k := range arrived {
		if m.taken > 0 && bytes >= s.cfg.ChunkBytesMax {
			break
		}
		held, _, err := s.deps.State.Siblings(o.Partition, k.key)
		if err != nil {
			return nil, err
		}
		m.taken++
		if !held.Equal(k.set) {
			m.sets = append(m.sets, keySet{key: k.key, set: held})
			bytes += len(k.key) + setBytes(held.Siblings)
		}
	}
	return m.append(nil), nil
}
