package sim

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/ring"
)

// How strong operations see eventual writes of the same keys, by scripts: who holds what is decided here, and what else would
// spread it is out of the way.

// nothingSpreads leaves versions where the writes themselves brought them.
func nothingSpreads(cfg *node.Config) {
	hintsOnly(cfg)
	cfg.Hints.Interval, cfg.Hints.BackoffMax = time.Hour, time.Hour
}

// inSettleBubble is inTunedBubble for a few seeds.
func inSettleBubble(t *testing.T, scenario func(t *testing.T, ctx context.Context, c *Cluster)) {
	t.Helper()
	for _, seed := range fewSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { inTunedBubble(t, seed, 3, nothingSpreads, scenario) })
	}
}

// leaderOf returns the node that leads the key's partition, as far as it knows itself.
func leaderOf(t *testing.T, c *Cluster, key string) int {
	t.Helper()
	for i := range c.Size() {
		for _, p := range c.Node(i).Partitions() {
			if p.Partition == ring.PartitionOf([]byte(key), c.opts.Partitions) && p.Leader == c.names[i] {
				return i
			}
		}
	}
	t.Fatalf("nobody leads the partition of %s", key)
	return 0
}

// hushed runs f while what the node from sends to the other one is swallowed.
func hushed(c *Cluster, from, to int, f func()) {
	c.net.SetCut(c.nodes[from].id, c.nodes[to].id, true)
	f()
	time.Sleep(10 * time.Millisecond) // what f left under way
	c.net.SetCut(c.nodes[from].id, c.nodes[to].id, false)
}

// stateAt returns the strong lane's state of a key at a node.
func stateAt(t *testing.T, c *Cluster, i int, key string) (s storage.Strong) {
	t.Helper()
	require.NoError(t, c.Node(i).Inspect(func(e *storage.Engine) (err error) {
		s, _, err = e.State().Strong(ring.PartitionOf([]byte(key), c.opts.Partitions).Group(), []byte(key))
		return err
	}))
	return s
}

// heldAt returns the values of the versions of a key that a node holds in the eventual lane.
func heldAt(t *testing.T, c *Cluster, i int, key string) (out []string) {
	t.Helper()
	for _, s := range eventualRows(t, c, i)[key].Siblings {
		out = append(out, string(s.Value))
	}
	return out
}

func strongDo(ctx context.Context, c *Cluster, i int, r *kv.Request) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r.Level = kv.LevelStrong
	return c.Execute(ctx, i, r)
}

// The replica that holds nothing is, in turn, each of the three, the leader among them.
func TestStrongReadsSeeEventualWritesAcknowledgedBefore(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		for reader := range 3 {
			for without := range 3 {
				key := fmt.Sprintf("k-%d-%d", reader, without)
				writer := (without + 1) % 3
				hushed(c, writer, without, func() {
					_, err := eventualPut(ctx, c, writer, key, "v", 2, false)
					require.NoError(t, err)
				})
				require.Empty(t, heldAt(t, c, without, key), "the script went wrong")
				res, err := strongDo(ctx, c, reader, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
				require.NoError(t, err)
				require.True(t, res.Found, "read at n%d what n%d does not hold", reader+1, without+1)
				require.Equal(t, "v", string(res.Value))
				require.Positive(t, res.Version, "it is in the log")
			}
		}
	})
}

func TestStrongReadsSeeEventualWritesWithOneNodeDown(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		down := int(c.opts.Seed) % 3
		up := others(down)
		for i := range 8 {
			// The one that goes down has it, and so has one of those that stay.
			hushed(c, down, up[1], func() {
				_, err := eventualPut(ctx, c, down, fmt.Sprintf("k%d", i), "v", 2, false)
				require.NoError(t, err)
			})
		}
		require.NoError(t, c.Crash(100, down))
		time.Sleep(5 * time.Second)
		for i := range 8 {
			key := fmt.Sprintf("k%d", i)
			require.Empty(t, heldAt(t, c, up[1], key), "the script went wrong")
			res, err := strongDo(ctx, c, up[i%2], &kv.Request{Op: kv.OpGet, Key: []byte(key)})
			require.NoError(t, err)
			require.Equal(t, "v", string(res.Value))
		}
	})
}

// Nothing is known of the eventual lane right after a restart, and nothing of it may be missed for that.
func TestStrongReadsSeeEventualWritesAfterPowerCutsOfAll(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		for i := range 8 {
			hushed(c, i%3, (i+1)%3, func() {
				_, err := eventualPut(ctx, c, i%3, fmt.Sprintf("k%d", i), "v", 2, false)
				require.NoError(t, err)
			})
		}
		require.NoError(t, c.Crash(0, 0, 1, 2))
		require.NoError(t, c.StartAll(ctx))
		waitReady(t, ctx, c, 10*time.Second)
		for i := range 8 {
			res, err := strongDo(ctx, c, (i+1)%3, &kv.Request{Op: kv.OpGet, Key: fmt.Appendf(nil, "k%d", i)})
			require.NoError(t, err)
			require.Equal(t, "v", string(res.Value), "k%d", i)
		}
	})
}

func TestStrongAnswersAreThoseOfKeysThatWereWrittenEventually(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		write := func(key string) {
			without := leaderOf(t, c, key)
			writer := (without + 1) % 3
			hushed(c, writer, without, func() {
				_, err := eventualPut(ctx, c, writer, key, "v", 2, false)
				require.NoError(t, err)
			})
		}
		for at := range 3 {
			name := func(s string) string { return fmt.Sprintf("%s-%d", s, at) }
			for _, key := range []string{"created", "deleted", "listed-a", "listed-b"} {
				write(name(key))
			}
			_, err := strongDo(ctx, c, at, &kv.Request{
				Op: kv.OpPut, Key: []byte(name("created")), Value: []byte("mine"), Condition: kv.Condition{Kind: kv.ConditionVersion},
			})
			require.Equal(t, kv.CodeVersionMismatch, kv.CodeOf(err), "the key is there")
			res, err := strongDo(ctx, c, at, &kv.Request{Op: kv.OpGet, Key: []byte(name("created"))})
			require.NoError(t, err)
			require.Equal(t, "v", string(res.Value))
			_, err = strongDo(ctx, c, at, &kv.Request{
				Op: kv.OpPut, Key: []byte(name("created")), Value: []byte("mine"), Condition: kv.Condition{Kind: kv.ConditionVersion, Version: res.Version},
			})
			require.NoError(t, err, "what was read can be replaced")

			res, err = strongDo(ctx, c, at, &kv.Request{Op: kv.OpDelete, Key: []byte(name("deleted"))})
			require.NoError(t, err)
			require.True(t, res.Found, "the deleted key was there")
			res, err = strongDo(ctx, c, at, &kv.Request{Op: kv.OpDelete, Key: []byte(name("deleted"))})
			require.NoError(t, err)
			require.False(t, res.Found)
			res, err = strongDo(ctx, c, at, &kv.Request{Op: kv.OpGet, Key: []byte(name("deleted"))})
			require.NoError(t, err)
			require.False(t, res.Found)
		}
	})
}

func TestStrongListingsShowWhatWasWrittenEventually(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		var want []string
		for i := range 9 {
			key := fmt.Sprintf("{l}:%d", i)
			hushed(c, i%3, (i+1)%3, func() {
				_, err := eventualPut(ctx, c, i%3, key, "v", 2, false)
				require.NoError(t, err)
			})
			want = append(want, key)
		}
		for at := range 3 {
			res, err := strongDo(ctx, c, at, &kv.Request{Op: kv.OpList, List: &kv.ListQuery{Prefix: []byte("{l}:"), Limit: 100}})
			require.NoError(t, err)
			var got []string
			for _, item := range res.Listed {
				got = append(got, string(item.Key))
			}
			require.Equal(t, want, got, "at n%d", at+1)
		}
	})
}

// What only one replica holds may be read or not; once it was, it stays.
func TestWhatAStrongReadAnsweredStaysWhenItsHolderIsGone(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		lead := leaderOf(t, c, "k")
		holder, third := others(lead)[0], others(lead)[1]
		c.Cut([]int{holder}, []int{lead, third})
		_, err := eventualPut(ctx, c, holder, "k", "v", 1, false)
		require.NoError(t, err)
		time.Sleep(10 * time.Millisecond)
		c.Heal()
		require.NoError(t, c.Crash(100, third))
		read, err := strongDo(ctx, c, lead, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
		require.NoError(t, err)
		require.Equal(t, "v", string(read.Value), "the only majority has it")
		require.NoError(t, c.Start(ctx, third))
		waitReady(t, ctx, c, 10*time.Second)
		require.NoError(t, c.Crash(100, holder))
		time.Sleep(5 * time.Second)
		again, err := strongDo(ctx, c, third, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
		require.NoError(t, err)
		require.True(t, again.Found, "what a strong read has answered is gone with its holder")
		require.Equal(t, read.Version, again.Version)
	})
}

// A version that lost may still be stamped anew, and acknowledged for being covered: it must not be.
func TestSettleTakesInTheWinnerAlone(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		lead := leaderOf(t, c, "k")
		a, b := others(lead)[0], others(lead)[1]
		// Two replicas hold a version each that the others do not, the second with the higher stamp.
		c.Cut([]int{a}, others(a))
		c.Cut([]int{b}, others(b))
		_, err := eventualPut(ctx, c, a, "k", "loser", 1, false)
		require.NoError(t, err)
		time.Sleep(10 * time.Millisecond)
		_, err = eventualPut(ctx, c, b, "k", "winner", 1, false)
		require.NoError(t, err)
		time.Sleep(10 * time.Millisecond)
		winner, loser := eventualRows(t, c, b)["k"].Siblings[0], eventualRows(t, c, a)["k"].Siblings[0]
		c.Heal()
		// The leader holds the loser too, so that each majority has the two of them.
		require.NoError(t, c.Crash(100, lead))
		time.Sleep(5 * time.Second)
		res, err := strongDo(ctx, c, a, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
		require.NoError(t, err)
		require.Equal(t, "winner", string(res.Value))
		for _, i := range []int{a, b} {
			s := stateAt(t, c, i, "k")
			require.Equal(t, []causal.Dot{winner.ID}, s.Covered, "at n%d, loser %v", i+1, loser.ID)
			require.Equal(t, winner.Stamp, s.Stamp)
		}
	})
}

// A write that was acknowledged before another began is read with it or after it. The round of the read has the leader's own
// answer from before the first write, and the other's from after the second.
func TestSettledIsOnlyWhatWasKnownBeforeTheLastRound(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		lead := leaderOf(t, c, "k")
		a, b := others(lead)[0], others(lead)[1]
		id := func(i int) kv.NodeID { return c.nodes[i].id }
		slow := func(d time.Duration) Conditions {
			return Conditions{DelayMin: d, DelayMax: d, Reorder: true}
		}
		// Every replica has unsettled keys in the partition, so that the read has to ask about its own.
		other := "k"
		for i := 0; other == "k" || ring.PartitionOf([]byte(other), 4) != ring.PartitionOf([]byte("k"), 4); i++ {
			other = fmt.Sprintf("other-%d", i)
		}
		_, err := eventualPut(ctx, c, lead, other, "v", 3, false)
		require.NoError(t, err)
		c.SetSkew(b, 100*time.Millisecond)
		before, err := c.Total(peeksTotal, "")
		require.NoError(t, err)
		c.net.Set(id(lead), id(a), slow(150*time.Millisecond))
		c.net.Set(id(lead), id(b), slow(2*time.Second))
		type answer struct {
			res kv.Response
			err error
		}
		reads := make(chan answer, 1)
		go func() {
			res, err := strongDo(ctx, c, lead, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
			reads <- answer{res, err}
		}()
		require.Eventually(t, func() bool {
			n, err := c.Total(peeksTotal, "")
			return err == nil && n > before
		}, time.Second, time.Millisecond, "the read asked nobody")
		synctest.Wait() // the leader's answer is in, and the others' are asked for
		c.net.SetAll(slow(0))
		c.net.SetCut(id(b), id(a), true)
		_, err = eventualPut(ctx, c, b, "k", "first, stamped high", 2, false)
		require.NoError(t, err)
		require.Equal(t, []string{"first, stamped high"}, heldAt(t, c, lead, "k"))
		c.net.Set(id(a), id(lead), slow(time.Second))
		c.net.SetCut(id(a), id(b), true)
		_, err = eventualPut(ctx, c, a, "k", "second, stamped low", 1, false)
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
		require.Equal(t, []string{"second, stamped low"}, heldAt(t, c, a, "k"))
		require.Empty(t, reads, "the script went wrong")
		c.net.SetAll(slow(0))
		read := <-reads
		require.NoError(t, read.err)
		require.Equal(t, "first, stamped high", string(read.res.Value), "the second one would be followed by the first")
		settles, err := c.Total("kvstore_settles_total", "applied")
		require.NoError(t, err)
		require.EqualValues(t, 1, settles, "the log took in the second one before: another reader might have answered that")
	})
}

const peeksTotal = "kvstore_peeks_total"

func TestStrongOperationsAnswerAndReplaceAllConcurrentVersions(t *testing.T) {
	inSettleBubble(t, func(t *testing.T, ctx context.Context, c *Cluster) {
		require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("s:"), Resolver: kv.ResolverSiblings}))
		time.Sleep(time.Second)
		const key = "s:k"
		c.Cut([]int{0}, []int{1, 2})
		_, err := eventualPut(ctx, c, 0, key, "a", 1, false)
		require.NoError(t, err)
		_, err = eventualPut(ctx, c, 1, key, "b", 2, false)
		require.NoError(t, err)
		time.Sleep(10 * time.Millisecond)
		c.Heal()
		time.Sleep(time.Second)
		// The majority that has both is that of the first node and another.
		require.NoError(t, c.Crash(100, 2))
		time.Sleep(5 * time.Second)
		for at := range 2 {
			res, err := strongDo(ctx, c, at, &kv.Request{Op: kv.OpGet, Key: []byte(key), Siblings: kv.SiblingsAll})
			require.NoError(t, err)
			var got []string
			for _, s := range res.Siblings {
				got = append(got, string(s.Value))
			}
			require.ElementsMatch(t, []string{"a", "b"}, got, "at n%d", at+1)
		}
		require.Zero(t, stateAt(t, c, 0, key).Revision, "a read settles none of them")
		_, err = strongDo(ctx, c, 1, &kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte("merged")})
		require.NoError(t, err)
		require.Len(t, stateAt(t, c, leaderOf(t, c, key), key).Covered, 2, "exactly what was found")
		res, err := strongDo(ctx, c, 0, &kv.Request{Op: kv.OpGet, Key: []byte(key)})
		require.NoError(t, err)
		require.Equal(t, "merged", string(res.Value))
		// One whose writer has not seen it stands beside it, until a writer who has seen both replaces them.
		_, err = eventualPut(ctx, c, 0, key, "later", 2, false)
		require.NoError(t, err)
		require.NoError(t, c.Start(ctx, 2))
		waitReady(t, ctx, c, 10*time.Second)
		var seen []byte
		for at := range 3 {
			res, err := strongDo(ctx, c, at, &kv.Request{Op: kv.OpGet, Key: []byte(key), Siblings: kv.SiblingsAll})
			require.NoError(t, err)
			var got []string
			for _, s := range res.Siblings {
				got = append(got, string(s.Value))
			}
			require.ElementsMatch(t, []string{"merged", "later"}, got, "at n%d", at+1)
			seen = res.Context
		}
		_, err = c.Execute(ctx, 0, &kv.Request{Op: kv.OpPut, Level: kv.LevelEventual, Key: []byte(key), Value: []byte("last"), Context: seen})
		require.NoError(t, err)
		for at := range 3 {
			res, err := strongDo(ctx, c, at, &kv.Request{Op: kv.OpGet, Key: []byte(key), Siblings: kv.SiblingsAll})
			require.NoError(t, err)
			require.Empty(t, res.Siblings, "all that was seen is replaced")
			require.Equal(t, "last", string(res.Value), "at n%d", at+1)
		}
	})
}

func TestDeletionsThatHideStrongValuesAreSettledAndGo(t *testing.T) {
	inTunedBubble(t, 1, 3, quickRepair, func(t *testing.T, ctx context.Context, c *Cluster) {
		const key = "k"
		_, err := put(ctx, c, 0, kv.LevelStrong, key, "live")
		require.NoError(t, err)
		_, err = c.Execute(ctx, 1, &kv.Request{Op: kv.OpDelete, Level: kv.LevelEventual, Key: []byte(key)})
		require.NoError(t, err)
		until(t, time.Minute, "a deletion above a live value stays for ever", func() bool {
			for i := range 3 {
				if set, held := eventualRows(t, c, i)[key]; held && !set.IsZero() || !stateAt(t, c, i, key).Deleted {
					return false
				}
			}
			return true
		})
		for i := range 3 {
			res, err := get(ctx, c, i, kv.LevelLocal, key)
			require.NoError(t, err)
			require.False(t, res.Found, "the value is back at n%d", i+1)
		}
	})
}
