package sim

import (
	"context"
	"math/rand/v2"
	"sync"

	"github.com/caprockdb/caprock/pkg/kv"
)

// trap cuts the power at the worst moment: just after a node has told others, or a client, that something is durable. A
// power cut at a moment of chance hardly ever falls between an acknowledgement and a sync that should have come first.
type trap struct {
	mu sync.Mutex // guards what follows
	// armed is closed when the trap springs; nil when none is set.
	armed chan struct{}
	// victim is whose acknowledgement to a peer is waited for, or any client's answer if it is NoNode.
	victim kv.NodeID
	// after is how many more of them pass by first.
	after    int
	which    []int
	survives int
	rand     *rand.Rand
}

// promised is told that a node has just acknowledged something to a peer.
func (c *Cluster) promised(from kv.NodeID) { c.spring(from) }

// answered is told that a client has just learnt that its write is applied.
func (c *Cluster) answered() { c.spring(kv.NoNode) }

// spring lets an event pass the trap.
func (c *Cluster) spring(by kv.NodeID) {
	t := &c.trap
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.armed == nil || t.victim != by {
		return
	}
	if t.after--; t.after > 0 {
		return
	}
	c.sever(t.which, t.survives, t.rand)
	close(t.armed)
	t.armed = nil
}

// CrashAfter cuts the power of the given nodes as soon as by, after that many other such events, acknowledges something to
// a peer, or, if by is negative, a client is answered that its write is applied. It reports false when ctx was done first;
// then nothing was cut.
func (c *Cluster) CrashAfter(ctx context.Context, by, events, unsyncedPercent int, which ...int) (bool, error) {
	sprung := make(chan struct{})
	t := &c.trap
	t.mu.Lock()
	t.armed, t.victim, t.after, t.which, t.survives = sprung, kv.NoNode, events, which, unsyncedPercent
	if by >= 0 {
		t.victim = c.nodes[by].id
	}
	t.rand = rand.New(rand.NewPCG(c.rand.Uint64(), c.rand.Uint64()))
	t.mu.Unlock()
	select {
	case <-sprung:
	case <-ctx.Done():
		t.mu.Lock()
		missed := t.armed != nil
		t.armed = nil
		t.mu.Unlock()
		if missed {
			return false, nil
		}
	}
	return true, c.bury(which...)
}
