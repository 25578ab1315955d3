package node

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// admission bounds the requests that the node works on at once (design.md §11). What exceeds it is refused before
// anything was written.
type admission struct {
	opsMax, bytesMax int64
	ops, bytes       atomic.Int64
}

const overloadRetryAfter = time.Second

// enter admits a request of cost bytes, or returns an OVERLOADED error.
func (a *admission) enter(cost int64) error { return a.enterMany(1, cost) }

// enterMany admits requests of cost bytes together, all or none.
func (a *admission) enterMany(n, cost int64) error {
	ops, bytes := a.ops.Add(n), a.bytes.Add(cost)
	// What is larger than the whole budget is admitted alone: the size limits have already passed it.
	if (ops <= a.opsMax && bytes <= a.bytesMax) || ops == n {
		return nil
	}
	a.leaveMany(n, cost)
	e := kv.Errorf(kv.CodeOverloaded, "the node already works on %d requests and %d bytes", ops-n, bytes-cost)
	e.RetryAfter = overloadRetryAfter
	return e
}

// leave returns what enter took.
func (a *admission) leave(cost int64) { a.leaveMany(1, cost) }

func (a *admission) leaveMany(n, cost int64) {
	a.ops.Add(-n)
	a.bytes.Add(-cost)
}

// lockedRand is a random source for several goroutines, and the seed of sources for the parts.
type lockedRand struct {
	mu sync.Mutex // guards r
	r  *rand.Rand
}

func newLockedRand(r *rand.Rand) *lockedRand { return &lockedRand{r: r} }

// Uint64 returns a random number.
func (l *lockedRand) Uint64() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Uint64()
}

// fork returns a source of its own for one part, so that parts do not share a lock.
func (l *lockedRand) fork() *rand.Rand { return rand.New(rand.NewPCG(l.Uint64(), l.Uint64())) }
