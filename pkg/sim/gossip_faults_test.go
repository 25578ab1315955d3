package sim

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/membership"
)

// gossipMember is one member on a simulated gossip network that a test can stop and crash.
type gossipMember struct {
	*membership.Membership
	addr string
	stop context.CancelFunc
	done chan struct{} // closed when Run has returned err
	err  error
	log  *bytes.Buffer // error records
	mu   *sync.Mutex   // guards log
}

// gossipLog serializes writes, so that a test may read the buffer under the same lock.
type gossipLog struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l gossipLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func startGossip(t *testing.T, g *GossipNetwork, name, addr string, id kv.NodeID, known []string) *gossipMember {
	t.Helper()
	tr, err := g.Transport(addr)
	require.NoError(t, err)
	return startGossipOn(t, tr, name, addr, id, known)
}

func startGossipOn(t *testing.T, tr memberlist.Transport, name, addr string, id kv.NodeID, known []string) *gossipMember {
	t.Helper()
	m := &gossipMember{addr: addr, done: make(chan struct{}), log: &bytes.Buffer{}, mu: &sync.Mutex{}}
	cfg := membership.DefaultConfig()
	cfg.Name, cfg.BindAddr = name, addr
	var err error
	m.Membership, err = membership.New(cfg, membership.Deps{
		Transport: tr, Rand: rand.New(rand.NewPCG(uint64(id), 3)),
		Logger: slog.New(slog.NewTextHandler(gossipLog{m.mu, m.log}, &slog.HandlerOptions{Level: slog.LevelError})),
		Epoch:  func() kv.Epoch { return 1 }, HLC: func() uint64 { return 1 },
		KnownAddrs: func() []string { return known },
	})
	require.NoError(t, err)
	require.NoError(t, m.SetSelf(membership.Meta{ID: id, Gossip: addr}))
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	go func() {
		m.err = m.Run(ctx)
		close(m.done)
	}()
	t.Cleanup(func() { m.close(t) })
	return m
}

// close stops the member and waits until nothing of it runs any more. Twice does no harm.
func (m *gossipMember) close(t *testing.T) {
	t.Helper()
	m.stop()
	<-m.done
	require.NoError(t, m.err)
	time.Sleep(gossipLinger)
}

func (m *gossipMember) errors() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.String()
}

func gossipAddrs(n int) []string {
	var out []string
	for i := range n {
		out = append(out, gossipAddr(i))
	}
	return out
}

func startGossips(t *testing.T, g *GossipNetwork, n int) []*gossipMember {
	t.Helper()
	var out []*gossipMember
	for i := range n {
		out = append(out, startGossip(t, g, gossipName(i), gossipAddr(i), kv.NodeID(i+1), gossipAddrs(n)))
	}
	return out
}

func gossipName(i int) string { return string([]byte{'n', byte('1' + i)}) }

// gossipAliveTo returns the names that m believes to be alive, joined by spaces.
func gossipAliveTo(m *gossipMember) string {
	var out []string
	for _, o := range m.Members() {
		if o.Alive {
			out = append(out, o.Name)
		}
	}
	return strings.Join(out, " ")
}

// withinVirtual fails unless ok holds after at most the given virtual time, and returns how much of it passed.
func withinVirtual(t *testing.T, limit time.Duration, why string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, why)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

func gossipAllSee(want string, members ...*gossipMember) func() bool {
	return func() bool {
		return !slices.ContainsFunc(members, func(m *gossipMember) bool { return gossipAliveTo(m) != want })
	}
}

func cutGossip(g *GossipNetwork, a, b []int, cut bool) {
	for _, i := range a {
		for _, j := range b {
			g.SetCut(gossipAddr(i), gossipAddr(j), cut)
			g.SetCut(gossipAddr(j), gossipAddr(i), cut)
		}
	}
}

// TestTwentySecondCutMergesWithinThirty tries the cut that memberlist alone never recovered from, at several moments.
func TestTwentySecondCutMergesWithinThirty(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			g := NewGossipNetwork(rand.New(rand.NewPCG(seed, 1)))
			m := startGossips(t, g, 5)
			withinVirtual(t, 5*time.Second, "a cluster forms", gossipAllSee("n1 n2 n3 n4 n5", m...))
			time.Sleep(time.Duration(seed) * 777 * time.Millisecond)
			cutGossip(g, []int{0, 1}, []int{2, 3, 4}, true)
			time.Sleep(20 * time.Second)
			require.True(t, gossipAllSee("n1 n2", m[:2]...)(), "n1 sees %s, n2 sees %s", gossipAliveTo(m[0]), gossipAliveTo(m[1]))
			require.True(t, gossipAllSee("n3 n4 n5", m[2:]...)())
			cutGossip(g, []int{0, 1}, []int{2, 3, 4}, false)
			took := withinVirtual(t, 30*time.Second, "the halves merge", gossipAllSee("n1 n2 n3 n4 n5", m...))
			t.Logf("seed %d: merged after %v", seed, took)
		})
	}
}

// TestOneWayCutHidesNobody cuts one direction only: the third member vouches for both.
func TestOneWayCutHidesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossipNetwork(rand.New(rand.NewPCG(1, 1)))
		m := startGossips(t, g, 3)
		withinVirtual(t, 5*time.Second, "a cluster forms", gossipAllSee("n1 n2 n3", m...))
		g.SetCut(gossipAddr(0), gossipAddr(1), true)
		for range 300 {
			require.True(t, gossipAllSee("n1 n2 n3", m...)())
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// TestLossyNetworkKillsNobody loses every tenth packet for a minute.
func TestLossyNetworkKillsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossipNetwork(rand.New(rand.NewPCG(2, 1)))
		g.SetLoss(0.1)
		m := startGossips(t, g, 5)
		withinVirtual(t, 5*time.Second, "a cluster forms", gossipAllSee("n1 n2 n3 n4 n5", m...))
		for range 600 {
			require.True(t, gossipAllSee("n1 n2 n3 n4 n5", m...)())
			time.Sleep(100 * time.Millisecond)
		}
	})
}

func TestDeathIsSeenByAllWithinSeconds(t *testing.T) {
	for _, n := range []int{3, 5} {
		for seed := range uint64(6) {
			synctest.Test(t, func(t *testing.T) {
				g := NewGossipNetwork(rand.New(rand.NewPCG(seed, 1)))
				m := startGossips(t, g, n)
				all := "n1 n2 n3 n4 n5"[:3*n-1]
				withinVirtual(t, 5*time.Second, "a cluster forms", gossipAllSee(all, m...))
				time.Sleep(time.Duration(seed) * 333 * time.Millisecond)
				g.Remove(gossipAddr(n - 1))
				took := withinVirtual(t, 5*time.Second, "the death is noticed", gossipAllSee(all[:3*n-4], m[:n-1]...))
				t.Logf("%d members, seed %d: noticed after %v", n, seed, took)
			})
		}
	}
}

// TestCrashedMemberComesBack restarts a member at its old address before and after its death was noticed, and at a new
// address afterwards, as a container does.
func TestCrashedMemberComesBack(t *testing.T) {
	for name, c := range map[string]struct {
		down time.Duration
		addr string
	}{
		"at once":          {0, gossipAddr(2)},
		"after its death":  {10 * time.Second, gossipAddr(2)},
		"much later":       {3 * time.Minute, gossipAddr(2)},
		"somewhere else":   {10 * time.Second, "10.0.9.9:7946"},
		"elsewhere, later": {3 * time.Minute, "10.0.9.9:7946"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := NewGossipNetwork(rand.New(rand.NewPCG(3, 1)))
				m := startGossips(t, g, 3)
				withinVirtual(t, 5*time.Second, "a cluster forms", gossipAllSee("n1 n2 n3", m...))
				g.Remove(m[2].addr)
				m[2].close(t)
				time.Sleep(c.down)
				m[2] = startGossip(t, g, "n3", c.addr, 3, gossipAddrs(3))
				withinVirtual(t, 15*time.Second, "it is back", func() bool {
					for _, o := range m {
						if back, _ := o.Lookup("n3"); !back.Alive || back.Meta.Gossip != c.addr {
							return false
						}
					}
					return gossipAllSee("n1 n2 n3", m...)()
				})
			})
		})
	}
}

func TestTwoMembersWithOneNameAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossipNetwork(rand.New(rand.NewPCG(4, 1)))
		m := startGossips(t, g, 3)
		withinVirtual(t, 5*time.Second, "a cluster forms", gossipAllSee("n1 n2 n3", m...))
		startGossip(t, g, "n2", "10.0.9.9:7946", 99, gossipAddrs(3))
		withinVirtual(t, 15*time.Second, "the conflict is reported", func() bool {
			return strings.Contains(m[0].errors(), "two nodes use one name") && strings.Contains(m[2].errors(), "two nodes use one name")
		})
		for range 300 {
			for _, o := range []*gossipMember{m[0], m[2]} {
				owner, _ := o.Lookup("n2")
				require.True(t, owner.Alive)
				require.Equal(t, kv.NodeID(2), owner.Meta.ID, "the name was taken over")
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// openEndpoint opens an endpoint that no memberlist serves.
func openEndpoint(t *testing.T, g *GossipNetwork, addr string) memberlist.Transport {
	t.Helper()
	e, err := g.Transport(addr)
	require.NoError(t, err)
	return e
}

func TestGossipPacketsCrossOnlyWhatIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossipNetwork(rand.New(rand.NewPCG(5, 1)))
		a, b := openEndpoint(t, g, "10.0.0.1:1"), openEndpoint(t, g, "10.0.0.2:1")
		arrives := func(from, to memberlist.Transport, addr string) bool {
			sent := []byte("ping")
			_, err := from.WriteTo(sent, addr)
			require.NoError(t, err)
			sent[0] = 'X' // the network keeps no reference to the sender's buffer
			time.Sleep(2 * gossipDelayMax)
			select {
			case p := <-to.PacketCh():
				require.Equal(t, "ping", string(p.Buf))
				require.NotEmpty(t, p.From.String())
				return true
			default:
				return false
			}
		}
		require.True(t, arrives(a, b, "10.0.0.2:1"))
		require.True(t, arrives(b, a, "10.0.0.1:1"))
		g.SetCut("10.0.0.1:1", "10.0.0.2:1", true)
		require.False(t, arrives(a, b, "10.0.0.2:1"), "cut")
		require.True(t, arrives(b, a, "10.0.0.1:1"), "a cut has a direction")
		_, err := a.DialTimeout("10.0.0.2:1", time.Second)
		require.Error(t, err)
		_, err = b.DialTimeout("10.0.0.1:1", time.Second)
		require.Error(t, err, "a stream needs both directions")
		g.SetCut("10.0.0.1:1", "10.0.0.2:1", false)
		require.True(t, arrives(a, b, "10.0.0.2:1"))
		g.SetLoss(1)
		require.False(t, arrives(a, b, "10.0.0.2:1"))
		g.SetLoss(0)
		require.False(t, arrives(a, b, "10.0.0.3:1"), "nobody is there")
		require.NoError(t, a.Shutdown())
		require.False(t, arrives(a, b, "10.0.0.2:1"), "the dead do not speak")
		require.NoError(t, a.Shutdown(), "twice does no harm")
	})
}

// TestGossipNetworkNeverBlocks sends to endpoints that nobody serves, or nobody serves any more.
func TestGossipNetworkNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossipNetwork(rand.New(rand.NewPCG(6, 1)))
		a, b := openEndpoint(t, g, "10.0.0.1:1"), openEndpoint(t, g, "10.0.0.2:1")
		for range 4 * gossipPacketsMax {
			_, err := a.WriteTo([]byte("ping"), "10.0.0.2:1")
			require.NoError(t, err)
		}
		time.Sleep(2 * gossipDelayMax)
		require.Len(t, b.PacketCh(), gossipPacketsMax, "the rest is dropped")

		var refused error
		var open []net.Conn
		for range gossipStreamsMax + 1 {
			c, err := a.DialTimeout("10.0.0.2:1", time.Second)
			if err != nil {
				refused = err
				continue
			}
			open = append(open, c)
		}
		require.Error(t, refused, "an endpoint that accepts nothing refuses in the end")
		require.NotEmpty(t, open)

		// A stream that nobody accepted ends when its endpoint does, instead of holding its writer for ever.
		wrote := make(chan error, 1)
		go func() {
			_, err := open[len(open)-1].Write([]byte("hello"))
			wrote <- err
		}()
		synctest.Wait()
		require.NoError(t, b.Shutdown())
		require.Error(t, <-wrote)
		_, err := a.DialTimeout("10.0.0.2:1", time.Second)
		require.Error(t, err)
		_, err = a.WriteTo([]byte("ping"), "10.0.0.2:1")
		require.NoError(t, err)
	})
}

func TestGossipStreamsCarryBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGossipNetwork(rand.New(rand.NewPCG(7, 1)))
		a, b := openEndpoint(t, g, "10.0.0.1:1"), openEndpoint(t, g, "10.0.0.2:1")
		mine, err := a.DialTimeout("10.0.0.2:1", time.Second)
		require.NoError(t, err)
		theirs := <-b.StreamCh()
		go func() {
			_, _ = io.Copy(theirs, theirs) // echo
			_ = theirs.Close()
		}()
		_, err = mine.Write([]byte("hello"))
		require.NoError(t, err)
		got := make([]byte, 5)
		_, err = io.ReadFull(mine, got)
		require.NoError(t, err)
		require.Equal(t, "hello", string(got))
		require.NoError(t, mine.Close())
	})
}

func TestGossipAddressesAreChecked(t *testing.T) {
	g := NewGossipNetwork(rand.New(rand.NewPCG(8, 1)))
	for _, bad := range []string{"10.0.0.1", "10.0.0.1:x"} {
		_, err := g.Transport(bad)
		require.Error(t, err, bad)
	}
	old := openEndpoint(t, g, "10.0.0.1:1")
	openEndpoint(t, g, "10.0.0.1:1")
	_, err := old.DialTimeout("10.0.0.1:1", time.Second)
	require.Error(t, err, "a new life silences the old one")
}
