package consensus

import (
	"sync"
	"sync/atomic"

	"github.com/caprockdb/caprock/pkg/kv"
)

// view is what goroutines other than the loop see of a group.
type view struct {
	id kv.GroupID
	// leader is the last one that the loop knew; kv.NoNode when it knew none.
	leader atomic.Uint64
	// trust counts the beginnings and the ends of quarantines: while it is odd the replica's S is not to be trusted.
	trust atomic.Uint64
	// checking is the index of the last entry that asked for a check: whoever hashes an earlier state need not go on.
	checking atomic.Uint64
	// pendingBytes is the size of proposals, and barriers the number of barriers, that were not answered yet.
	pendingBytes atomic.Int64
	barriers     atomic.Int64
	// silence is the group's, in ticks (silence.go).
	silence atomic.Uint64

	// fences are what eventual writes must be above.
	fences fences

	// mu guards the fields below.
	mu     sync.Mutex
	status GroupStatus
}

func (v *view) leaderID() kv.NodeID { return kv.NodeID(v.leader.Load()) }

func (v *view) publish(status GroupStatus) {
	v.mu.Lock()
	v.status = status
	v.mu.Unlock()
}

func (v *view) read() GroupStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status
}

// views maps groups to their views. Groups are only ever added, so readers take a snapshot and never lock.
type views struct {
	current atomic.Pointer[map[kv.GroupID]*view]
	// adding serializes writers.
	adding sync.Mutex
}

func (v *views) get(g kv.GroupID) *view {
	m := v.current.Load()
	if m == nil {
		return nil
	}
	return (*m)[g]
}

func (v *views) add(nv *view) {
	v.adding.Lock()
	defer v.adding.Unlock()
	next := map[kv.GroupID]*view{nv.id: nv}
	if m := v.current.Load(); m != nil {
		for id, old := range *m {
			next[id] = old
		}
	}
	v.current.Store(&next)
}

func (v *views) all() map[kv.GroupID]*view {
	if m := v.current.Load(); m != nil {
		return *m
	}
	return nil
}
