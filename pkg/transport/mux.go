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
	"github.com/caprockdb/caprock/quorum"
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
	// epochSeen is the highest epoch that any peer's batch had.
	epochSeen atomic.Uint64

	// peers is replaced, never changed, so that looking one up takes no lock.
	peers atomic.Pointer[map[kv.NodeID]*peer]
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
		handler: deps.Handler, log: deps.Logger, faults: deps.Faults, rand: deps.Rand,
		life: uint64(life), began: time.Now(),
		sweep: make(chan struct{}, 1), added: make(chan struct{}, 1),
	}
	m.peers.Store(&map[kv.NodeID]*peer{})
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
func (m *Mux) peer(id kv.NodeID) (*peer, error) {
	if p := (*m.peers.Load())[id]; p != nil {
		return p, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.peers.Load()
	switch {
	case old[id] != nil:
		return old[id], nil
	case m.closed.Load():
		return nil, ErrClosed
	case len(old) >= m.cfg.PeersMax:
		return nil, fmt.Errorf("%w: %d", errTooManyPeers, len(old))
	}
	p := newPeer(m, id)
	peers := make(map[kv.NodeID]*peer, len(old)+1)
	for k, v := range old {
		peers[k] = v
	}
	peers[id] = p
	m.peers.Store(&peers)
	m.starting = append(m.starting, p)
	poke(m.added)
	return p, nil
}

// Forget ends the traffic with a node that has left the cluster. Calls to it fail.
func (m *Mux) Forget(id kv.NodeID) {
	m.mu.Lock()
	old := *m.peers.Load()
	p := old[id]
	if p != nil {
		peers := make(map[kv.NodeID]*peer, len(old))
		for k, v := range old {
			if k != id {
				peers[k] = v
			}
		}
		m.peers.Store(&peers)
	}
	m.mu.Unlock()
	if p != nil {
		close(p.gone)
	}
}

// Relocated tells that the peer has a new address, so that the next attempt to connect need not wait.
func (m *Mux) Relocated(id kv.NodeID) {
	if p := (*m.peers.Load())[id]; p != nil && p.down.Load() {
		poke(p.retry)
	}
}

// EpochSeen returns the highest epoch of the partition map that any peer was heard to have.
func (m *Mux) EpochSeen() kv.Epoch { return kv.Epoch(m.epochSeen.Load()) }

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

// Write implements quorum.Replica. ctx gives the deadline; its end before that is not noticed, so that a call needs no
// goroutine. done runs once: before Write returns when the request was not sent, or on the goroutine that delivers the
// reply, ends the link or looks for overdue calls. It must not block.
func (m *Mux) Write(ctx context.Context, to kv.NodeID, w quorum.WriteRequest, done func(quorum.WriteReply, error)) {
	if to == m.self {
		m.handler.HandleWrite(to, w, done)
		return
	}
	c := &call{kind: kindWrite, changes: true, onWrite: done}
	if _, err := m.request(ctx, to, c, w.Epoch, func(dst []byte) []byte { return appendWrite(dst, &w) }); err != nil {
		done(quorum.WriteReply{}, err)
	}
}

// Read implements quorum.Replica, like Write. The error of a read always says that nothing was applied.
func (m *Mux) Read(ctx context.Context, to kv.NodeID, r quorum.ReadRequest, done func(quorum.ReadReply, error)) {
	if to == m.self {
		m.handler.HandleRead(to, r, done)
		return
	}
	c := &call{kind: kindRead, onRead: done}
	if _, err := m.request(ctx, to, c, r.Epoch, func(dst []byte) []byte { return appendRead(dst, &r) }); err != nil {
		done(quorum.ReadReply{}, err)
	}
}

// Forward has the peer execute the request and waits for its response. An error that is no *kv.Error of the peer's own
// says what is known about the request: see ErrNotSent.
func (m *Mux) Forward(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error) {
	if to == m.self {
		deadline := m.deadline(ctx, time.Now())
		return wait(ctx, deadline, r.Op.IsWrite(), func(reply func(kv.Response, error)) {
			m.handler.HandleForward(to, *r, deadline, reply)
		})
	}
	body, err := m.await(ctx, to, kindForward, r.Op.IsWrite(), func(dst []byte) []byte { return kv.AppendRequest(dst, r) })
	if err != nil {
		return kv.Response{}, err
	}
	resp, err := kv.DecodeResponse(body)
	if err != nil {
		e := kv.Errorf(kv.CodeInternal, "unreadable response of node %d: %w", to, err)
		if r.Op.IsWrite() {
			e = e.WithOutcome(kv.OutcomeUnknown)
		}
		return kv.Response{}, e
	}
	return resp, nil
}

// Exchange hands an anti-entropy message to the peer and waits for the answer, which is the caller's to keep.
func (m *Mux) Exchange(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	if to == m.self {
		return wait(ctx, m.deadline(ctx, time.Now()), true, func(reply func([]byte, error)) { m.handler.HandleExchange(to, payload, reply) })
	}
	return m.await(ctx, to, kindExchange, true, func(dst []byte) []byte { return append(dst, payload...) })
}

// Meta hands a command for group 0 to the peer and waits for the answer, which is the caller's to keep.
func (m *Mux) Meta(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	if to == m.self {
		return wait(ctx, m.deadline(ctx, time.Now()), true, func(reply func([]byte, error)) { m.handler.HandleMeta(to, payload, reply) })
	}
	return m.await(ctx, to, kindMeta, true, func(dst []byte) []byte { return append(dst, payload...) })
}

// answer is what a call ends with.
type answer[T any] struct {
	value T
	err   error
}

// wait runs a handler's method for the node itself and waits for its reply, until the deadline or the end of ctx.
func wait[T any](ctx context.Context, deadline time.Time, changes bool, start func(reply func(T, error))) (T, error) {
	done := make(chan answer[T], 1)
	start(func(v T, err error) { done <- answer[T]{v, err} })
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, (&call{changes: changes}).lost(kv.CodeDeadlineExceeded, errOverdue)
	}
}

// await makes a call and waits for its reply.
func (m *Mux) await(ctx context.Context, to kv.NodeID, k kind, changes bool, body func([]byte) []byte) ([]byte, error) {
	done := make(chan answer[[]byte], 1)
	c := &call{kind: k, changes: changes, onBytes: func(b []byte, err error) { done <- answer[[]byte]{b, err} }}
	p, err := m.request(ctx, to, c, m.epoch(), body)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
	}
	if err := p.cancel(c); err != nil {
		return nil, err
	}
	a := <-done // it ended by itself at that moment, and its callback is about to run
	return a.value, a.err
}

// request sends a request. Its error says that nothing was sent, and then the call's callback does not run.
func (m *Mux) request(ctx context.Context, to kv.NodeID, c *call, epoch kv.Epoch, body func([]byte) []byte) (*peer, error) {
	if err := ctx.Err(); err != nil {
		m.metrics.callFailed(callNotSent)
		return nil, notSent(kv.CodeDeadlineExceeded, "the request to node %d came too late", to)
	}
	p, err := m.peer(to)
	if err != nil {
		m.metrics.callFailed(callNotSent)
		return nil, notSent(kv.CodeNotReady, "node %d cannot be sent to (%v)", to, err)
	}
	now := time.Now()
	deadline := m.deadline(ctx, now)
	err = p.request(c, deadline, func(dst []byte) []byte {
		return body(appendRequestPrefix(dst, epoch, deadline.Sub(now)))
	})
	return p, err
}

// deadline is when a call is overdue that is made now.
func (m *Mux) deadline(ctx context.Context, now time.Time) time.Time {
	if d, ok := ctx.Deadline(); ok {
		if latest := now.Add(m.cfg.CallTimeoutMax); d.After(latest) {
			return latest
		}
		return d
	}
	return now.Add(m.cfg.CallTimeout)
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
		for _, p := range *m.peers.Load() {
			p.expire(tick)
		}
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

// What else the Mux implements is checked where the two sides meet, in pkg/node.
var _ quorum.Replica = (*Mux)(nil)
