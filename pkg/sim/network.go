package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/transport"
)

// Bounds of the simulated network. What exceeds a queue is dropped, as a network does.
const (
	queueBatchesMax = 1 << 16
	queueBytesMax   = 256 << 20
	// breakAfter is how long a cut must last until a link over it breaks: as long as the gRPC wire takes to notice.
	breakAfter = 3 * time.Second
)

var (
	errRefused = errors.New("sim: connection refused")
	errFenced  = errors.New("sim: this life of the node is over")
	errClosed  = errors.New("sim: the network is closed")
	errTimeout = errors.New("sim: the link timed out")
)

// Stats counts what the network did. A test of a fault asserts that the fault took place.
type Stats struct {
	Delivered, Lost, Duplicated, CutOff, Overtaken, Overflowed, Held uint64
}

// Network is an in-memory network whose wires implement transport.Wire. Nothing in it waits for ever: a batch that
// cannot be delivered is dropped. It works in and out of a synctest bubble.
type Network struct {
	// mu guards the fields below. Nothing blocks while it is held.
	mu         sync.Mutex
	rand       *rand.Rand
	everywhere Conditions
	special    map[direction]Conditions
	cuts       map[direction]time.Time // since when
	holds      map[kv.NodeID]time.Time // until when
	endpoints  map[kv.NodeID]*endpoint
	severed    map[kv.NodeID][]*endpoint // whose goroutines have not been waited for
	// lives counts the lives of each node that are over. A wire belongs to the life that it was made in.
	lives map[kv.NodeID]uint64
	links map[*link]struct{}
	stats Stats
	// tallies and held say to whom it happened.
	tallies map[direction]tally
	held    map[kv.NodeID]uint64
	closed  bool

	// watch, if set, is called with each batch that was sent, also when the network loses it. It is set before the first.
	watch func(from, to kv.NodeID, batch []byte)
}

type direction struct{ from, to kv.NodeID }

// NewNetwork returns a calm network without nodes. The seed decides losses, copies and delays.
func NewNetwork(seed uint64) *Network {
	return &Network{
		rand: rand.New(rand.NewPCG(seed, 0x4e7)), everywhere: Calm(),
		special: map[direction]Conditions{}, cuts: map[direction]time.Time{}, holds: map[kv.NodeID]time.Time{},
		endpoints: map[kv.NodeID]*endpoint{}, severed: map[kv.NodeID][]*endpoint{}, lives: map[kv.NodeID]uint64{}, links: map[*link]struct{}{},
		tallies: map[direction]tally{}, held: map[kv.NodeID]uint64{},
	}
}

// SetAll sets the conditions everywhere, instead of all that were set before.
func (n *Network) SetAll(c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.everywhere = c
	clear(n.special)
}

// Set sets the conditions of one direction.
func (n *Network) Set(from, to kv.NodeID, c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.special[direction{from, to}] = c
}

// SetCut cuts or mends one direction. A cut swallows what is sent; links notice after a while, in both directions, and
// none can be made.
func (n *Network) SetCut(from, to kv.NodeID, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := direction{from, to}
	if _, already := n.cuts[d]; cut && !already {
		n.cuts[d] = time.Now()
	} else if !cut {
		delete(n.cuts, d)
	}
}

// Hold keeps back until then what the node sends and is sent. Nothing of it is lost or takes another place.
func (n *Network) Hold(node kv.NodeID, until time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.holds[node] = until
}

// heldUntil returns until when the node is held, or was.
func (n *Network) heldUntil(node kv.NodeID) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.holds[node]
}

// Watch has fn called with each batch that a node sends, after it was sent and whether or not it arrives. It must be called
// before anything is sent. fn must not keep the batch; it may take nodes off the network with Sever.
func (n *Network) Watch(fn func(from, to kv.NodeID, batch []byte)) { n.watch = fn }

// Stats returns what the network has done so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Attach has deliver called for each batch to the node, one at a time, until Detach. An error from it breaks the link.
// A node that is attached already is detached first.
func (n *Network) Attach(self kv.NodeID, deliver func(from kv.NodeID, batch []byte) error) {
	n.mu.Lock()
	old := n.endpoints[self]
	if n.closed {
		n.mu.Unlock()
		return
	}
	e := &endpoint{deliver: deliver, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	n.endpoints[self] = e
	n.breakLinks(func(l *link) bool { return l.to == self })
	n.mu.Unlock()
	old.close()
	go e.run(n)
}

// Detach ends the node's present life: its wires fail from now on, links to it break, what is under way to it is lost.
// What it had sent before still arrives. It returns once deliver does not run any more.
func (n *Network) Detach(self kv.NodeID) {
	n.Sever(self)
	n.mu.Lock()
	severed := n.severed[self]
	delete(n.severed, self)
	n.mu.Unlock()
	for _, e := range severed {
		e.close()
	}
}

// Sever is Detach without waiting: what is being delivered to the node may still run. Detach must follow.
func (n *Network) Sever(self kv.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lives[self]++
	if e := n.endpoints[self]; e != nil {
		n.severed[self] = append(n.severed[self], e)
		delete(n.endpoints, self)
	}
	n.breakLinks(func(l *link) bool { return l.to == self || l.wire.self == self })
}

// Close ends the network: every link breaks and every endpoint's goroutine ends.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	old := n.endpoints
	n.endpoints = map[kv.NodeID]*endpoint{}
	severed := n.severed
	n.severed = map[kv.NodeID][]*endpoint{}
	n.breakLinks(func(*link) bool { return true })
	n.mu.Unlock()
	for _, e := range old {
		e.close()
	}
	for _, es := range severed {
		for _, e := range es {
			e.close()
		}
	}
}

// breakLinks breaks the links that are chosen. mu must be held.
func (n *Network) breakLinks(chosen func(*link) bool) {
	for l := range n.links {
		if chosen(l) {
			n.breakLink(l, errRefused)
		}
	}
}

// breakLink breaks a link; the first reason stays. mu must be held.
func (n *Network) breakLink(l *link, err error) {
	if l.err == nil {
		l.err = err
		close(l.broken)
		delete(n.links, l)
	}
}

// cutSince returns since when messages get lost in one of the two directions. mu must be held.
func (n *Network) cutSince(a, b kv.NodeID) (since time.Time, cut bool) {
	for _, d := range [2]direction{{a, b}, {b, a}} {
		if t, ok := n.cuts[d]; ok && (!cut || t.Before(since)) {
			since, cut = t, true
		}
	}
	return since, cut
}

// conditions returns those of one direction. mu must be held.
func (n *Network) conditions(from, to kv.NodeID) Conditions {
	if c, ok := n.special[direction{from, to}]; ok {
		return c
	}
	return n.everywhere
}

// delay draws how long a batch is under way. mu must be held.
func (n *Network) delay(c Conditions) time.Duration {
	if c.DelayMax <= c.DelayMin {
		return c.DelayMin
	}
	return c.DelayMin + time.Duration(n.rand.Int64N(int64(c.DelayMax-c.DelayMin)+1))
}

func (n *Network) hits(probability float64) bool {
	return probability > 0 && n.rand.Float64() < probability
}

// wire is one life of a node's access to the network.
type wire struct {
	net  *Network
	self kv.NodeID
	life uint64
}

// Wire returns the access of the node's present life. After Detach it fails for good and the next life needs another.
func (n *Network) Wire(self kv.NodeID) transport.Wire {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &wire{net: n, self: self, life: n.lives[self]}
}

// usable says why the wire is of no use, if so. The network's mu must be held.
func (w *wire) usable() error {
	switch {
	case w.net.closed:
		return errClosed
	case w.net.lives[w.self] != w.life:
		return errFenced
	}
	return nil
}

// Connect implements transport.Wire. Over a cut it takes as long as ctx lets it.
func (w *wire) Connect(ctx context.Context, to kv.NodeID) (transport.Link, error) {
	n := w.net
	n.mu.Lock()
	wait := n.delay(n.conditions(w.self, to)) + n.delay(n.conditions(to, w.self))
	n.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(wait):
	}
	l, err := w.connect(to)
	if errors.Is(err, errTimeout) {
		<-ctx.Done()
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (w *wire) connect(to kv.NodeID) (*link, error) {
	n := w.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := w.usable(); err != nil {
		return nil, err
	}
	if _, cut := n.cutSince(w.self, to); cut {
		return nil, errTimeout
	}
	target := n.endpoints[to]
	if target == nil {
		return nil, fmt.Errorf("%w: node %d does not run", errRefused, to)
	}
	l := &link{wire: w, to: to, target: target, broken: make(chan struct{})}
	n.links[l] = struct{}{}
	return l, nil
}

// link implements transport.Link.
type link struct {
	wire   *wire
	to     kv.NodeID
	target *endpoint
	broken chan struct{}
	// The network's mu guards the fields below.
	err     error
	lastDue time.Time
}

// Send implements transport.Link. It never blocks.
func (l *link) Send(batch []byte) error {
	if err := l.carry(batch); err != nil {
		return err
	}
	if watch := l.wire.net.watch; watch != nil {
		watch(l.wire.self, l.to, batch)
	}
	return nil
}

func (l *link) carry(batch []byte) error {
	n, now := l.wire.net, time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := l.wire.usable(); err != nil {
		n.breakLink(l, err)
	}
	if since, cut := n.cutSince(l.wire.self, l.to); cut && now.Sub(since) >= breakAfter {
		n.breakLink(l, errTimeout)
	}
	if l.err != nil {
		return l.err
	}
	c := n.conditions(l.wire.self, l.to)
	if n.meets(direction{l.wire.self, l.to}) {
		return nil
	}
	if n.hits(c.Loss) {
		n.stats.Lost++
		return nil
	}
	due := now.Add(n.delay(c))
	for _, node := range [2]kv.NodeID{l.wire.self, l.to} {
		if until := n.holds[node]; until.After(due) {
			n.stats.Held++
			n.held[node]++
			due = until
		}
	}
	if due.Before(l.lastDue) {
		if c.Reorder {
			n.stats.Overtaken++
		} else {
			due = l.lastDue
		}
	}
	l.lastDue = due
	l.target.put(n, parcel{due: due, link: l, batch: append([]byte(nil), batch...)})
	if n.hits(c.Duplicate) {
		n.stats.Duplicated++
		l.target.put(n, parcel{due: now.Add(n.delay(c)), link: l, batch: append([]byte(nil), batch...)})
	}
	return nil
}

// Broken implements transport.Link.
func (l *link) Broken() <-chan struct{} { return l.broken }

// Err implements transport.Link.
func (l *link) Err() error {
	l.wire.net.mu.Lock()
	defer l.wire.net.mu.Unlock()
	return l.err
}

// Close implements transport.Link. What was sent before still arrives.
func (l *link) Close() error {
	l.fail(transport.ErrClosed)
	return nil
}

func (l *link) fail(err error) {
	n := l.wire.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.breakLink(l, err)
}
