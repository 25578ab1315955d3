package consensus

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const linkPacketsMax = 10000

// network delivers frames after a delay, in order for each pair of nodes.
type network struct {
	delay time.Duration
	// observe sees every frame before it is sent; nil for nothing.
	observe func(from, to kv.NodeID, frame []byte)
	// lose swallows the frames that it returns true for; nil for none.
	lose func(from, to kv.NodeID, frame []byte) bool

	mu      sync.Mutex
	inboxes map[kv.NodeID]func(from kv.NodeID, frame []byte)
	cut     map[[2]kv.NodeID]bool
	full    map[[2]kv.NodeID]bool // the queue is full: Send says so
	links   map[[2]kv.NodeID]chan packet
	wg      sync.WaitGroup
	closed  bool
}

type packet struct {
	due   time.Time
	frame []byte
}

func newNetwork(delay time.Duration) *network {
	return &network{
		delay: delay, inboxes: make(map[kv.NodeID]func(kv.NodeID, []byte)), cut: make(map[[2]kv.NodeID]bool),
		full:  make(map[[2]kv.NodeID]bool),
		links: make(map[[2]kv.NodeID]chan packet),
	}
}

type sender struct {
	net    *network
	from   kv.NodeID
	fenced *atomic.Bool
}

func (s sender) Send(to kv.NodeID, frame []byte) bool {
	if s.fenced.Load() {
		return false
	}
	if s.net.observe != nil {
		s.net.observe(s.from, to, frame)
	}
	if s.net.lose != nil && s.net.lose(s.from, to, frame) {
		return true
	}
	return s.net.send(s.from, to, frame)
}

func (n *network) send(from, to kv.NodeID, frame []byte) bool {
	if n.delay == 0 {
		n.deliver(from, to, frame)
		return true
	}
	p := packet{due: time.Now().Add(n.delay), frame: append([]byte(nil), frame...)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.cut[[2]kv.NodeID{from, to}] {
		return !n.closed
	}
	if n.full[[2]kv.NodeID{from, to}] {
		return false
	}
	link := n.links[[2]kv.NodeID{from, to}]
	if link == nil {
		link = make(chan packet, linkPacketsMax)
		n.links[[2]kv.NodeID{from, to}] = link
		n.wg.Go(func() {
			for p := range link {
				time.Sleep(time.Until(p.due))
				n.deliver(from, to, p.frame)
			}
		})
	}
	select {
	case link <- p:
		return true
	default:
		return false
	}
}

func (n *network) deliver(from, to kv.NodeID, frame []byte) {
	n.mu.Lock()
	in := n.inboxes[to]
	if n.cut[[2]kv.NodeID{from, to}] {
		in = nil
	}
	n.mu.Unlock()
	if in != nil {
		in(from, frame)
	}
}

func (n *network) plug(id kv.NodeID, in func(kv.NodeID, []byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.inboxes[id] = in
}

// isolate cuts, or heals, both directions between the node and all others.
func (n *network) isolate(id kv.NodeID, others []kv.NodeID, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range others {
		n.cut[[2]kv.NodeID{id, o}] = cut
		n.cut[[2]kv.NodeID{o, id}] = cut
	}
}

func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	for _, l := range n.links {
		close(l)
	}
	n.mu.Unlock()
	n.wg.Wait()
}

var errCut = errors.New("the network is cut")

// puller carries pulls between the nodes of a cluster, over the same cuts as frames.
type puller struct {
	c      *cluster
	from   kv.NodeID
	fenced *atomic.Bool
}

func (p puller) Pull(ctx context.Context, to kv.NodeID, request []byte) ([]byte, error) {
	if hook := p.c.onPull; hook != nil {
		hook(p.from, to, request)
	}
	if !p.reaches(ctx, p.from, to) {
		return nil, errCut
	}
	n := p.c.nodes[to]
	n.mu.RLock()
	store, fenced, up := n.store, n.fenced, n.up
	if up {
		n.serving.Add(1)
	}
	n.mu.RUnlock()
	if !up {
		return nil, errCut
	}
	defer n.serving.Done()
	answer, err := store.ServePull(ctx, p.from, request)
	if fenced.Load() || !p.reaches(ctx, to, p.from) {
		return nil, errCut
	}
	return answer, err
}

// reaches takes as long as the network does.
func (p puller) reaches(ctx context.Context, from, to kv.NodeID) bool {
	if p.c.net.delay > 0 && !sleep(ctx, p.c.net.delay) {
		return false
	}
	p.c.net.mu.Lock()
	defer p.c.net.mu.Unlock()
	return !p.fenced.Load() && !p.c.net.cut[[2]kv.NodeID{from, to}]
}
