package membership_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/membership"
)

// freeAddr returns a loopback address whose port is free for TCP and UDP.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addr := l.Addr().String()
		p, err := net.ListenPacket("udp", addr)
		require.NoError(t, l.Close())
		if err == nil {
			require.NoError(t, p.Close())
			return addr
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return ""
}

// logged collects the records of one level.
type logged struct {
	slog.Handler
	level slog.Level
	mu    sync.Mutex
	lines []string
}

func (l *logged) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s", a)
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, b.String())
	return nil
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// gossiper is one running member.
type gossiper struct {
	*membership.Membership
	addr   string
	cancel context.CancelFunc
	done   chan error
	epoch  atomic.Uint64 // the highest heard of
	hlc    atomic.Uint64
	log    *logged
	wire   *memberlist.NetTransport
}

// start starts a member that knows the addresses of the others. Its transport is the real one, held by the test so that
// the member can be killed.
func start(t *testing.T, name, addr string, id kv.NodeID, known ...string) *gossiper {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	var number int
	_, err = fmt.Sscan(port, &number)
	require.NoError(t, err)
	g := &gossiper{addr: addr, done: make(chan error, 1), log: &logged{level: slog.LevelError}}
	g.wire, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{host}, BindPort: number, Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	})
	require.NoError(t, err)
	cfg := membership.DefaultConfig()
	cfg.Name, cfg.BindAddr, cfg.Join = name, addr, known
	g.Membership, err = membership.New(cfg, membership.Deps{
		Transport: g.wire, Logger: slog.New(g.log), Rand: rand.New(rand.NewPCG(uint64(id), 1)),
		Epoch: func() kv.Epoch { return kv.Epoch(id) }, HLC: func() uint64 { return 100 * uint64(id) },
		OnEpoch: func(e kv.Epoch) { raise(&g.epoch, uint64(e)) }, OnHLC: func(h uint64) { raise(&g.hlc, h) },
		KnownAddrs: func() []string { return nil },
	})
	require.NoError(t, err)
	require.NoError(t, g.SetSelf(membership.Meta{ID: id, HTTP: name + ":80", Gossip: addr, Zone: "z1"}))
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(context.Background())
	go func() { g.done <- g.Run(ctx) }()
	t.Cleanup(func() { g.stop(t) })
	return g
}

func raise(v *atomic.Uint64, to uint64) {
	for {
		old := v.Load()
		if to <= old || v.CompareAndSwap(old, to) {
			return
		}
	}
}

// stop stops the member gracefully; once is enough.
func (g *gossiper) stop(t *testing.T) {
	t.Helper()
	g.cancel()
	select {
	case err := <-g.done:
		require.NoError(t, err)
		g.done <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("the member does not stop")
	}
}

func (g *gossiper) sees(names ...string) func() bool {
	return func() bool {
		alive := map[string]bool{}
		for _, m := range g.Members() {
			if m.Alive {
				alive[m.Name] = true
			}
		}
		for _, n := range names {
			if !alive[n] || !g.Alive(n) {
				return false
			}
		}
		return len(alive) == len(names)
	}
}

func eventually(t *testing.T, within time.Duration, why string, all ...func() bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, ok := range all {
			if !ok() {
				return false
			}
		}
		return true
	}, within, 20*time.Millisecond, why)
}

func TestMembersFindEachOtherAndNoteWhoDies(t *testing.T) {
	t.Parallel()
	a, b, c := freeAddr(t), freeAddr(t), freeAddr(t)
	n1 := start(t, "n1", a, 1, a, b, c)
	n2 := start(t, "n2", b, 2, a, b, c)
	n3 := start(t, "n3", c, 3, a, b, c)
	eventually(t, 3*time.Second, "a cluster forms", n1.sees("n1", "n2", "n3"), n2.sees("n1", "n2", "n3"), n3.sees("n1", "n2", "n3"))

	// What nodes say about themselves, and how far they are, arrives with the join.
	m, ok := n1.Lookup("n3")
	require.True(t, ok)
	require.Equal(t, membership.Meta{ID: 3, HTTP: "n3:80", Gossip: c, Zone: "z1"}, m.Meta)
	_, ok = n1.Lookup("n4")
	require.False(t, ok)
	require.False(t, n1.Alive("n4"))
	require.NotZero(t, max(n1.epoch.Load(), n2.epoch.Load(), n3.epoch.Load()))
	require.NotZero(t, max(n1.hlc.Load(), n2.hlc.Load(), n3.hlc.Load()))

	// What a node says anew spreads.
	require.NoError(t, n3.SetSelf(membership.Meta{ID: 3, HTTP: "moved:80", Gossip: c}))
	moved := func(g *gossiper) func() bool {
		return func() bool { m, _ := g.Lookup("n3"); return m.Meta.HTTP == "moved:80" }
	}
	eventually(t, 2*time.Second, "an update spreads", moved(n1), moved(n2))

	// Killed without a word.
	require.NoError(t, n3.wire.Shutdown())
	eventually(t, 6*time.Second, "a death is noticed", n1.sees("n1", "n2"), n2.sees("n1", "n2"))
	m, ok = n1.Lookup("n3")
	require.True(t, ok, "who died stays listed")
	require.Equal(t, "moved:80", m.Meta.HTTP)
	require.Len(t, n1.Members(), 3)
}

func TestMemberThatLeavesIsNotedAtOnceAndMayComeBack(t *testing.T) {
	t.Parallel()
	a, b := freeAddr(t), freeAddr(t)
	n1 := start(t, "n1", a, 1)
	n2 := start(t, "n2", b, 2, a)
	eventually(t, 3*time.Second, "a cluster forms", n1.sees("n1", "n2"), n2.sees("n1", "n2"))
	began := time.Now()
	n2.stop(t)
	require.Less(t, time.Since(began), 2*time.Second, "leaving is bounded")
	eventually(t, time.Second, "leaving is noticed", n1.sees("n1"))

	again := start(t, "n2", b, 2, a)
	eventually(t, 3*time.Second, "it is back", n1.sees("n1", "n2"), again.sees("n1", "n2"))
}

func TestLonelyMemberStopsAtOnce(t *testing.T) {
	t.Parallel()
	n1 := start(t, "n1", freeAddr(t), 1, freeAddr(t))
	eventually(t, 3*time.Second, "it sees itself", n1.sees("n1"))
	began := time.Now()
	n1.stop(t)
	require.Less(t, time.Since(began), time.Second)
}

// TestNameIsNotTakenOverWhileItsOwnerLives starts a second node under a name that is in use.
func TestNameIsNotTakenOverWhileItsOwnerLives(t *testing.T) {
	t.Parallel()
	a, b, c := freeAddr(t), freeAddr(t), freeAddr(t)
	n1 := start(t, "n1", a, 1)
	n2 := start(t, "n2", b, 2, a)
	eventually(t, 3*time.Second, "a cluster forms", n1.sees("n1", "n2"), n2.sees("n1", "n2"))
	impostor := start(t, "n2", c, 9, a)
	eventually(t, 3*time.Second, "the conflict is reported", func() bool {
		return strings.Contains(n1.log.String(), "two nodes use one name")
	}, func() bool {
		return strings.Contains(impostor.log.String(), "two nodes use one name")
	})
	for range 10 {
		m, ok := n1.Lookup("n2")
		require.True(t, ok)
		require.True(t, m.Alive)
		require.Equal(t, kv.NodeID(2), m.Meta.ID)
		require.Equal(t, b, m.Meta.Gossip)
		time.Sleep(50 * time.Millisecond)
	}
}

func TestTakenAddressIsAnErrorThatNamesTheFlag(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	cfg := membership.DefaultConfig()
	cfg.Name, cfg.BindAddr = "n1", l.Addr().String()
	m, err := membership.New(cfg, membership.Deps{
		Logger: slog.New(slog.DiscardHandler), Rand: rand.New(rand.NewPCG(1, 1)),
		Epoch: func() kv.Epoch { return 1 }, HLC: func() uint64 { return 1 }, KnownAddrs: func() []string { return nil },
	})
	require.NoError(t, err)
	err = m.Run(context.Background())
	require.ErrorIs(t, err, membership.ErrAddressInUse)
	require.Contains(t, err.Error(), "--gossip")
	require.Contains(t, err.Error(), cfg.BindAddr)
	require.NotContains(t, err.Error(), "\n")
	require.False(t, errors.Is(err, context.Canceled))
}
