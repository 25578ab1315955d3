package node

import "sync"

// gate lets work in until it is shut, and lets whoever shuts it wait until all of it has left: nothing may touch the
// storage once it is being closed.
type gate struct {
	// closing is closed when the gate is shut.
	closing chan struct{}

	mu     sync.Mutex // guards what follows
	inside int
	shut   bool
	empty  chan struct{} // closed once the gate is shut and nobody is inside
}

func newGate() *gate { return &gate{closing: make(chan struct{}), empty: make(chan struct{})} }

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

// whenClosing has f called when the gate is shut, unless what it returns was called before.
func (g *gate) whenClosing(f func()) (forget func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-g.closing:
			f()
		case <-done:
		}
	}()
	return func() { close(done) }
}

// close shuts the gate, once, and waits until everybody has left.
func (g *gate) close() {
	g.mu.Lock()
	g.shut = true
	close(g.closing)
	if g.inside == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	<-g.empty
}
