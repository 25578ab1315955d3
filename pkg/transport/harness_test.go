package transport

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeClock is a hybrid clock that moves only when it is told to.
type fakeClock struct {
	mu   sync.Mutex // guards last
	last causal.HLC
	skew error
}

func (c *fakeClock) Now() (causal.HLC, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	return c.last, nil
}

func (c *fakeClock) Last() causal.HLC {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *fakeClock) Observe(h causal.HLC) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.skew != nil {
		return c.skew
	}
	c.last = max(c.last, h)
	return nil
}

// fakeNode answers requests by the functions that a test sets.
type fakeNode struct {
	mu     sync.Mutex // guards what follows
	raft   [][]byte
	writes []quorum.WriteRequest
	reads  []quorum.ReadRequest
	// hold keeps replies back; held collects them.
	hold     bool
	groups   int // requests that came in groups count as one
	held     []func()
	onWrite  func(quorum.WriteRequest) (quorum.WriteReply, error)
	onRead   func(quorum.ReadRequest) (quorum.ReadReply, error)
	onFwd    func(kv.Request, time.Time) (kv.Response, error)
	onScan   func(quorum.ScanRequest) (quorum.ScanReply, error)
	onOpaque func([]byte) ([]byte, error)
}

func (n *fakeNode) answer(f func()) {
	n.mu.Lock()
	hold := n.hold
	if hold {
		n.held = append(n.held, f)
	}
	n.mu.Unlock()
	if !hold {
		f()
	}
}

func (n *fakeNode) release() {
	n.mu.Lock()
	held := n.held
	n.held = nil
	n.mu.Unlock()
	for _, f := range held {
		f()
	}
}

func (n *fakeNode) HandleRaft(_ kv.NodeID, frame []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.raft = append(n.raft, slices.Clone(frame))
}

func (n *fakeNode) HandleWrites(_ kv.NodeID, ws []quorum.WriteRequest, reply func([]quorum.WriteResult)) {
	n.mu.Lock()
	n.groups++
	f := n.onWrite
	n.mu.Unlock()
	n.answer(func() {
		results := make([]quorum.WriteResult, len(ws))
		for i := range ws {
			if results[i].Reply.Accepted = f == nil; f != nil {
				results[i].Reply, results[i].Err = f(ws[i])
			}
		}
		reply(results)
	})
}

func (n *fakeNode) HandleReads(_ kv.NodeID, rs []quorum.ReadRequest, reply func([]quorum.ReadResult)) {
	n.mu.Lock()
	n.groups++
	n.mu.Unlock()
	n.answer(func() {
		results := make([]quorum.ReadResult, len(rs))
		for i := range rs {
			results[i].Reply, results[i].Err = n.onRead(rs[i])
		}
		reply(results)
	})
}

func (n *fakeNode) HandleForwards(_ kv.NodeID, rs []kv.Request, deadline time.Time, reply func([]kv.Answer)) {
	n.mu.Lock()
	n.groups++
	n.mu.Unlock()
	n.answer(func() {
		answers := make([]kv.Answer, len(rs))
		for i := range rs {
			var err error
			if answers[i].Response, err = n.onFwd(rs[i], deadline); err != nil {
				answers[i].Err = kv.AsError(err)
			}
		}
		reply(answers)
	})
}

func (n *fakeNode) HandleWrite(_ kv.NodeID, w quorum.WriteRequest, reply func(quorum.WriteReply, error)) {
	n.mu.Lock()
	n.writes = append(n.writes, w)
	f := n.onWrite
	n.mu.Unlock()
	n.answer(func() {
		if f == nil {
			reply(quorum.WriteReply{Accepted: true}, nil)
			return
		}
		reply(f(w))
	})
}

func (n *fakeNode) HandleRead(_ kv.NodeID, r quorum.ReadRequest, reply func(quorum.ReadReply, error)) {
	n.mu.Lock()
	n.reads = append(n.reads, r)
	f := n.onRead
	n.mu.Unlock()
	n.answer(func() {
		if f == nil {
			reply(quorum.ReadReply{}, nil)
			return
		}
		reply(f(r))
	})
}

func (n *fakeNode) HandleForward(_ kv.NodeID, r kv.Request, deadline time.Time, reply func(kv.Response, error)) {
	n.answer(func() { reply(n.onFwd(r, deadline)) })
}

func (n *fakeNode) HandleScan(_ kv.NodeID, r quorum.ScanRequest, reply func(quorum.ScanReply, error)) {
	n.answer(func() { reply(n.onScan(r)) })
}

func (n *fakeNode) HandleExchange(_ kv.NodeID, b []byte, reply func([]byte, error)) {
	n.answer(func() { reply(n.onOpaque(b)) })
}

func (n *fakeNode) HandleMeta(_ kv.NodeID, b []byte, reply func([]byte, error)) {
	n.answer(func() { reply(n.onOpaque(b)) })
}

func (n *fakeNode) rafts() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.raft)
}

func (n *fakeNode) written() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.writes)
}

// station is one mux on the board.
type station struct {
	*Mux
	node  *fakeNode
	clock *fakeClock
	reg   *prometheus.Registry
	stop  func()
}

type option func(*Config, *Deps)

func withFaults(f *Faults) option { return func(_ *Config, d *Deps) { d.Faults = f } }

func withCluster(id uint64) option {
	return func(_ *Config, d *Deps) { d.Cluster = func() uint64 { return id } }
}

func tuned(f func(*Config)) option { return func(c *Config, _ *Deps) { f(c) } }

// newStation makes a mux that does not run yet, and is not on the board.
func newStation(t testing.TB, w Wire, id kv.NodeID, opts ...option) *station {
	t.Helper()
	s := &station{node: &fakeNode{}, clock: &fakeClock{last: causal.MakeHLC(time.Now().UnixMilli(), 0)}, reg: prometheus.NewRegistry()}
	cfg, deps := DefaultConfig(), Deps{
		Self: id, Wire: w, Clock: s.clock, Handler: s.node, Logger: slog.New(slog.DiscardHandler), Registerer: s.reg,
		Epoch: func() kv.Epoch { return 7 }, Cluster: func() uint64 { return 1 }, Rand: rand.New(rand.NewPCG(uint64(id), 1)),
	}
	for _, o := range opts {
		o(&cfg, &deps)
	}
	var err error
	s.Mux, err = New(cfg, deps)
	require.NoError(t, err)
	return s
}

// start runs the mux until stop or the end of the test.
func (s *station) start(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(t, <-done)
		})
	}
}

// pair puts two running muxes, 1 and 2, on a board. In a bubble, the caller stops them.
func pair(t testing.TB, opts ...option) (b *board, one, two *station, stop func()) {
	t.Helper()
	b = newBoard()
	one = newStation(t, boardWire{b, 1}, 1, opts...)
	two = newStation(t, boardWire{b, 2}, 2)
	b.plug(1, one.Mux)
	b.plug(2, two.Mux)
	one.start(t)
	two.start(t)
	return b, one, two, func() {
		one.stop()
		two.stop()
	}
}

// metric sums a metric over its labels.
func (s *station) metric(t testing.TB, name string) (sum float64) {
	t.Helper()
	families, err := s.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "kvstore_transport_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// outcome is how a call ended.
type outcome struct {
	reply quorum.WriteReply
	err   error
	after time.Duration
}

// write sends a write of the key and returns where its outcome will come.
func (s *station) write(t testing.TB, to kv.NodeID, key string, timeout time.Duration) <-chan outcome {
	t.Helper()
	out := make(chan outcome, 2) // room for the second one that must not come
	began := time.Now()
	ctx, cancel := context.WithDeadline(context.Background(), began.Add(timeout))
	defer cancel()
	s.Write(ctx, to, quorum.WriteRequest{Partition: 3, Epoch: 7, Key: []byte(key), Set: setOf(key), New: dotOf(key)},
		func(r quorum.WriteReply, err error) { out <- outcome{r, err, time.Since(began)} })
	return out
}

func dotOf(key string) causal.Dot {
	return causal.Dot{Node: 9, Time: causal.MakeHLC(int64(len(key))+1, 5)}
}

func setOf(key string) causal.SiblingSet {
	d := dotOf(key)
	return causal.SiblingSet{}.Put(causal.Sibling{
		ID: d, Dot: d, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}, Time: d.Time, Node: d.Node}, Value: []byte("v" + key),
	}, nil)
}

// outcomeOf returns the outcome if there is one.
func outcomeOf(c <-chan outcome) (outcome, bool) {
	select {
	case o := <-c:
		return o, true
	default:
		return outcome{}, false
	}
}

func requireNotSent(t testing.TB, err error, code kv.Code) {
	t.Helper()
	require.ErrorIs(t, err, ErrNotSent)
	e := kv.AsError(err)
	require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
	require.Equal(t, code, e.Code)
}

func requireUnknown(t testing.TB, err error, code kv.Code) {
	t.Helper()
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNotSent)
	e := kv.AsError(err)
	require.Equal(t, kv.OutcomeUnknown, e.Outcome)
	require.Equal(t, code, e.Code)
	require.True(t, e.Retryable)
}
