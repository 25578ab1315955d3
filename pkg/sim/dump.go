package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/verify"
)

// Convergence is the longest that replicas may differ once everything is mended and nobody writes.
const Convergence = 60 * time.Second

// convergencePoll is how often replicas are compared meanwhile.
const convergencePoll = 500 * time.Millisecond

// WaitConverged waits until the replicas of every partition hold the same rows of both lanes, byte by byte, tombstones
// included. It returns how long that took, and what differs once ctx is done.
func (c *Cluster) WaitConverged(ctx context.Context) (time.Duration, verify.Result, error) {
	start := time.Now()
	for {
		dumps, err := c.Dump()
		damaged := errors.Is(err, storage.ErrCorruption)
		if err != nil && (!damaged || ctx.Err() != nil) {
			return time.Since(start), verify.Result{}, err
		}
		res := verify.CheckConvergence(dumps...)
		if res.Valid && !damaged {
			return time.Since(start), res, nil
		}
		select {
		case <-ctx.Done():
			return time.Since(start), res, nil
		case <-time.After(convergencePoll):
		}
	}
}

// Dump returns what each running node holds of each partition that the map gives to it.
func (c *Cluster) Dump() ([]verify.Dump, error) {
	var out []verify.Dump
	for i, in := range c.nodes {
		n := c.Node(i)
		if n == nil {
			continue
		}
		err := n.Inspect(func(e *storage.Engine) error {
			for _, p := range n.Partitions() {
				if !slices.Contains(p.Replicas, in.name) {
					continue
				}
				rows := map[string][]byte{}
				if err := dumpRows(e.State(), p, rows); err != nil {
					return err
				}
				out = append(out, verify.Dump{Group: fmt.Sprintf("partition %d", p.Partition), Node: in.name, Rows: rows})
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("dump of %s: %w", in.name, err)
		}
	}
	return out, nil
}

// dumpRows adds all rows of a partition, each as bytes that are equal only if the rows are.
func dumpRows(state storage.State, p node.PartitionDocument, rows map[string][]byte) error {
	err := state.ScanStrong(p.Group, nil, func(key []byte, s storage.Strong) (bool, error) {
		rows["strong "+string(key)] = strongRow(s)
		return true, nil
	})
	if err != nil {
		return err
	}
	return state.ScanSiblings(p.Partition, nil, func(key []byte, set causal.SiblingSet) (bool, error) {
		rows["eventual "+string(key)] = causal.AppendSet(nil, set)
		return true, nil
	})
}

func strongRow(s storage.Strong) []byte {
	b := binary.AppendUvarint(nil, s.Revision)
	if b = append(b, 0); s.Deleted {
		b[len(b)-1] = 1
	}
	b = causal.AppendStamp(causal.AppendHLC(b, s.Expiry), s.Stamp)
	b = binary.AppendUvarint(b, uint64(len(s.Covered)))
	for _, d := range s.Covered {
		b = causal.AppendDot(b, d)
	}
	b = append(causal.AppendHLC(b, s.Before), s.Base...)
	return append(b, s.Value...)
}
