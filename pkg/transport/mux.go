package transport

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Mux carries the traffic with all peers over one link a peer and direction. It implements consensus.Sender,
// quorum.Replica and what the node needs to forward requests, exchanges and metadata commands.
type Mux struct {
	cfg     Config
	self    kv.NodeID
	wire    Wire
	clock   Clock
	epoch   func() kv.Epoch
	cluster func() uint64
	handler Handler
	pull    func(from kv.NodeID, payload []byte, reply func([]byte, error)) // nil refuses
	log     *slog.Logger
	metrics *metrics
	faults  *Faults
	delays  *delayLine // nil without faults

	// life tells this start of the node from earlier ones, and is where the ids of requests start: a reply to an earlier
	// life's request never has the id of one of this life, because a clock reading is above all earlier ones by far more
	// than the number of requests made meanwhile.
	life uint64
	// began is what ticks count from.
	began time.Time
	// inFlight counts the calls that wait for a reply; sweep wakes the sweeper when there is a first one.
	inFlight atomic.Int64
	sweep    chan struct{}

	// peers is replaced, never changed, so that looking one up takes no lock.
	peers atomic.Pointer[map[kv.NodeID]*peer]
	// bulk are the same nodes once more, with the links of bulk.go.
	bulk atomic.Pointer[map[kv.NodeID]*peer]
	// added wakes Run when there are peers to start.
	added chan struct{}

	// mu guards the fields below, and the replacing of peers.
	mu sync.Mutex
	// starting holds peers whose senders Run has not started.
	starting []*peer
	rand     *rand.Rand
	// closed is written under mu and read without it by those who can live with having been a moment too early.
	closed atomic.Bool
}

// New returns a Mux. It queues from now on and sends once Run runs.
func New(cfg Config, deps Deps) (*Mux, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	life, err := deps.Clock.Now()
	if err != nil {
		return nil, fmt.Errorf("transport: read the clock: %w", err)
	}
	m := &Mux{
		cfg: cfg, self: deps.Self, wire: deps.Wire, clock: deps.Clock, epoch: deps.Epoch, cluster: deps.Cluster,
		handler: deps.Handler, pull: deps.Pull, log: deps.Logger, faults: deps.Faults, rand: deps.Rand,
		life: uint64(life), began: time.Now(),
		sweep: make(chan struct{}, 1), added: make(chan struct{}, 1),
	}
	m.peers.Store(&map[kv.NodeID]*peer{})
	m.bulk.Store(&map[kv.NodeID]*peer{})
	if m.faults != nil {
		m.delays = newDelayLine(cfg.DelayedBytesMax, m.undelay, func(d *delayed) {
			m.metrics.dropped(d.class, reasonFull)
		})
	}
	if m.metrics, err = newMetrics(deps.Registerer, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Run keeps links to the peers that are sent to, until ctx is done; then it ends every call and returns nil.
func (m *Mux) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer func() {
		m.close()
		running.Wait()
	}()
	running.Go(func() { m.sweepUntil(ctx) })
	if m.delays != nil {
		running.Go(func() { m.delays.run(ctx) })
	}
	for {
		for _, p := range m.takeStarting() {
			running.Go(func() { p.run(ctx) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.added:
		}
	}
}

func (m *Mux) takeStarting() []*peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.starting
	m.starting = nil
	return out
}

// close refuses new peers and ends those whose senders were never started. The others end with their senders.
func (m *Mux) close() {
	m.mu.Lock()
	m.closed.Store(true)
	never := m.starting
	m.starting = nil
	m.mu.Unlock()
	for _, p := range never {
		p.close(ErrClosed)
	}
}

// peer returns the peer, which it makes if need be.
func (m *Mux) peer(id kv.NodeID) (*peer, error) { return m.peerIn(&m.peers, id) }

// peerIn returns the peer of one of the two maps.
func (m *Mux) peerIn(in *atomic.Pointer[map[kv.NodeID]*peer], id kv.NodeID) (*peer, error) {
	if p := (*in.Load())[id]; p != nil {
		return p, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *in.Load()
	switch {
	case old[id] != nil:
		return old[id], nil
	case m.closed.Load():
		return nil, ErrClosed
	case len(old) >= m.cfg.PeersMax:
		return nil, fmt.Errorf("%w: %d", errTooManyPeers, len(old))
	}
	p := newPeer(m, id)
	p.bulk = in == &m.bulk
	peers := make(map[kv.NodeID]*peer, len(old)+1)
	for k, v := range old {
		peers[k] = v
	}
	peers[id] = p
	in.Store(&peers)
	m.starting = append(m.starting, p)
	poke(m.added)
	return p, nil
}

// each calls fn for each peer, those of the bulk links included.
func (m *Mux) each(fn func(p *peer)) {
	for _, peers := range [...]map[kv.NodeID]*peer{*m.peers.Load(), *m.bulk.Load()} {
		for _, p := range peers {
			fn(p)
		}
	}
}

// Forget ends the traffic with a node that has left the cluster. Calls to it fail.
func (m *Mux) Forget(id kv.NodeID) {
	m.forget(&m.peers, id)
	m.forget(&m.bulk, id)
}

func (m *Mux) forget(in *atomic.Pointer[map[kv.NodeID]*peer], id kv.NodeID) {
	m.mu.Lock()
	old := *in.Load()
	p := old[id]
	if p != nil {
		peers := make(map[kv.NodeID]*peer, len(old))
		for k, v := range old {
			if k != id {
				peers[k] = v
			}
		}
		in.Store(&peers)
	}
	m.mu.Unlock()
	if p != nil {
		close(p.gone)
	}
}

// Relocated tells that the peer has a new address, so that the next attempt to connect need not wait.
func (m *Mux) Relocated(id kv.NodeID) {
	m.each(func(p *peer) {
		if p.id == id && p.down.Load() {
			poke(p.retry)
		}
	})
}

// Connected reports whether there is a link to the peer.
func (m *Mux) Connected(id kv.NodeID) bool {
	p := (*m.peers.Load())[id]
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == linkUp
}

// Send implements consensus.Sender: it queues a Raft frame, which it copies. It never blocks; false means that the frame
// was dropped.
func (m *Mux) Send(to kv.NodeID, frame []byte) bool {
	if to == m.self {
		m.handler.HandleRaft(to, frame)
		return true
	}
	p, err := m.peer(to)
	if err != nil {
		m.metrics.dropped(ClassRaft, reasonClosed)
		return false
	}
	return p.sendRaft(frame)
}

// header is what the next batch begins with. The clock is read after its frames were queued, so that it is at or above
// every reading in them.
func (m *Mux) header() header {
	return header{from: m.self, life: m.life, cluster: m.cluster(), clock: m.clock.Last(), epoch: m.epoch()}
}

// jitter returns a random duration below limit.
func (m *Mux) jitter(limit time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Duration(m.rand.Int64N(int64(limit) + 1))
}

// tickAfter returns the first tick at which the deadline has passed.
func (m *Mux) tickAfter(deadline time.Time) uint64 {
	return uint64(max(deadline.Sub(m.began), 0)/m.cfg.SweepEvery) + 1
}

func (m *Mux) callStarted() {
	if m.inFlight.Add(1) == 1 {
		poke(m.sweep)
	}
}

func (m *Mux) callEnded() { m.inFlight.Add(-1) }

// sweepUntil ends overdue calls. It sleeps for good while there are none: an idle node does not wake a hundred times a
// second.
func (m *Mux) sweepUntil(ctx context.Context) {
	timer := time.NewTimer(m.cfg.SweepEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		tick := uint64(time.Since(m.began) / m.cfg.SweepEvery)
		m.each(func(p *peer) { p.expire(tick) })
		for m.inFlight.Load() == 0 {
			select {
			case <-ctx.Done():
				return
			case <-m.sweep:
			}
		}
		timer.Reset(m.cfg.SweepEvery)
	}
}
