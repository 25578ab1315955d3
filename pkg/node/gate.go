package node

import (
	"context"
	"sync"
)

// gate lets work in until it is shut, and lets whoever shuts it wait until all of it has left: nothing may touch the
// storage once it is being closed.
type gate struct {
	// closing ends when the gate is shut, and is the parent of what must not hold that up. shutting ends it.
	closing  context.Context
	shutting context.CancelFunc

	mu     sync.Mutex // guards what follows
	inside int
	shut   bool
	empty  chan struct{} // closed once the gate is shut and nobody is inside
}

func newGate() *gate {
	g := &gate{empty: make(chan struct{})}
	g.closing, g.shutting = context.WithCancel(context.Background())
	return g
}

// enter reports whether the work may begin. If so, leave must follow.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.shut && g.inside == 0 {
		close(g.empty)
	}
}

// close shuts the gate, once, and waits until everybody has left.
func (g *gate) close() {
	g.mu.Lock()
	g.shut = true
	g.shutting()
	if g.inside == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	<-g.empty
}
