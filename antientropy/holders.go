package antientropy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/caprockdb/caprock/pkg/kv"
)

// askedHolders are the nodes that owners of a partition have asked to keep hints of it.
type askedHolders struct {
	mu sync.Mutex // guards what follows
	// anywhere says that some owner does not know all of them: then it may be any member.
	anywhere bool
	nodes    []kv.NodeID
}

// asked returns whom this node has asked. It is read after the promise was made, so that nobody is asked later to keep what
// the promise is about.
func (s *Service) asked(p kv.PartitionID) *askedHolders {
	a := &askedHolders{anywhere: s.deps.Engine.State().Repair(p).HintsAnywhere}
	if s.deps.Hints != nil {
		a.nodes = s.deps.Hints.Holders(p)
	}
	return a
}

// may reports whether the node may keep hints.
func (a *askedHolders) may(id kv.NodeID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.anywhere || slices.Contains(a.nodes, id)
}

func (a *askedHolders) append(dst []byte) []byte {
	flag := byte(0)
	if a.anywhere {
		flag = 1
	}
	dst = append(dst, flag)
	for _, id := range a.nodes {
		dst = binary.BigEndian.AppendUint64(dst, uint64(id))
	}
	return dst
}

// add takes what another owner said. One that says nothing keeps no notes.
func (a *askedHolders) add(reply []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(reply) == 0 {
		a.anywhere = true
		return nil
	}
	if reply[0] > 1 || len(reply)%8 != 1 {
		return fmt.Errorf("%w: holders of hints", ErrPayload)
	}
	a.anywhere = a.anywhere || reply[0] == 1
	for b := reply[1:]; len(b) > 0; b = b[8:] {
		a.nodes = append(a.nodes, kv.NodeID(binary.BigEndian.Uint64(b)))
	}
	return nil
}
