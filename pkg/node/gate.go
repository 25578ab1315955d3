package node

import (
	"context"
	"sync"
	"time"
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

// workers run what peers ask for on goroutines that are used again: the stack of a new one has to grow with each
// request, which cost more than the request's own bookkeeping.
type workers struct {
	work chan func()
	// done ends the idle ones.
	done <-chan struct{}
	all  sync.WaitGroup
}

func newWorkers(done <-chan struct{}) *workers { return &workers{work: make(chan func()), done: done} }

// run has f run by a worker that is idle, or by a new one. Nobody waits for another's work: what f waits for may be work
// that comes after it. There are as many as were ever busy at once in the last idle time.
func (w *workers) run(f func()) {
	select {
	case w.work <- f:
	default:
		w.all.Go(func() { w.loop(f) })
	}
}

// workerIdleMax is how long a worker waits for more.
const workerIdleMax = time.Second

func (w *workers) loop(f func()) {
	idle := time.NewTimer(workerIdleMax)
	defer idle.Stop()
	for {
		f()
		idle.Reset(workerIdleMax)
		select {
		case f = <-w.work:
		case <-idle.C:
			return
		case <-w.done:
			return
		}
	}
}
