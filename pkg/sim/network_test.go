package sim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/sim"
	"github.com/caprockdb/caprock/pkg/transport"
	"github.com/caprockdb/caprock/quorum"
)

// received notes what a node got through a bare wire.
type received struct {
	mu      sync.Mutex // guards what follows
	batches []string
	err     error
}

func (r *received) deliver(from kv.NodeID, batch []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches = append(r.batches, fmt.Sprintf("%d:%s", from, batch))
	return r.err
}

func (r *received) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.batches...)
}

func connect(t *testing.T, n *sim.Network, from, to kv.NodeID) transport.Link {
	t.Helper()
	l, err := n.Wire(from).Connect(t.Context(), to)
	require.NoError(t, err)
	return l
}

// inBubble runs f with a network of two attached nodes.
func inBubble(t *testing.T, f func(t *testing.T, n *sim.Network, one, two *received)) {
	synctest.Test(t, func(t *testing.T) {
		n := sim.NewNetwork(1)
		defer n.Close()
		one, two := &received{}, &received{}
		n.Attach(1, one.deliver)
		n.Attach(2, two.deliver)
		f(t, n, one, two)
	})
}

func TestLinkDeliversInOrderDespiteDelays(t *testing.T) {
	inBubble(t, func(t *testing.T, n *sim.Network, _, two *received) {
		n.SetAll(sim.Conditions{DelayMin: time.Millisecond, DelayMax: 400 * time.Millisecond})
		l := connect(t, n, 1, 2)
		batch := []byte("0")
		var want []string
		for i := range 100 {
			batch[0] = byte('0' + i)
			want = append(want, "1:"+string(batch))
			require.NoError(t, l.Send(batch))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		require.Equal(t, want, two.all())
		require.Zero(t, n.Stats().Overtaken)
	})
}

func TestConditionsTakeEffect(t *testing.T) {
	inBubble(t, func(t *testing.T, n *sim.Network, _, two *received) {
		n.SetAll(sim.Conditions{Loss: 0.2, Duplicate: 0.3, DelayMax: 50 * time.Millisecond, Reorder: true})
		l := connect(t, n, 1, 2)
		for i := range 1000 {
			require.NoError(t, l.Send(fmt.Append(nil, i)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		s := n.Stats()
		require.InDelta(t, 200, s.Lost, 50)
		require.InDelta(t, 240, s.Duplicated, 50)
		require.Positive(t, s.Overtaken)
		require.EqualValues(t, 1000-s.Lost+s.Duplicated, s.Delivered)
		require.Len(t, two.all(), int(s.Delivered))

		n.Set(1, 2, sim.Calm())
		require.NoError(t, l.Send([]byte("calm")))
		time.Sleep(time.Millisecond)
		require.Equal(t, "1:calm", two.all()[s.Delivered])
	})
}

func TestCutSwallowsOneDirectionAndThenBreaksLinks(t *testing.T) {
	inBubble(t, func(t *testing.T, n *sim.Network, one, two *received) {
		there, back := connect(t, n, 1, 2), connect(t, n, 2, 1)
		n.SetCut(1, 2, true)
		require.NoError(t, there.Send([]byte("lost")))
		require.NoError(t, back.Send([]byte("heard")))
		time.Sleep(time.Second)
		require.Empty(t, two.all())
		require.Equal(t, []string{"2:heard"}, one.all())
		require.EqualValues(t, 1, n.Stats().CutOff)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := n.Wire(2).Connect(ctx, 1)
		require.Error(t, err, "a connection needs both directions")
		require.Equal(t, time.Second, time.Since(began))

		time.Sleep(2 * time.Second)
		require.Error(t, there.Send(nil))
		require.Error(t, back.Send(nil))
		<-there.Broken()
		require.Error(t, there.Err())

		n.SetCut(1, 2, false)
		require.NoError(t, connect(t, n, 1, 2).Send([]byte("mended")))
		time.Sleep(time.Second)
		require.Equal(t, []string{"1:mended"}, two.all())
	})
}

func TestDetachFencesALifeForGood(t *testing.T) {
	inBubble(t, func(t *testing.T, n *sim.Network, one, two *received) {
		old := n.Wire(1)
		there, err := old.Connect(t.Context(), 2)
		require.NoError(t, err)
		back := connect(t, n, 2, 1)
		require.NoError(t, there.Send([]byte("before")))
		require.NoError(t, back.Send([]byte("under way")))
		n.Detach(1)
		require.Error(t, there.Send([]byte("after")))
		require.Error(t, back.Send([]byte("to nobody")))
		_, err = n.Wire(2).Connect(t.Context(), 1)
		require.Error(t, err)

		reborn := &received{}
		n.Attach(1, reborn.deliver)
		_, err = old.Connect(t.Context(), 2)
		require.Error(t, err, "the old life is over")
		require.Error(t, there.Send([]byte("after")))
		require.NoError(t, connect(t, n, 1, 2).Send([]byte("new life")))
		require.NoError(t, connect(t, n, 2, 1).Send([]byte("hello")))
		time.Sleep(time.Second)
		require.Equal(t, []string{"1:before", "1:new life"}, two.all())
		require.Empty(t, one.all())
		require.Equal(t, []string{"2:hello"}, reborn.all())
	})
}

func TestRefusedBatchBreaksItsLink(t *testing.T) {
	inBubble(t, func(t *testing.T, n *sim.Network, _, two *received) {
		two.err = errors.New("foreign")
		l := connect(t, n, 1, 2)
		require.NoError(t, l.Send([]byte("x")))
		<-l.Broken()
		require.ErrorContains(t, l.Err(), "foreign")
		require.NoError(t, l.Close())
		require.ErrorContains(t, l.Err(), "foreign", "the first reason stays")
	})
}

func TestClosedNetworkRefusesEverything(t *testing.T) {
	inBubble(t, func(t *testing.T, n *sim.Network, _, _ *received) {
		l := connect(t, n, 1, 2)
		n.Close()
		require.Error(t, l.Send(nil))
		_, err := n.Wire(1).Connect(t.Context(), 2)
		require.Error(t, err)
		n.Attach(3, func(kv.NodeID, []byte) error { return nil })
		n.Detach(1)
		n.Close()
	})
}

// oracle knows the fate of every request of the chaos test, by its key.
type oracle struct {
	mu      sync.Mutex // guards what follows
	handled map[string]int
	ended   map[string]int
	errs    map[string]error
}

// chaosNode answers each write, after a while for some.
type chaosNode struct {
	oracle *oracle
	raft   *atomic.Int64
	rand   func(n int) int
}

func (c *chaosNode) HandleRaft(kv.NodeID, []byte) { c.raft.Add(1) }

func (c *chaosNode) HandleWrite(_ kv.NodeID, w quorum.WriteRequest, reply func(quorum.WriteReply, error)) {
	c.oracle.mu.Lock()
	c.oracle.handled[string(w.Key)]++
	c.oracle.mu.Unlock()
	switch c.rand(4) {
	case 0:
		time.AfterFunc(time.Duration(c.rand(300))*time.Millisecond, func() { reply(quorum.WriteReply{Accepted: true}, nil) })
	case 1: // never answered
	default:
		reply(quorum.WriteReply{Accepted: true}, nil)
	}
}

func (c *chaosNode) HandleRead(kv.NodeID, quorum.ReadRequest, func(quorum.ReadReply, error)) {}

func (c *chaosNode) HandleWrites(kv.NodeID, []quorum.WriteRequest, func([]quorum.WriteResult)) {}

func (c *chaosNode) HandleReads(kv.NodeID, []quorum.ReadRequest, func([]quorum.ReadResult)) {}

func (c *chaosNode) HandleForwards(kv.NodeID, []kv.Request, time.Time, func([]kv.Answer)) {}

func (c *chaosNode) HandleForward(kv.NodeID, kv.Request, time.Time, func(kv.Response, error)) {}

func (c *chaosNode) HandleScan(kv.NodeID, quorum.ScanRequest, func(quorum.ScanReply, error)) {}
func (c *chaosNode) HandleExchange(kv.NodeID, []byte, func([]byte, error))                   {}

func (c *chaosNode) HandleMeta(kv.NodeID, []byte, func([]byte, error)) {}

// chaos is three muxes on a network, which come and go.
type chaos struct {
	t      *testing.T
	net    *sim.Network
	oracle oracle
	raft   atomic.Int64
	muxes  map[kv.NodeID]*transport.Mux
	stops  map[kv.NodeID]func()

	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func (c *chaos) rand(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

func (c *chaos) start(id kv.NodeID) {
	clock, err := causal.NewClock(causal.DefaultClockConfig(), causal.ClockDeps{
		WallNow: time.Now, Persist: func(causal.HLC) error { return nil },
	})
	require.NoError(c.t, err)
	cfg := transport.DefaultConfig()
	cfg.DataOutboxBytesMax = 4 << 10 // so that requests are refused too
	m, err := transport.New(cfg, transport.Deps{
		Self: id, Wire: c.net.Wire(id), Clock: clock, Epoch: func() kv.Epoch { return 1 }, Cluster: func() uint64 { return 1 },
		Handler: &chaosNode{oracle: &c.oracle, raft: &c.raft, rand: c.rand}, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), Rand: rand.New(rand.NewPCG(uint64(id), 2)),
	})
	require.NoError(c.t, err)
	c.net.Attach(id, m.Deliver)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	c.muxes[id] = m
	c.stops[id] = func() {
		c.net.Detach(id)
		cancel()
		require.NoError(c.t, <-done)
	}
}

func (c *chaos) disturb() {
	a, b := kv.NodeID(1+c.rand(3)), kv.NodeID(1+c.rand(3))
	switch c.rand(6) {
	case 0:
		c.net.SetCut(a, b, a != b)
	case 1, 2:
		for x := kv.NodeID(1); x <= 3; x++ {
			for y := kv.NodeID(1); y <= 3; y++ {
				c.net.SetCut(x, y, false)
			}
		}
	case 3:
		c.net.Set(a, b, sim.Conditions{Loss: 0.2, Duplicate: 0.2, DelayMax: 400 * time.Millisecond, Reorder: true})
	case 4:
		c.net.SetAll(sim.Calm())
	default:
		c.stops[a]()
		c.start(a)
	}
}

func (c *chaos) write(from, to kv.NodeID, key string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+c.rand(1500))*time.Millisecond)
	defer cancel()
	w := quorum.WriteRequest{Key: []byte(key), New: causal.Dot{Node: 1, Time: 1}}
	c.muxes[from].Write(ctx, to, w, func(_ quorum.WriteReply, err error) {
		c.oracle.mu.Lock()
		defer c.oracle.mu.Unlock()
		c.oracle.ended[key]++
		c.oracle.errs[key] = err
	})
}

// TestOutcomesAreHonestWhateverTheNetworkDoes runs calls through losses, copies, overtaking, cuts and restarts, and checks
// every outcome against what the handlers really saw.
func TestOutcomesAreHonestWhateverTheNetworkDoes(t *testing.T) {
	happened := map[string]uint64{}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{
					t: t, net: sim.NewNetwork(seed), muxes: map[kv.NodeID]*transport.Mux{}, stops: map[kv.NodeID]func(){},
					oracle: oracle{handled: map[string]int{}, ended: map[string]int{}, errs: map[string]error{}},
					rng:    rand.New(rand.NewPCG(seed, 3)),
				}
				for id := kv.NodeID(1); id <= 3; id++ {
					c.start(id)
				}
				var sent []string
				for step := range 800 {
					if step%25 == 0 {
						c.disturb()
					}
					for range 1 + c.rand(20) {
						from := kv.NodeID(1 + c.rand(3))
						to := 1 + (from+kv.NodeID(c.rand(2)))%3
						key := fmt.Sprintf("key-%d-%40d", len(sent), 0)
						c.write(from, to, key)
						sent = append(sent, key)
						c.muxes[from].Send(to, []byte("raft"))
					}
					time.Sleep(time.Duration(c.rand(20)) * time.Millisecond)
				}
				time.Sleep(5 * time.Second)
				for _, stop := range c.stops {
					stop()
				}
				stats := c.net.Stats()
				c.net.Close()
				c.check(sent, stats, happened)
			})
		})
	}
	// A quiet run proves nothing.
	for _, what := range []string{
		"acknowledged", "not sent", "unknown, handled", "unknown, not handled", "lost", "duplicated", "overtaken", "cut off", "raft frames",
	} {
		require.Positive(t, happened[what], what)
	}
	t.Logf("%v", happened)
}

func (c *chaos) check(sent []string, stats sim.Stats, happened map[string]uint64) {
	t := c.t
	for _, key := range sent {
		require.Equal(t, 1, c.oracle.ended[key], "every call ends exactly once")
		handled, err := c.oracle.handled[key], c.oracle.errs[key]
		require.LessOrEqual(t, handled, 1, "a request is handled at most once")
		switch {
		case err == nil:
			require.Equal(t, 1, handled, "what was acknowledged was handled")
			happened["acknowledged"]++
		case errors.Is(err, transport.ErrNotSent):
			require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
			require.Zero(t, handled, "what was not sent is never handled: %v", err)
			happened["not sent"]++
		default:
			require.Equal(t, kv.OutcomeUnknown, kv.AsError(err).Outcome)
			happened[map[int]string{0: "unknown, not handled", 1: "unknown, handled"}[handled]]++
		}
	}
	for what, n := range map[string]uint64{
		"lost": stats.Lost, "duplicated": stats.Duplicated, "overtaken": stats.Overtaken, "cut off": stats.CutOff,
		"raft frames": uint64(c.raft.Load()),
	} {
		happened[what] += n
	}
}
