package sim

import (
	"errors"
	"math/rand/v2"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// rotOneIn is of how many rows of the eventual lane a fault damages one.
const rotOneIn = 3

// Rot damages rows of the eventual lane on the disk of node i, if it runs: of each row that is met either the row is gone, or
// a bit of it has turned, or it is gone and the hash tree with it knows nothing of it.
func (c *Cluster) Rot(i int) error {
	in := c.nodes[i]
	l := in.life.Load()
	if l == nil {
		return nil
	}
	c.watch.rot(in.id)
	r := rand.New(rand.NewPCG(c.rand.Uint64(), c.rand.Uint64()))
	return l.node.Inspect(func(e *storage.Engine) error {
		for p := range kv.PartitionID(c.opts.Partitions) {
			var met [][]byte
			err := e.State().ScanSiblings(p, nil, func(key []byte, _ causal.SiblingSet) (bool, error) {
				if r.IntN(rotOneIn) == 0 {
					met = append(met, append([]byte(nil), key...))
				}
				return true, nil
			})
			if err != nil && !errors.Is(err, storage.ErrCorruption) {
				return err // a row from the last time may still be there
			}
			for _, key := range met {
				kind := r.IntN(3)
				if err := e.LoseSiblings(p, kind == 1, kind == 2, key); err != nil {
					return err
				}
				in.rotten.Add(1)
			}
		}
		return nil
	})
}
