package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Bounds of a simulated gossip endpoint. What exceeds them is dropped, as a network does.
const (
	gossipPacketsMax = 256
	gossipStreamsMax = 16
	gossipDelayMax   = 5 * time.Millisecond
)

// gossipLinger is how long probes of memberlist may outlive its Shutdown. In a bubble they must end before the test does,
// because time stops with it.
const gossipLinger = 10 * time.Second

var errUnreachable = errors.New("sim: gossip peer is unreachable")

// GossipNetwork is an in-memory network for memberlist. Unlike memberlist's own mock it never blocks: packets to a full
// queue, to a cut link or to an endpoint that has shut down are dropped, and dialling those fails at once.
type GossipNetwork struct {
	mu        sync.Mutex // guards what follows; nothing blocks while it is held
	rand      *rand.Rand
	endpoints map[string]*gossipEndpoint
	cuts      map[[2]string]bool
	loss      float64
}

// NewGossipNetwork returns a network without endpoints, cuts and loss.
func NewGossipNetwork(r *rand.Rand) *GossipNetwork {
	return &GossipNetwork{rand: r, endpoints: map[string]*gossipEndpoint{}, cuts: map[[2]string]bool{}}
}

// Transport opens the endpoint at addr, an IP and port. An endpoint that was open there is shut down: its node crashed.
func (g *GossipNetwork) Transport(addr string) (memberlist.Transport, error) {
	udp, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("sim: gossip address: %w", err)
	}
	e := &gossipEndpoint{
		network: g, addr: addr, udp: udp,
		packets: make(chan *memberlist.Packet, gossipPacketsMax),
		streams: make(chan net.Conn, gossipStreamsMax),
	}
	g.mu.Lock()
	old := g.endpoints[addr]
	g.endpoints[addr] = e
	g.mu.Unlock()
	if old != nil {
		old.close()
	}
	return e, nil
}

// Remove silences the endpoint at addr, if any: what its node still says reaches nobody.
func (g *GossipNetwork) Remove(addr string) {
	g.mu.Lock()
	old := g.endpoints[addr]
	delete(g.endpoints, addr)
	g.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// SetCut cuts or mends one direction between two addresses. Streams that are open go on; memberlist's are short.
func (g *GossipNetwork) SetCut(from, to string, cut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cuts[[2]string{from, to}] = cut
}

// SetLoss sets the share of packets, 0 to 1, that are lost.
func (g *GossipNetwork) SetLoss(p float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.loss = p
}

// path returns the endpoint that a packet from e to addr arrives at, nil when it does not.
func (g *GossipNetwork) path(e *gossipEndpoint, addr string) *gossipEndpoint {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.endpoints[e.addr] != e || g.cuts[[2]string{e.addr, addr}] {
		return nil
	}
	return g.endpoints[addr]
}

// roll decides whether a packet is lost, and how long it takes otherwise.
func (g *GossipNetwork) roll() (lost bool, delay time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rand.Float64() < g.loss, time.Duration(g.rand.Int64N(int64(gossipDelayMax)))
}

// gossipEndpoint is one node's end of the network.
type gossipEndpoint struct {
	network *GossipNetwork
	addr    string
	udp     *net.UDPAddr
	packets chan *memberlist.Packet
	streams chan net.Conn

	mu     sync.Mutex // guards what follows
	closed bool
	conns  []net.Conn
}

var _ memberlist.Transport = (*gossipEndpoint)(nil)

// FinalAdvertiseAddr implements memberlist.Transport.
func (e *gossipEndpoint) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return e.udp.IP, e.udp.Port, nil
}

// WriteTo implements memberlist.Transport. It never fails: a packet that does not arrive is lost, as in UDP.
func (e *gossipEndpoint) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	lost, delay := e.network.roll()
	if lost || e.network.path(e, addr) == nil {
		return now, nil
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: e.udp}
	time.AfterFunc(delay, func() {
		if to := e.network.path(e, addr); to != nil {
			p.Timestamp = time.Now()
			to.receive(p)
		}
	})
	return now, nil
}

func (e *gossipEndpoint) receive(p *memberlist.Packet) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	select {
	case e.packets <- p:
	default: // the queue is full: the packet is lost
	}
}

// PacketCh implements memberlist.Transport.
func (e *gossipEndpoint) PacketCh() <-chan *memberlist.Packet { return e.packets }

// DialTimeout implements memberlist.Transport.
func (e *gossipEndpoint) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	to := e.network.path(e, addr)
	if to == nil || to.network.path(to, e.addr) == nil {
		return nil, errUnreachable
	}
	mine, theirs := net.Pipe()
	if !e.keep(mine) || !to.offer(theirs) {
		return nil, errors.Join(errUnreachable, mine.Close(), theirs.Close())
	}
	return mine, nil
}

// keep notes a connection, so that closing the endpoint ends it. false: the endpoint is closed.
func (e *gossipEndpoint) keep(c net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.conns = append(e.conns, c)
	if len(e.conns) > gossipStreamsMax {
		// memberlist's streams are short; the oldest has ended long ago, and closing it twice does no harm.
		_ = e.conns[0].Close()
		e.conns = e.conns[1:]
	}
	return true
}

// offer hands a connection to the endpoint's node. false: it is closed or does not keep up.
func (e *gossipEndpoint) offer(c net.Conn) bool {
	if !e.keep(c) {
		return false
	}
	select {
	case e.streams <- c:
		return true
	default:
		return false
	}
}

// StreamCh implements memberlist.Transport.
func (e *gossipEndpoint) StreamCh() <-chan net.Conn { return e.streams }

// Shutdown implements memberlist.Transport.
func (e *gossipEndpoint) Shutdown() error {
	e.network.mu.Lock()
	if e.network.endpoints[e.addr] == e {
		delete(e.network.endpoints, e.addr)
	}
	e.network.mu.Unlock()
	e.close()
	return nil
}

func (e *gossipEndpoint) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, c := range e.conns {
		_ = c.Close() // a pipe's Close cannot fail
	}
	e.conns = nil
}
