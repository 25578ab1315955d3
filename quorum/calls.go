package quorum

import (
	"context"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// calls counts the calls to replicas that have not been answered, those of requests that have been answered included:
// that is all that outlives a request.
type calls struct {
	perReplicaMax int

	// mu guards the fields below.
	mu         sync.Mutex
	perReplica map[kv.NodeID]int
	// ended counts the calls of each replica that were answered or failed.
	ended   map[kv.NodeID]uint64
	looks   map[kv.NodeID]look
	total   int
	stopped bool
	// idle is closed when stopped is set and total is 0.
	idle chan struct{}
}

func newCalls(perReplicaMax int) *calls {
	return &calls{perReplicaMax: perReplicaMax, perReplica: make(map[kv.NodeID]int), ended: make(map[kv.NodeID]uint64), looks: make(map[kv.NodeID]look), idle: make(chan struct{})}
}

// begin counts a call to the node. It returns false, and the call must not be made, when too many are outstanding or
// the coordinator has stopped.
func (c *calls) begin(node kv.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.perReplica[node] >= c.perReplicaMax {
		return false
	}
	c.perReplica[node]++
	c.total++
	return true
}

// end counts the answer of a call that begin counted.
func (c *calls) end(node kv.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.perReplica[node]--
	c.ended[node]++
	c.total--
	if c.stopped && c.total == 0 {
		close(c.idle)
	}
}

// look is what was known of a replica's calls when somebody last asked whether it is silent.
type look struct {
	at      time.Time
	ended   uint64
	waiting bool
}

// silentAfter is how long a replica may leave all calls to it unanswered before it is taken to be silent.
const silentAfter = 50 * time.Millisecond

// silent reports whether the replica has answered nothing for a while although it was asked. It compares what it sees with what
// it saw when it was last asked, so that calls, of which there are many, need not look at the time.
func (c *calls) silent(node kv.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := look{at: time.Now(), ended: c.ended[node], waiting: c.perReplica[node] > 0}
	last := c.looks[node]
	if last.waiting && now.waiting && now.ended == last.ended {
		return now.at.Sub(last.at) > silentAfter
	}
	c.looks[node] = now
	return false
}

// stop refuses further calls and returns a channel that is closed once none is outstanding.
func (c *calls) stop() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.stopped = true
		if c.total == 0 {
			close(c.idle)
		}
	}
	return c.idle
}

func (c *calls) isStopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped
}

func (c *calls) outstanding() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// callContext is the context of calls to replicas. They go on after their request was answered, so it follows the
// coordinator's life and not the request's, and it carries its deadline without a timer of its own: a timer and a
// goroutine for each of them would cost more than the call.
type callContext struct {
	context.Context
	deadline time.Time
	// made is when the calls were made.
	made time.Time
}

// Deadline returns when the call's answer stops being of use.
func (c callContext) Deadline() (time.Time, bool) { return c.deadline, true }
