package quorum

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func TestRefusedWriteIsStampedAnewWithItsWriteID(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		// Nodes 2 and 3 have applied a strong write that node 1 has not heard of.
		for id := kv.NodeID(2); id <= 3; id++ {
			c.nodes[id].strong("k", storage.Strong{
				Value: []byte("strong"), Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}, Time: 1, Node: 2},
			})
			c.nodes[id].position.Store(&causal.Position{Term: 2, Index: 11})
		}
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.Equal(t, kv.OutcomeApplied, res.Outcome)
		require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[1].coord.metrics.restamps))
		time.Sleep(time.Second)
		for id := kv.NodeID(1); id <= 3; id++ {
			set := c.nodes[id].held("k")
			require.Len(t, set.Siblings, 1, "the second attempt takes the place of the first, node %d", id)
			w := set.Siblings[0]
			require.NotEqual(t, w.Dot, w.ID)
			require.Less(t, w.ID.Time, w.Dot.Time)
			require.Equal(t, causal.Position{Term: 2, Index: 11}, w.Stamp.Base, "a position really appended at the replica that refused")
			require.True(t, set.Covers(w.ID), "the first attempt is superseded")
		}
		got, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
	})
}

func TestWriteGivesUpAfterItsAttempts(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *cluster) {
		// Each time an attempt arrives, node 2 turns out to have applied one more strong write.
		revision := uint64(10)
		ahead := func() {
			revision += 10
			c.nodes[2].strong("k", storage.Strong{Revision: revision, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: revision}}})
		}
		ahead()
		moving := movingTarget{wires: wires{c, c.nodes[1]}, before: ahead}
		c.nodes[1].coord.deps.Replicas = moving
		_, err := c.put(1, "k", "v", nil, 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeQuorumUnavailable, e.Code)
		require.Equal(t, kv.OutcomeUnknown, e.Outcome)
		require.True(t, e.Retryable)
		require.Equal(t, float64(DefaultConfig().AttemptsMax-1), testutil.ToFloat64(c.nodes[1].coord.metrics.restamps))
		time.Sleep(time.Second)
		require.Len(t, c.nodes[1].held("k").Siblings, 1)
	})
}

// movingTarget runs a function before each write it carries.
type movingTarget struct {
	wires
	before func()
}

func (m movingTarget) Write(ctx context.Context, to kv.NodeID, w WriteRequest, done func(WriteReply, error)) {
	m.before()
	m.wires.Write(ctx, to, w, done)
}

func TestRefusalWaitsForTheOthersOnlyAsLongAsTheHedgeDelay(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[2].strong("k", storage.Strong{Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}}})
		c.setLink(1, 3, link{swallow: true})
		within(t, DefaultConfig().HedgeDelay+5*time.Millisecond, func() {
			res, err := c.put(1, "k", "v", nil, 2)
			require.NoError(t, err)
			require.ElementsMatch(t, []kv.NodeID{1, 2}, res.Replicas)
		})
	})
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[2].strong("k", storage.Strong{Revision: 9, Stamp: causal.Stamp{Base: causal.Position{Term: 2, Index: 9}}})
		c.setLink(1, 3, link{delay: 5 * time.Millisecond})
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.ElementsMatch(t, []kv.NodeID{1, 3}, res.Replicas, "the third's acknowledgement came in time")
		require.Zero(t, testutil.ToFloat64(c.nodes[1].coord.metrics.restamps))
	})
}

func TestConcurrentWritesOfTwoCoordinatorsStayTogetherAsSiblings(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(time.Millisecond)
		c.concurrently(t, func(at kv.NodeID) {
			_, err := c.put(at, "k", fmt.Sprintf("from %d", at), nil, 2)
			require.NoError(t, err)
		})
		time.Sleep(time.Second)
		res, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Len(t, res.Siblings, 2)
		require.True(t, res.Found)
		for id := range c.nodes {
			require.ElementsMatch(t, []string{"from 1", "from 2"}, values(c.nodes[id].held("k")))
		}

		_, err = c.do(3, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Siblings: kv.SiblingsError}, kv.Quorum{})
		require.Equal(t, kv.CodeSiblings, kv.CodeOf(err))
		one, err := c.do(3, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Siblings: kv.SiblingsResolve}, kv.Quorum{})
		require.NoError(t, err)
		require.Equal(t, 2, one.Concurrent)
		require.Empty(t, one.Siblings)

		// The context of one answer covers all of them.
		_, err = c.put(2, "k", "merged", res.Context, 2)
		require.NoError(t, err)
		time.Sleep(time.Second)
		for id := range c.nodes {
			require.Equal(t, []string{"merged"}, values(c.nodes[id].held("k")))
		}
	})
}

// concurrently runs f at nodes 1 and 2 at the same virtual time.
func (c *cluster) concurrently(_ *testing.T, f func(at kv.NodeID)) {
	done := make(chan struct{})
	for at := kv.NodeID(1); at <= 2; at++ {
		go func() {
			f(at)
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

func TestLastWriterOfTwoCoordinatorsIsTheSameEverywhere(t *testing.T) {
	for _, skew := range []time.Duration{0, 200 * time.Millisecond, -200 * time.Millisecond} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.nodes[1].skew = skew
			c.slowLinks(time.Millisecond)
			for round := range 10 {
				c.concurrently(t, func(at kv.NodeID) {
					_, err := c.put(at, "k", fmt.Sprintf("from %d in round %d", at, round), nil, 2)
					require.NoError(t, err)
				})
			}
			time.Sleep(time.Second)
			// A read of all leaves nobody behind.
			first, err := c.get(1, "k", 3)
			require.NoError(t, err)
			time.Sleep(time.Second)
			for at := kv.NodeID(1); at <= 3; at++ {
				got, err := c.do(at, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelLocal}, kv.Quorum{})
				require.NoError(t, err)
				require.Equal(t, string(first.Value), string(got.Value), "node %d, skew %v", at, skew)
			}
		})
	}
}

func TestAcknowledgedWriteIsNotLostToAClockThatIsBehind(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].skew = -400 * time.Millisecond
		for i := range 10 {
			_, err := c.put(kv.NodeID(i%3+1), "k", fmt.Sprint(i), nil, 2)
			require.NoError(t, err)
			got, err := c.get(kv.NodeID((i+1)%3+1), "k", 2)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), string(got.Value))
		}
	})
}

func TestLateDuplicateRevivesNothing(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.keeps = keeps
			c.setLink(1, 2, link{twice: 500 * time.Millisecond})
			first, err := c.put(1, "k", "old", nil, 3)
			require.NoError(t, err)
			c.setLink(1, 2, link{})
			_, err = c.put(3, "k", "new", first.Context, 3)
			require.NoError(t, err)
			time.Sleep(time.Second) // the duplicate of "old" arrives
			require.Equal(t, []string{"new"}, values(c.nodes[2].held("k")))
			want := verdictRefused // what was written after it is stamped higher
			if keeps {
				want = verdictHeld
			}
			require.Equal(t, 1.0, testutil.ToFloat64(c.nodes[2].store.metrics.verdicts[want]))
		})
	}
}

func TestDeletedKeyIsNotRevivedByALateWrite(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 3, link{delay: 500 * time.Millisecond})
		_, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		res, err := c.del(2, "k", nil, 2)
		require.NoError(t, err)
		require.True(t, res.Found, "there was a value to delete")
		time.Sleep(time.Second) // the put arrives at node 3, after the tombstone
		for at := kv.NodeID(1); at <= 3; at++ {
			got, err := c.get(at, "k", 2)
			require.NoError(t, err)
			require.False(t, got.Found, "node %d", at)
			require.NotEmpty(t, got.Context, "a tombstone has a context too")
			require.True(t, got.Timestamp.IsZero())
		}
		again, err := c.del(2, "k", nil, 2)
		require.NoError(t, err)
		require.False(t, again.Found)
	})
}

func TestSiblingsAreRefusedBeyondTheLimitBeforeAnythingIsWritten(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		for i := range DefaultConfig().SiblingsMax {
			_, err := c.put(1, "k", fmt.Sprint(i), nil, 2)
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		before := c.nodes[2].held("k")
		_, err := c.put(1, "k", "one too many", nil, 2)
		e := kv.AsError(err)
		require.Equal(t, kv.CodeSiblings, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		time.Sleep(time.Second)
		require.True(t, before.Equal(c.nodes[2].held("k")))

		got, err := c.get(2, "k", 2)
		require.NoError(t, err)
		_, err = c.put(1, "k", "all", got.Context, 2)
		require.NoError(t, err, "a write that has read them replaces them")
		require.Equal(t, []string{"all"}, values(c.nodes[1].held("k")))
	})
}

func TestRefusalMovesTheClockAboveWhatRefused(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.nodes[1].skew = -200 * time.Millisecond
		ahead := time.Now().Add(100 * time.Millisecond)
		for id := kv.NodeID(2); id <= 3; id++ {
			require.True(t, (<-writeAsync(c.nodes[id].store, arriving("k", 2, ahead.UnixMilli(), "ahead"))).reply.Accepted)
		}
		res, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		require.True(t, res.Timestamp.Compare(ahead.Truncate(time.Millisecond)) >= 0)
		got, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
	})
}
