package antientropy

import (
	"context"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// checkEvery is the number of rows between two looks at the context during a scan.
const checkEvery = 1024

// keyHashBytes is what one key costs in a chunk beside its bytes.
const keyHashBytes = 12

// scan hashes each row of the partition from a key on.
func (s *Service) scan(ctx context.Context, p kv.PartitionID, from []byte, row func(key []byte, hash uint64) bool) error {
	var scratch []byte
	rows := 0
	err := s.deps.State.ScanSiblings(p, from, func(key []byte, set causal.SiblingSet) (bool, error) {
		if rows++; rows%checkEvery == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		var hash uint64
		hash, scratch = hashRow(scratch, key, set)
		return row(key, hash), nil
	})
	if err != nil {
		return fmt.Errorf("antientropy: scan of partition %d: %w", p, err)
	}
	return nil
}

// digest summarises what this node holds of a partition.
func (s *Service) digest(ctx context.Context, p kv.PartitionID) (*digest, error) {
	d := &digest{}
	return d, s.scan(ctx, p, nil, func(key []byte, hash uint64) bool {
		d.add(key, hash)
		return true
	})
}

// keys lists the rows of the given leaves after a key, up to another one when upTo is not nil, and until the chunk has
// bytesMax bytes when that is not 0.
func (s *Service) keys(ctx context.Context, p kv.PartitionID, in *leafSet, after, upTo []byte, bytesMax int) (chunk, error) {
	var c chunk
	bytes := 0
	err := s.scan(ctx, p, after, func(key []byte, hash uint64) bool {
		switch {
		case !in.has(leafOf(key)) || (after != nil && string(key) == string(after)):
			return true
		case upTo != nil && string(key) > string(upTo):
			return false
		case bytesMax > 0 && bytes >= bytesMax:
			c.more = true
			return false
		}
		c.keys = append(c.keys, keyHash{key: slices.Clone(key), hash: hash})
		bytes += len(key) + keyHashBytes
		return true
	})
	return c, err
}
