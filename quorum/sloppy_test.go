package quorum

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// sloppily runs f with three owners and the spare nodes behind them.
func sloppily(t *testing.T, spare int, f func(t *testing.T, c *cluster)) {
	t.Helper()
	inBubble(t, 3+spare, func(t *testing.T, c *cluster) {
		c.spare = spare
		c.slowLinks(time.Millisecond)
		time.Sleep(time.Second) // a node that has just begun takes no hints for others
		f(t, c)
	})
}

func (c *cluster) sloppyPut(at kv.NodeID, key, value string, w int) (kv.Response, error) {
	return c.do(at, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value), Sloppy: true}, kv.Quorum{W: w})
}

func TestSloppyWriteCountsDurableHintsOfTheNextNodesAndSaysSo(t *testing.T) {
	sloppily(t, 2, func(t *testing.T, c *cluster) {
		for _, id := range []kv.NodeID{2, 3} {
			c.kill(id)
			c.node(id).dead.Store(true)
		}
		_, err := c.put(1, "k", "v", nil, 2)
		require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err), "who did not ask for it gets a real quorum or none")
		res, err := c.sloppyPut(1, "k", "v", 2)
		require.NoError(t, err)
		require.GreaterOrEqual(t, res.Acks, 2)
		require.GreaterOrEqual(t, res.Hinted, 1)
		require.Equal(t, res.Acks, len(res.Replicas)+res.Hinted)
		require.Equal(t, []kv.NodeID{1}, res.Replicas)
		time.Sleep(time.Second)
		require.Len(t, c.node(4).pending(2), 1)
		require.Len(t, c.node(5).pending(3), 1)
		require.Empty(t, c.node(4).held("k"), "it is no replica")
		res, err = c.sloppyPut(1, "k3", "v", 3)
		require.NoError(t, err)
		require.Equal(t, 2, res.Hinted)
		// Hints that were counted outlive a power cut of their holders.
		c.powerCut(4)
		c.powerCut(5)
		c.revive(2)
		c.revive(3)
		time.Sleep(10 * time.Second)
		for _, key := range []string{"k", "k3"} {
			for id := kv.NodeID(1); id <= 3; id++ {
				require.Equal(t, []string{"v"}, values(c.node(id).held(key)), "%s on node %d", key, id)
			}
		}
		require.Empty(t, c.node(4).hints.Status())
		require.Empty(t, c.node(5).hints.Status())
	})
}

func TestSloppyWriteIsNotHintedWhileItsReplicasAnswer(t *testing.T) {
	sloppily(t, 1, func(t *testing.T, c *cluster) {
		res, err := c.sloppyPut(1, "k", "v", 3)
		require.NoError(t, err)
		require.Equal(t, 3, res.Acks)
		require.Zero(t, res.Hinted)
		time.Sleep(time.Minute)
		require.Zero(t, c.node(4).metric("kvstore_hints_queued_total", ""))
	})
}

func TestSloppyWriteDoesNotWaitForALateReplicaForLong(t *testing.T) {
	sloppily(t, 1, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{swallow: true})
		within(t, c.node(1).coord.cfg.FallbackDelay+50*time.Millisecond, func() {
			res, err := c.sloppyPut(1, "k", "v", 3)
			require.NoError(t, err)
			require.Equal(t, 1, res.Hinted)
		})
	})
}

func TestReplicaThatAnswersAfterItsHintCountsOnce(t *testing.T) {
	sloppily(t, 1, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{delay: 300 * time.Millisecond})
		c.setLink(1, 3, link{refuse: kv.Errorf(kv.CodeNotReady, "no connection")})
		c.setLink(1, 4, link{delay: 100 * time.Millisecond})
		// The only spare node keeps the hint for node 3, so that W=3 needs node 2 itself.
		began := time.Now()
		res, err := c.sloppyPut(1, "k", "v", 3)
		require.NoError(t, err)
		require.Greater(t, time.Since(began), 300*time.Millisecond)
		require.Equal(t, 3, res.Acks)
		require.Equal(t, 1, res.Hinted)
	})
}

func TestSloppyWriteWhoseHoldersFailTurnsToTheNextOne(t *testing.T) {
	sloppily(t, 3, func(t *testing.T, c *cluster) {
		c.kill(2)
		c.kill(3)
		c.setLink(1, 4, link{refuse: kv.Errorf(kv.CodeNotReady, "no connection")})
		c.node(5).hints.cfg.BytesMax = 1
		res, err := c.sloppyPut(1, "k", "v", 2)
		require.NoError(t, err)
		require.Equal(t, 1, res.Hinted)
		require.Equal(t, 1.0, c.node(6).metric("kvstore_hints_queued_total", ""))
	})
}

func TestWriteOfAHotKeyFromManyCoordinatorsIsNeverOutrunForGood(t *testing.T) {
	for _, leads := range []kv.NodeID{1, 3} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.leads = leads
			c.slowLinks(3 * time.Millisecond)
			var mu sync.Mutex
			var failed []error
			var all sync.WaitGroup
			for client := range 24 {
				all.Go(func() {
					for i := range 40 {
						_, err := c.put(kv.NodeID(1+client%3), "hot", fmt.Sprintf("%d/%d", client, i), nil, 2)
						if err != nil {
							mu.Lock()
							failed = append(failed, err)
							mu.Unlock()
						}
					}
				})
			}
			all.Wait()
			require.Empty(t, failed)
			require.Positive(t, c.node(2).metric("kvstore_quorum_leader_writes_total", ""))
			time.Sleep(10 * time.Second)
		})
	}
}

// A leader that falls silent costs the writes of a hot key that it was just handed, and no others.
func TestHotKeyIsWrittenOnWhileItsLeaderIsSilent(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.leads = 3
		c.node(1).coord.hot.add([]byte("hot"), time.Hour)
		_, err := c.put(1, "hot", "0", nil, 2)
		require.NoError(t, err)
		require.Positive(t, c.node(1).metric("kvstore_quorum_leader_writes_total", ""), "the leader was handed it")
		for _, from := range []kv.NodeID{1, 2} {
			c.setLink(from, 3, link{swallow: true})
		}
		var all sync.WaitGroup
		var lost atomic.Int64
		for i := range 100 {
			all.Go(func() {
				if _, err := c.put(1, "hot", fmt.Sprint(i), nil, 2); err != nil {
					lost.Add(1)
				}
			})
			within(t, 10*time.Millisecond, func() {
				_, err := c.put(1, "hot", "alone", nil, 1)
				require.NoError(t, err, "a write of one replica waits for no other")
			})
			time.Sleep(10 * time.Millisecond)
		}
		all.Wait()
		// It is found out by the second write that looks, and a while later.
		require.LessOrEqual(t, lost.Load(), int64(4+silentAfter/(10*time.Millisecond)))
		time.Sleep(10 * time.Second)
	})
}

// The write that the leader goes on with is the one that was begun: it is there once, under its first id.
func TestWriteThatTheLeaderGoesOnWithIsOneWrite(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.leads = 2
		for _, id := range []kv.NodeID{2, 3} {
			// The others are ahead of the coordinator, so that both attempts are refused until it has caught up with both.
			c.node(id).strong("k", strongAt(9, uint64(id)))
		}
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.Equal(t, kv.OutcomeApplied, res.Outcome)
		time.Sleep(time.Minute)
		ids := map[string]bool{}
		for id := kv.NodeID(1); id <= 3; id++ {
			for _, s := range c.node(id).held("k").Siblings {
				ids[fmt.Sprint(s.ID)] = true
				require.Equal(t, "v", string(s.Value))
			}
		}
		require.Len(t, ids, 1)
	})
}

func strongAt(term, index uint64) storage.Strong {
	return storage.Strong{
		Value: []byte("s"), Revision: index, Stamp: causal.Stamp{Base: causal.Position{Term: term, Index: index}, Time: 1, Node: 1},
	}
}

// Whoever raises the watermark has to learn of each node that may keep a hint, power cuts or not, and of none that cannot.
func TestWhoWasAskedToKeepHintsIsNotedBeforeItIsAsked(t *testing.T) {
	sloppily(t, 1, func(t *testing.T, c *cluster) {
		_, err := c.sloppyPut(1, "all", "v", 3)
		require.NoError(t, err)
		require.Empty(t, c.node(1).hints.Holders(3), "all replicas took it")
		c.kill(2)
		c.node(2).dead.Store(true)
		c.node(1).disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		done := make(chan error, 1)
		go func() {
			_, err := c.sloppyPut(1, "k", "v", 3)
			done <- err
		}()
		time.Sleep(90 * time.Millisecond)
		require.Empty(t, c.node(4).pending(2), "the note is not durable yet")
		require.NoError(t, <-done)
		require.Len(t, c.node(4).pending(2), 1)
		require.Equal(t, []kv.NodeID{4}, c.node(1).hints.Holders(3))
		c.powerCut(1)
		require.Equal(t, []kv.NodeID{4}, c.node(1).hints.Holders(3))

		// Only a watermark above all that the node was asked for strikes it out, for good.
		c.node(1).hints.Strike(3, c.node(1).hints.boot-1)
		require.Len(t, c.node(1).hints.Holders(3), 1)
		c.node(1).hints.Strike(3, c.node(1).clock.Last())
		require.Empty(t, c.node(1).hints.Holders(3))
		time.Sleep(time.Second)
		require.NoError(t, c.node(1).engine.State().ScanHintHolders(func(kv.PartitionID, kv.NodeID) { require.Fail(t, "it is still on the disk") }))
	})
}

// The watermark has asked by then.
func TestNobodyIsAskedToKeepWhatIsFromBeforeThePromise(t *testing.T) {
	sloppily(t, 1, func(t *testing.T, c *cluster) {
		c.kill(2)
		c.node(2).dead.Store(true)
		c.node(1).disk.set(func(d *testDisk) { d.sync = 100 * time.Millisecond })
		done := make(chan error, 1)
		go func() {
			_, err := c.sloppyPut(1, "k", "v", 3)
			done <- err
		}()
		time.Sleep(50 * time.Millisecond) // it is placed, and its note is on the way to the disk
		promised := causal.MakeHLC(time.Now().UnixMilli(), 0)
		require.NoError(t, c.node(1).engine.ChangeRepair(3, func(r *storage.RepairState) { r.Promised = promised }))
		require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(<-done))
		require.Empty(t, c.node(4).pending(2))
	})
}
