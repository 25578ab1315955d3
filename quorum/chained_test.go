package quorum

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// TestChainedWritesReplaceTheirOwnAndNothingUnseen has clients that never read and give each write the context of their last
// one's answer, at replicas that hand their sets around in any order. Each client's last write is there in the end, and
// nothing else.
func TestChainedWritesReplaceTheirOwnAndNothingUnseen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := make([]versions, 3)
		clients := rapid.IntRange(1, 4).Draw(t, "clients")
		seen, last := make([]causal.Seen, clients), make([]causal.Dot, clients)
		misses := rapid.Bool().Draw(t, "coordinators cannot always catch up")
		pick := rapid.IntRange(0, len(replicas)-1)
		var clock causal.HLC
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			at := pick.Draw(t, "at")
			v := &replicas[at]
			client := rapid.IntRange(0, 2*clients-1).Draw(t, "client")
			if client >= clients { // no write: a message
				v.set = causal.Merge(v.set, replicas[pick.Draw(t, "from")].set)
				continue
			}
			for i := range replicas {
				lacks := slices.ContainsFunc(seen[client].Dots, func(d causal.Dot) bool { return !v.set.Covers(d) })
				if lacks && (!misses || rapid.Bool().Draw(t, "answers")) {
					v.set = causal.Merge(v.set, replicas[i].set)
				}
			}
			clock++
			dot := causal.Dot{Node: kv.NodeID(at + 1), Time: clock}
			d := draft{context: seen[client], value: fmt.Appendf(nil, "%d", client), blind: last[client].IsZero()}
			set, how, err := v.place(&d, dot, causal.Position{}, Siblings{}, 64)
			require.NoError(t, err)
			require.Equal(t, placementMade, how)
			v.set = set
			seen[client], last[client] = d.writerContext(set, dot, true), dot
			require.True(t, seen[client].Covers(dot))
			if !misses {
				require.LessOrEqual(t, len(set.Siblings), clients)
				require.LessOrEqual(t, len(seen[client].Dots), 1)
			}
		}
		var all causal.SiblingSet
		for i := range replicas {
			all = causal.Merge(all, replicas[i].set)
		}
		for _, dot := range last {
			if _, held := all.Holds(dot); !dot.IsZero() && !held {
				t.Fatalf("%v is lost: nobody has overwritten it; %v", dot, all)
			}
		}
		if !misses && len(all.Siblings) > clients {
			t.Fatalf("%d clients made %d siblings: %v", clients, len(all.Siblings), all)
		}
	})
}

// chain is a client that gives each write the context of its last one's answer, and never reads.
type chain struct {
	name    string
	context []byte
	writes  int
}

func (ch *chain) put(t *testing.T, c *cluster, at kv.NodeID) {
	ch.writes++
	res, err := c.put(at, "k", fmt.Sprintf("%s%d", ch.name, ch.writes), ch.context, 2)
	require.NoError(t, err)
	ch.context = res.Context
	require.Less(t, len(ch.context), 100)
}

func (ch *chain) last() string { return fmt.Sprintf("%s%d", ch.name, ch.writes) }

func TestTwoInterleavedWritersMakeTwoSiblingsWhoeverCoordinates(t *testing.T) {
	for name, at := range map[string]func(r *rand.Rand, i int) kv.NodeID{
		"one coordinator":    func(*rand.Rand, int) kv.NodeID { return 1 },
		"one each":           func(_ *rand.Rand, i int) kv.NodeID { return kv.NodeID(1 + i%2) },
		"any":                func(r *rand.Rand, _ int) kv.NodeID { return kv.NodeID(1 + r.IntN(3)) },
		"those that are not": func(_ *rand.Rand, i int) kv.NodeID { return kv.NodeID(1 + i%3) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				c.keeps = true
				c.slowLinks(time.Millisecond)
				c.setLink(1, 3, link{delay: 15 * time.Millisecond}) // node 3 hears late of what node 1 coordinates
				r := rand.New(rand.NewPCG(1, 2))
				chains := []*chain{{name: "a"}, {name: "b"}}
				writes := 300
				if name == "any" {
					writes = 2000
				}
				for i := range writes {
					chains[i%2].put(t, c, at(r, i))
					if i%37 == 0 {
						res, err := c.get(kv.NodeID(1+i%3), "k", 3)
						require.NoError(t, err)
						require.LessOrEqual(t, len(res.Siblings), 2, "after %d writes", i)
					}
				}
				time.Sleep(time.Second)
				for id := range c.nodes {
					require.ElementsMatch(t, []string{chains[0].last(), chains[1].last()}, values(c.nodes[id].held("k")))
				}
			})
		})
	}
}

// TestTwoRacingWritersMakeTwoSiblings has both write at the same time, which one after the other cannot show.
func TestTwoRacingWritersMakeTwoSiblings(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(3 * time.Millisecond)
		chains := []*chain{{name: "a"}, {name: "b"}}
		var wg sync.WaitGroup
		for i, ch := range chains {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			wg.Go(func() {
				for range 1000 {
					ch.put(t, c, kv.NodeID(1+r.IntN(3)))
				}
			})
		}
		wg.Wait()
		res, err := c.get(1, "k", 3)
		require.NoError(t, err)
		require.Len(t, res.Siblings, 2)
		time.Sleep(time.Second)
		for id := range c.nodes {
			require.ElementsMatch(t, []string{chains[0].last(), chains[1].last()}, values(c.nodes[id].held("k")))
		}
	})
}

// TestWriterWhoseLastWriteIsOutOfReachLosesNothing cuts off the one replica that has the last write.
func TestWriterWhoseLastWriteIsOutOfReachLosesNothing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		local := func(at kv.NodeID, value string, context []byte) []byte {
			res, err := c.do(at, time.Second, &kv.Request{
				Op: kv.OpPut, Level: kv.LevelLocal, Key: []byte("k"), Value: []byte(value), Context: context,
			}, kv.Quorum{})
			require.NoError(t, err)
			return res.Context
		}
		cut := link{swallow: true}
		for id := kv.NodeID(2); id <= 3; id++ {
			c.setLink(1, id, cut)
			c.setLink(id, 1, cut)
		}
		local(1, "other", nil)
		mine := local(1, "mine", nil)
		within(t, time.Second, func() { mine = local(2, "mine again", mine) })
		require.InDelta(t, 1, testutil.ToFloat64(c.nodes[2].coord.metrics.catchUps), 0)
		require.Equal(t, []string{"mine again"}, values(c.nodes[2].held("k")))
		for id := kv.NodeID(2); id <= 3; id++ {
			c.setLink(1, id, link{})
			c.setLink(id, 1, link{})
		}
		// The context still says what the coordinator could not find, so that the next one drops it.
		local(3, "mine at last", mine)
		res, err := c.get(2, "k", 3)
		require.NoError(t, err)
		var got []string
		for _, s := range res.Siblings {
			got = append(got, string(s.Value))
		}
		require.ElementsMatch(t, []string{"other", "mine at last"}, got)
	})
}
