package node

import (
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// avoidFor is how long a node is left alone that refused a forwarded request because it is not ready, as one that stops
// does: about as long as gossip takes to tell that it is gone.
const avoidFor = 2 * time.Second

// avoided remembers who refused forwarded requests of late. It holds at most one entry a member.
type avoided struct {
	mu    sync.Mutex // guards until
	until map[kv.NodeID]time.Time
}

func (a *avoided) add(id kv.NodeID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = map[kv.NodeID]time.Time{}
	}
	a.until[id] = time.Now().Add(avoidFor)
}

func (a *avoided) has(id kv.NodeID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, known := a.until[id]
	if known && time.Now().After(until) {
		delete(a.until, id)
		known = false
	}
	return known
}
