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

// views maps groups to their views. Groups are only ever added, so readers take a snapshot and never lock. It is a slice by group,
// whose ids are small: every operation looks several times.
type views struct {
	current atomic.Pointer[[]*view]
	// adding serializes writers.
	adding sync.Mutex
}

func (v *views) get(g kv.GroupID) *view {
	all := v.current.Load()
	if all == nil || int(g) >= len(*all) {
		return nil
	}
	return (*all)[g]
}

func (v *views) add(nv *view) {
	v.adding.Lock()
	defer v.adding.Unlock()
	var old []*view
	if all := v.current.Load(); all != nil {
		old = *all
	}
	next := make([]*view, max(len(old), int(nv.id)+1))
	copy(next, old)
	next[nv.id] = nv
	v.current.Store(&next)
}

// all returns the views in the order of their groups.
func (v *views) all() (out []*view) {
	if all := v.current.Load(); all != nil {
		for _, one := range *all {
			if one != nil {
				out = append(out, one)
			}
		}
	}
	return out
}
