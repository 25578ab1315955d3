package quorum

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// each runs requests at a node as one group, with r and w of 2 unless q says otherwise.
func (c *cluster) each(at kv.NodeID, timeout time.Duration, q kv.Quorum, requests ...kv.Request) []kv.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	calls := make([]Call, len(requests))
	for i := range requests {
		r := &requests[i]
		if r.Level == kv.LevelUnset {
			r.Level = kv.LevelEventual
		}
		calls[i] = c.call(r, q)
	}
	return c.node(at).coord.DoEach(ctx, calls)
}

func puts(n int, value string) []kv.Request {
	out := make([]kv.Request, n)
	for i := range out {
		out[i] = kv.Request{Op: kv.OpPut, Key: fmt.Appendf(nil, "k%03d", i), Value: []byte(value)}
	}
	return out
}

func gets(n int) []kv.Request {
	out := make([]kv.Request, n)
	for i := range out {
		out[i] = kv.Request{Op: kv.OpGet, Key: fmt.Appendf(nil, "k%03d", i)}
	}
	return out
}

func TestGroupOfWritesIsOneMessageAndOneCommitAtEachReplica(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		for _, a := range c.each(1, time.Second, kv.Quorum{W: 3}, puts(100, "v")...) {
			require.Nil(t, a.Err)
			require.Equal(t, kv.OutcomeApplied, a.Response.Outcome)
			require.Equal(t, 3, a.Response.Acks)
			require.Equal(t, []kv.NodeID{1, 2, 3}, sorted(a.Response.Replicas))
			require.NotEmpty(t, a.Response.Context)
		}
		require.EqualValues(t, 2, c.node(1).groups.Load(), "one to each of the other replicas")
		require.Zero(t, c.node(1).singles.Load())
		for id := range c.nodes {
			c.node(id).disk.set(func(d *testDisk) { require.Equal(t, 1, d.filled, "commits of node %d", id) })
			require.Equal(t, []string{"v"}, values(c.node(id).held("k042")))
		}
		for i, a := range c.each(1, time.Second, kv.Quorum{R: 3}, append(gets(100), kv.Request{Op: kv.OpGet, Key: []byte("none")})...) {
			require.Nil(t, a.Err)
			require.Equal(t, i < 100, a.Response.Found)
			require.Equal(t, 3, a.Response.Acks)
		}
		require.EqualValues(t, 4, c.node(1).groups.Load())
		require.Zero(t, c.node(1).singles.Load())
	})
}

func sorted(nodes []kv.NodeID) []kv.NodeID {
	out := append([]kv.NodeID(nil), nodes...)
	for i := range out {
		for j := i + 1; j < len(out); j++ {
			if out[j] < out[i] {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}

func TestEachOfAGroupHasItsOwnOutcome(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		// Another coordinator's stamp is far above on one key of the replicas 2 and 3.
		ahead := causal.MakeHLC(time.Now().Add(300*time.Millisecond).UnixMilli(), 0)
		for id := kv.NodeID(2); id <= 3; id++ {
			set := causal.SiblingSet{}.Put(causal.Sibling{
				ID: causal.Dot{Node: 3, Time: ahead}, Dot: causal.Dot{Node: 3, Time: ahead},
				Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 1}, Time: ahead, Node: 3}, Value: []byte("ahead"),
			}, nil)
			c.node(id).store.Write(WriteRequest{Partition: 3, Epoch: 1, Key: []byte("k001"), Set: set}, func(WriteReply, error) {})
		}
		time.Sleep(100 * time.Millisecond)
		requests := append(puts(3, "mine"),
			kv.Request{Op: kv.OpPut, Key: []byte("bad"), Context: []byte("nonsense")},
			kv.Request{Op: kv.OpGet, Key: []byte("k001")},
			kv.Request{Op: kv.OpDelete, Key: []byte("gone")},
		)
		requests[4].Key = []byte("other")
		out := c.each(1, time.Second, kv.Quorum{}, requests...)
		for _, i := range []int{0, 1, 2, 4, 5} {
			require.Nil(t, out[i].Err, "operation %d", i)
		}
		require.Equal(t, kv.CodeBadRequest, out[3].Err.Code)
		require.Equal(t, kv.OutcomeNotApplied, out[3].Err.Outcome)
		require.False(t, out[4].Response.Found)
		require.False(t, out[5].Response.Found)
		require.Positive(t, c.node(1).singles.Load(), "the refused write was stamped anew, by itself")
		got, err := c.get(3, "k001", 3)
		require.NoError(t, err)
		require.Equal(t, "mine", string(got.Value))
	})
}

func TestGroupSaysUnknownOfWhatWasSentAndNotAppliedOfWhatWasNot(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 2, link{swallow: true})
		c.setLink(1, 3, link{swallow: true})
		within(t, 300*time.Millisecond, func() {
			for _, a := range c.each(1, 200*time.Millisecond, kv.Quorum{}, puts(5, "v")...) {
				require.Equal(t, kv.CodeDeadlineExceeded, a.Err.Code)
				require.Equal(t, kv.OutcomeUnknown, a.Err.Outcome)
				require.Equal(t, 1, a.Err.Acked)
			}
		})
		for _, a := range c.each(1, 200*time.Millisecond, kv.Quorum{}, gets(5)...) {
			require.Equal(t, kv.CodeDeadlineExceeded, a.Err.Code)
			require.Equal(t, kv.OutcomeNotApplied, a.Err.Outcome)
		}
		c.node(1).disk.set(func(d *testDisk) { d.refuse = kv.Errorf(kv.CodeOverloaded, "the disk is busy") })
		sent := c.node(1).groups.Load()
		for _, a := range c.each(1, 200*time.Millisecond, kv.Quorum{}, puts(5, "w")...) {
			require.Equal(t, kv.CodeOverloaded, a.Err.Code)
			require.Equal(t, kv.OutcomeNotApplied, a.Err.Outcome)
		}
		require.Equal(t, sent, c.node(1).groups.Load(), "nothing was sent")
		c.node(1).disk.set(func(d *testDisk) { d.refuse = nil })
		for id := kv.NodeID(2); id <= 3; id++ {
			c.setLink(1, id, link{refuse: kv.Errorf(kv.CodeNotReady, "no connection")})
		}
		for _, a := range c.each(1, time.Second, kv.Quorum{}, puts(5, "x")...) {
			require.Equal(t, kv.CodeQuorumUnavailable, a.Err.Code)
			require.Equal(t, kv.OutcomeUnknown, a.Err.Outcome, "this node holds it")
		}
	})
}

func TestGroupOfReadsAsksTheRestInOneMessageWhenAReplicaIsLate(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		for _, a := range c.each(1, time.Second, kv.Quorum{W: 3}, puts(50, "v")...) {
			require.Nil(t, a.Err)
		}
		c.setLink(1, 2, link{swallow: true})
		before := c.node(1).groups.Load()
		within(t, 100*time.Millisecond, func() {
			for _, a := range c.each(1, time.Second, kv.Quorum{R: 2}, gets(50)...) {
				require.Nil(t, a.Err)
				require.Equal(t, "v", string(a.Response.Value))
			}
		})
		require.Equal(t, before+2, c.node(1).groups.Load())
		require.Zero(t, c.node(1).singles.Load())
	})
}

func TestGroupedReadsRepairAndWriteBackAsSingleOnesDo(t *testing.T) {
	for _, mode := range []RepairMode{RepairBackground, RepairBlocking} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.repair = mode
			c.setLink(1, 3, link{refuse: kv.Errorf(kv.CodeNotReady, "no connection")})
			for _, a := range c.each(1, time.Second, kv.Quorum{}, puts(5, "v")...) {
				require.Nil(t, a.Err)
			}
			c.setLink(1, 3, link{})
			for _, a := range c.each(2, time.Second, kv.Quorum{R: 3}, gets(5)...) {
				require.Nil(t, a.Err)
				require.True(t, a.Response.Found)
			}
			if mode == RepairBackground {
				time.Sleep(time.Second)
			}
			require.Equal(t, []string{"v"}, values(c.node(3).held("k003")))
		})
	}
}

func TestGroupedSloppyWritesCountHints(t *testing.T) {
	sloppily(t, 2, func(t *testing.T, c *cluster) {
		for _, id := range []kv.NodeID{2, 3} {
			c.kill(id)
		}
		c.node(2).dead.Store(true) // 3 is believed alive
		requests := puts(5, "v")
		for i := range requests {
			requests[i].Sloppy = true
		}
		for _, a := range c.each(1, time.Second, kv.Quorum{W: 3}, requests...) {
			require.Nil(t, a.Err)
			require.Equal(t, 3, a.Response.Acks)
			require.Equal(t, 2, a.Response.Hinted)
		}
	})
}

func TestGroupWithAWriterThatHasSeenMoreThanItsCoordinator(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(time.Millisecond)
		c.setLink(1, 3, link{swallow: true})
		_, err := c.put(1, "k000", "other", nil, 2)
		require.NoError(t, err)
		mine, err := c.put(1, "k000", "mine", nil, 2)
		require.NoError(t, err)
		requests := puts(3, "mine again")
		requests[0].Context = mine.Context
		for _, a := range c.each(3, time.Second, kv.Quorum{}, requests...) {
			require.Nil(t, a.Err)
		}
		require.ElementsMatch(t, []string{"other", "mine again"}, values(c.node(3).held("k000")))
	})
}
