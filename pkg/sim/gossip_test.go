package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/membership"
)

// gossipers starts n members on a simulated gossip network; each knows all addresses, as the partition map does.
func gossipers(t *testing.T, ctx context.Context, n int) (*GossipNetwork, []*membership.Membership, *errgroup.Group) {
	t.Helper()
	network := NewGossipNetwork(rand.New(rand.NewPCG(1, 2)))
	var all []string
	for i := range n {
		all = append(all, gossipAddr(i))
	}
	var g errgroup.Group
	var out []*membership.Membership
	for i := range n {
		tr, err := network.Transport(gossipAddr(i))
		require.NoError(t, err)
		cfg := membership.DefaultConfig()
		cfg.Name, cfg.BindAddr = fmt.Sprintf("n%d", i+1), gossipAddr(i)
		m, err := membership.New(cfg, membership.Deps{
			Transport: tr, Logger: slog.New(slog.DiscardHandler), Rand: rand.New(rand.NewPCG(uint64(i), 3)),
			Epoch: func() kv.Epoch { return 1 }, HLC: func() uint64 { return 1 },
			KnownAddrs: func() []string { return all },
		})
		require.NoError(t, err)
		require.NoError(t, m.SetSelf(membership.Meta{ID: kv.NodeID(i + 1), Gossip: gossipAddr(i)}))
		g.Go(func() error { return m.Run(ctx) })
		out = append(out, m)
	}
	return network, out, &g
}

// seesAlive reports whether m believes exactly the given members to be alive.
func seesAlive(m *membership.Membership, want ...int) bool {
	alive := 0
	for _, member := range m.Members() {
		if member.Alive {
			alive++
		}
	}
	for _, i := range want {
		if !m.Alive(fmt.Sprintf("n%d", i+1)) {
			return false
		}
	}
	return alive == len(want)
}

func TestHalvesThatLostSightOfEachOtherMergeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		network, members, g := gossipers(t, ctx, 4)
		everyone := func(want func(i int) []int) func() bool {
			return func() bool {
				for i, m := range members {
					if !seesAlive(m, want(i)...) {
						return false
					}
				}
				return true
			}
		}
		all := everyone(func(int) []int { return []int{0, 1, 2, 3} })
		halves := everyone(func(i int) []int { return [][]int{{0, 1}, {2, 3}}[i/2] })
		require.Eventually(t, all, 3*time.Second, 50*time.Millisecond, "the members find each other")

		cut := func(cut bool) {
			for _, a := range []int{0, 1} {
				for _, b := range []int{2, 3} {
					network.SetCut(gossipAddr(a), gossipAddr(b), cut)
					network.SetCut(gossipAddr(b), gossipAddr(a), cut)
				}
			}
		}
		cut(true)
		require.Eventually(t, halves, 15*time.Second, 50*time.Millisecond, "each half sees the other as gone")
		time.Sleep(60 * time.Second) // longer than memberlist gossips to the dead
		require.True(t, halves())
		cut(false)
		require.Eventually(t, all, 30*time.Second, 50*time.Millisecond, "re-joining merges the halves")

		cancel()
		require.NoError(t, g.Wait())
		time.Sleep(gossipLinger)
	})
}

func TestKilledMemberIsSeenDeadWithinFourSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		network, members, g := gossipers(t, ctx, 3)
		require.Eventually(t, func() bool { return seesAlive(members[0], 0, 1, 2) }, 3*time.Second, 50*time.Millisecond)
		network.Remove(gossipAddr(2))
		require.Eventually(t, func() bool { return seesAlive(members[0], 0, 1) && seesAlive(members[1], 0, 1) },
			4*time.Second, 50*time.Millisecond)
		gone, known := members[0].Lookup("n3")
		require.True(t, known, "who died stays listed")
		require.Equal(t, kv.NodeID(3), gone.Meta.ID)
		cancel()
		require.NoError(t, g.Wait())
		time.Sleep(gossipLinger)
	})
}
