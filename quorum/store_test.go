package quorum

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// arriving makes a write of one version as another coordinator would send it.
func arriving(key string, node kv.NodeID, ms int64, value string) WriteRequest {
	d := causal.Dot{Node: node, Time: causal.MakeHLC(ms, 0)}
	w := causal.Sibling{ID: d, Dot: d, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 1}, Time: d.Time, Node: node}, Value: []byte(value)}
	return WriteRequest{
		Partition: 3, Epoch: 1, Key: []byte(key), New: d,
		Set: causal.SiblingSet{Siblings: []causal.Sibling{w}, Context: causal.Vector{d}},
	}
}

// outcome is how a Store.Write ended.
type outcome struct {
	reply WriteReply
	err   error
}

func writeAsync(s *Store, w WriteRequest) <-chan outcome {
	ch := make(chan outcome, 1)
	s.Write(w, func(r WriteReply, err error) { ch <- outcome{r, err} })
	return ch
}

func TestAcknowledgementNeverComesBeforeTheSync(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for id := range c.nodes {
			c.nodes[id].disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		}
		start := time.Now()
		_, err := c.put(1, "k", "v", nil, 3)
		require.NoError(t, err)
		require.Equal(t, 100*time.Millisecond, time.Since(start), "all three sync at the same time")

		// A repeated message whose content is not durable yet waits for it too.
		now := time.Now().UnixMilli()
		first := writeAsync(c.nodes[1].store, arriving("dup", 2, now, "v"))
		time.Sleep(10 * time.Millisecond)
		again := writeAsync(c.nodes[1].store, arriving("dup", 2, now, "v"))
		repair := arriving("dup", 2, now, "v")
		repair.New = causal.Dot{}
		third := writeAsync(c.nodes[1].store, repair)
		synctest.Wait()
		for _, ch := range []<-chan outcome{first, again, third} {
			require.Empty(t, ch, "acknowledged before its sync")
		}
		time.Sleep(100 * time.Millisecond)
		for _, ch := range []<-chan outcome{first, again, third} {
			require.Equal(t, outcome{WriteReply{Accepted: true}, nil}, <-ch)
		}
	})
}

func TestAnswerNeedsTheCoordinatorsOwnCopy(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		start := time.Now()
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		require.Len(t, res.Replicas, 3)
	})
}

func TestWritesOfOneKeyShareTheCommitThatIsNotFilled(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		c.keeps = true
		n.disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		var acks []<-chan outcome
		now := time.Now().UnixMilli()
		for i := range 10 {
			acks = append(acks, writeAsync(n.store, arriving("k", kv.NodeID(i+2), now, fmt.Sprint(i))))
		}
		// The first is on its way to the disk; the others ride along with the next commit.
		for _, ch := range acks {
			require.True(t, (<-ch).reply.Accepted)
		}
		require.Len(t, n.held("k").Siblings, 10)
		require.LessOrEqual(t, n.disk.filled, 2)
		require.Empty(t, n.entries(), "no key is being written")
	})
}

// entries returns the keys that are being written.
func (n *testNode) entries() (out []string) {
	for i := range n.store.pending.stripes {
		st := &n.store.pending.stripes[i]
		st.mu.Lock()
		for k := range st.entries {
			out = append(out, k.key)
		}
		st.mu.Unlock()
	}
	return out
}

func TestMergesRacingFromManyGoroutinesLoseNothing(t *testing.T) {
	// In real time, for the race detector's sake.
	c := newCluster(t, 1)
	c.keeps = true
	n := c.nodes[1]
	const writers, each, keys = 8, 40, 3
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				key := fmt.Sprintf("k%d", i%keys)
				// Some arrive from other coordinators, some are made here.
				if w%2 == 0 {
					now := time.Now().UnixMilli()
					got := <-writeAsync(n.store, arriving(key, kv.NodeID(100+w*each+i), now, fmt.Sprintf("%d/%d", w, i)))
					if got.err != nil || !got.reply.Accepted {
						t.Errorf("write %d/%d: %+v", w, i, got)
					}
					continue
				}
				done := make(chan error, 1)
				_, err := n.store.place(t.Context(), 1, 3, []byte(key), &draft{value: fmt.Appendf(nil, "%d/%d", w, i)}, Siblings{},
					func(_ WriteReply, err error) { done <- err })
				if err == nil {
					err = <-done
				}
				if err != nil && kv.CodeOf(err) != kv.CodeSiblings {
					t.Errorf("write %d/%d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for k := range keys {
		held := n.held(fmt.Sprintf("k%d", k))
		for _, s := range held.Siblings {
			require.True(t, held.Covers(s.Dot))
		}
		total += len(held.Siblings)
	}
	require.GreaterOrEqual(t, total, writers/2*each, "all that arrived are kept, and what was made here until the limit")
	require.Empty(t, n.entries())
}

func TestEveryAcknowledgedSiblingOfARaceIsHeld(t *testing.T) {
	c := newCluster(t, 1)
	c.keeps = true
	n := c.nodes[1]
	n.store.cfg.SiblingsMax = 1 << 20
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				done := make(chan error, 1)
				_, err := n.store.place(t.Context(), 1, 3, []byte("k"), &draft{value: fmt.Appendf(nil, "%d/%d", w, i)}, Siblings{},
					func(_ WriteReply, err error) { done <- err })
				if err == nil {
					err = <-done
				}
				if err != nil {
					t.Errorf("write %d/%d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, n.held("k").Siblings, writers*each)
}

func TestPowerCutLosesNothingThatWasAcknowledged(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		c.keeps = true
		n := c.nodes[1]
		now := time.Now().UnixMilli()
		require.True(t, (<-writeAsync(n.store, arriving("k", 2, now, "durable"))).reply.Accepted)
		n.disk.set(func(d *testDisk) { d.sync = time.Hour })
		lost := writeAsync(n.store, arriving("k", 3, now, "in memory only"))
		synctest.Wait()
		require.Empty(t, lost)

		crashed := n.crash()
		e, err := storage.Open("db", testStorageConfig(), storage.Deps{FS: crashed})
		require.NoError(t, err)
		set, _, err := e.State().Siblings(3, []byte("k"))
		require.NoError(t, err)
		require.Equal(t, []string{"durable"}, values(set))
		require.NoError(t, e.Close())
	})
}

func TestRefusedCommitLeavesNoTrace(t *testing.T) {
	for _, how := range []struct {
		name  string
		spoil func(*testDisk)
	}{
		{"at the queue", func(d *testDisk) { d.refuse = kv.Errorf(kv.CodeOverloaded, "full") }},
		{"before it was filled", func(d *testDisk) { d.drop = errors.New("stopped") }},
	} {
		t.Run(how.name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, c *cluster) {
				n := c.nodes[1]
				_, err := c.put(1, "k", "before", nil, 2)
				require.NoError(t, err)
				n.disk.set(how.spoil)
				now := time.Now().UnixMilli() + 5
				got := <-writeAsync(n.store, arriving("k", 9, now, "lost"))
				require.False(t, got.reply.Accepted)
				require.Equal(t, kv.OutcomeNotApplied, kv.AsError(got.err).Outcome)
				require.Empty(t, n.entries())

				n.disk.set(func(d *testDisk) { d.refuse, d.drop = nil, nil })
				require.Equal(t, []string{"before"}, values(n.held("k")))
				// The dot is not taken for held: the same message is merged now.
				got = <-writeAsync(n.store, arriving("k", 9, now, "second try"))
				require.NoError(t, got.err)
				require.Equal(t, []string{"before", "second try"}, values(n.held("k")))
			})
		})
	}
}

func TestWriteWhoseOwnReplicaRefusedIsNotApplied(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].disk.set(func(d *testDisk) { d.refuse = kv.Errorf(kv.CodeOverloaded, "full") })
		_, err := c.put(1, "k", "v", nil, 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeOverloaded, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		time.Sleep(time.Second)
		require.True(t, c.nodes[2].held("k").IsZero(), "nothing was sent")
	})
}

func TestFailedSyncIsUnknownAndNothingRestsOnIt(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.disk.set(func(d *testDisk) { d.fail = errors.New("the disk is gone") })
		now := time.Now().UnixMilli()
		w := arriving("k", 2, now, "v")
		got := <-writeAsync(n.store, w)
		require.Equal(t, kv.OutcomeUnknown, kv.AsError(got.err).Outcome)
		require.Equal(t, []string{"k"}, n.entries(), "the key is remembered as not to be trusted")

		// The same message again is no duplicate of something durable: it is written again, or fails again.
		got = <-writeAsync(n.store, w)
		require.Error(t, got.err)
		n.disk.set(func(d *testDisk) { d.fail = nil })
		got = <-writeAsync(n.store, w)
		require.NoError(t, got.err)
		require.Equal(t, []string{"v"}, values(n.held("k")))
		require.Empty(t, n.entries())
	})
}

func TestDuplicateOfWhatIsDurableDoesNotFailWithALaterCommit(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		c.keeps = true
		n := c.nodes[1]
		now := time.Now().UnixMilli()
		require.True(t, (<-writeAsync(n.store, arriving("k", 2, now, "durable"))).reply.Accepted)
		n.disk.set(func(d *testDisk) { d.sync = 10 * time.Millisecond })
		busy := writeAsync(n.store, arriving("other", 2, now, "x")) // keeps the disk busy
		synctest.Wait()
		n.disk.set(func(d *testDisk) { d.drop = errors.New("stopped") })
		failing := writeAsync(n.store, arriving("k", 3, now, "queued"))
		duplicate := writeAsync(n.store, arriving("k", 2, now, "durable"))
		require.Equal(t, outcome{WriteReply{Accepted: true}, nil}, <-duplicate)
		require.True(t, (<-busy).reply.Accepted)
		require.Error(t, (<-failing).err)
	})
}

func TestVersionFromTheFutureIsRefused(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		got := <-writeAsync(n.store, arriving("k", 2, time.Now().Add(time.Minute).UnixMilli(), "v"))
		require.ErrorIs(t, got.err, causal.ErrClockSkew)
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(got.err).Outcome)
		require.True(t, n.held("k").IsZero())

		noAttempt := arriving("k", 2, time.Now().UnixMilli(), "v")
		noAttempt.New.Time++
		got = <-writeAsync(n.store, noAttempt)
		require.Equal(t, kv.CodeBadRequest, kv.CodeOf(got.err))
	})
}

// resolverThat returns a resolver that keeps siblings, or one that does not.
func resolverThat(keeps bool) Resolver {
	if keeps {
		return Siblings{}
	}
	return LWW{}
}

func TestReplicasConvergeWhateverTheOrderOfMessages(t *testing.T) {
	// The same writes reach two replicas in different orders, some twice, some as repairs of what the other holds.
	rapid.Check(t, func(rt *rapid.T) {
		keeps := rapid.Bool().Draw(rt, "keeps")
		var sent []WriteRequest
		coordinators := map[kv.NodeID]*versions{1: {}, 2: {}, 3: {}}
		for i := range rapid.IntRange(1, 8).Draw(rt, "writes") {
			node := kv.NodeID(rapid.IntRange(1, 3).Draw(rt, "node"))
			v := coordinators[node]
			if len(sent) > 0 && rapid.Bool().Draw(rt, "heard of others") {
				v.set = v.merged(sent[rapid.IntRange(0, len(sent)-1).Draw(rt, "which")].Set, keeps)
			}
			d := draft{value: fmt.Append(nil, i)}
			dot := causal.Dot{Node: node, Time: causal.HLC(100 + i)}
			set, how, err := v.place(&d, dot, causal.Position{Term: 1, Index: 1}, resolverThat(keeps), 64)
			require.NoError(rt, err)
			if how != placementMade {
				continue
			}
			v.set = set
			sent = append(sent, WriteRequest{Set: set, New: dot})
		}
		replicas := [2]versions{}
		for i := range replicas {
			order := rapid.Permutation(append(sent, sent...)).Draw(rt, "order")
			for j := range order {
				w := order[j]
				if rapid.Bool().Draw(rt, "as a repair") {
					w.New = causal.Dot{}
				}
				if replicas[i].decide(&w, keeps) == verdictMerge {
					replicas[i].set = replicas[i].merged(w.Set, keeps)
				}
			}
		}
		a, b := replicas[0], replicas[1]
		a.set, b.set = a.merged(b.set, keeps), b.merged(a.set, keeps)
		if !a.set.Equal(b.set) {
			rt.Fatalf("replicas differ after an exchange:\n%s\n%s", formatSet(a.set), formatSet(b.set))
		}
		if len(sent) > 0 && len(a.set.Siblings) == 0 {
			rt.Fatalf("everything was lost of %d writes", len(sent))
		}
	})
}
