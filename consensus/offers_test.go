package consensus

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// loseOnce swallows the first frame from one node to another that holds a message which matches.
func (c *cluster) loseOnce(match func(from, to kv.NodeID, m *pb.Message) bool) *atomic.Bool {
	lost := new(atomic.Bool)
	c.net.lose = func(from, to kv.NodeID, frame []byte) bool {
		if lost.Load() {
			return false
		}
		messages, err := decodeFrame(frame)
		if err != nil {
			c.t.Error(err)
		}
		for _, in := range messages {
			if match(from, to, in.msg) {
				return lost.CompareAndSwap(false, true)
			}
		}
		return false
	}
	return lost
}

// patient has a snapshot under way given up only after a time that no test waits for.
func patient(cfg *Config) { cfg.SnapshotIdle = time.Minute }

func TestLostOfferOfASnapshotIsNoticedWithinAnElectionTimeout(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 100)
		lost := c.loseOnce(func(_, to kv.NodeID, m *pb.Message) bool { return to == away && m.GetType() == pb.MsgSnap })
		began := time.Now()
		c.start(away)
		c.awaitCaughtUp(away, 5*time.Second)
		require.True(t, lost.Load())
		require.Less(t, time.Since(began), 4*time.Second)
		require.EqualValues(t, 1, c.status(away).SnapshotsReceived)
	}, patient)
}

func TestLostAnswerToASnapshotIsAskedForAgain(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 100)
		end := c.status(c.leader(1)).Applied
		lost := c.loseOnce(func(from, _ kv.NodeID, m *pb.Message) bool {
			return from == away && m.GetType() == pb.MsgAppResp && !m.GetReject() && m.GetIndex() >= end-5
		})
		c.start(away)
		// Unless the leader hears of the snapshot, it sends nothing that follows.
		require.Eventually(t, func() bool { return c.status(away).SnapshotsReceived == 1 }, time.Minute, 10*time.Millisecond)
		c.overwrite(20, 100)
		c.awaitCaughtUp(away, 4*time.Second)
		require.True(t, lost.Load())
		require.EqualValues(t, 1, c.status(away).SnapshotsReceived, "one transfer was enough")
	}, patient)
}

func TestOfferThatIsNeverTakenUpIsRepeatedAFewTimesOnly(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		require.NoError(t, c.stop(away))
		c.overwrite(600, 100)
		var offers atomic.Int64
		c.net.lose = func(_, to kv.NodeID, frame []byte) bool {
			messages, err := decodeFrame(frame)
			if err != nil {
				t.Error(err)
			}
			for _, in := range messages {
				if to == away && in.msg.GetType() == pb.MsgSnap {
					offers.Add(1)
					return true
				}
			}
			return false
		}
		c.start(away)
		time.Sleep(50 * time.Second)
		require.EqualValues(t, 1+offerRepeatsMax, offers.Load())
	}, patient)
}

// TestOfferOfAnotherLeaderSurvivesAnInstall lets a second leader offer while what the first one offered is being
// installed, and while it waits for Raft's decision. Either offer must be answered, because nobody would repeat it to a
// replica that looks busy for ever.
func TestOfferOfAnotherLeaderSurvivesAnInstall(t *testing.T) {
	tiny(t, func(c *cluster) {
		c.overwrite(50, 20)
		away := c.follower()
		leader, _ := c.awaitLeader(1, time.Second)
		term := c.status(leader.id).Term
		at := func(index uint64) *pb.Message {
			m := &pb.Message{Type: pb.MsgSnap.Enum(), From: new(uint64(leader.id)), To: new(uint64(away)), Term: &term}
			m.Snapshot = snapshotAt(causal.Position{Term: term, Index: index}, &pb.ConfState{})
			return m
		}
		onLoop(c.nodes[away].store, func(l *loop) {
			g := l.groups[1]
			first, second := at(10_000), at(10_001)
			g.offer = &offer{msg: first, cancel: func() {}, next: second}
			l.fetching = l.cfg.SnapshotFetchesMax // so that nothing is fetched
			l.dropOffer(g, resultIgnored)
			require.NotNil(t, g.offer, "Raft did not want the first one")
			require.Same(t, second, g.offer.msg)
			g.offer, l.offers = nil, nil

			g.install = &installing{pos: g.applied, conf: g.conf, hard: g.log.hard}
			l.offered(g, second)
			require.Nil(t, g.offer, "nothing is fetched during an install")
			require.Same(t, second, g.install.next)
			l.installed(g, nil)
			require.NotNil(t, g.offer, "now it is its turn")
			require.Same(t, second, g.offer.msg)
			g.offer, l.offers, l.fetching = nil, nil, 0
		})
	})
}

func TestRepeatedOfferOfAnEarlierTermDoesNotEndTheFetchOfALaterOne(t *testing.T) {
	tiny(t, func(c *cluster) {
		away := c.follower()
		leader, _ := c.awaitLeader(1, time.Second)
		at := func(term uint64) *pb.Message {
			m := &pb.Message{Type: pb.MsgSnap.Enum(), From: new(uint64(leader.id)), To: new(uint64(away)), Term: &term}
			m.Snapshot = snapshotAt(causal.Position{Term: term, Index: 10_000}, &pb.ConfState{})
			return m
		}
		term := c.status(leader.id).Term
		onLoop(c.nodes[away].store, func(l *loop) {
			g := l.groups[1]
			later, cancelled := at(term+1), false
			g.offer = &offer{msg: later, cancel: func() { cancelled = true }}
			l.offered(g, at(term))
			require.False(t, cancelled)
			require.Same(t, later, g.offer.msg)
			require.Nil(t, g.offer.next)
			g.offer.cancel = nil // as long as it waits for its turn
			l.offered(g, at(term))
			require.Same(t, later, g.offer.msg)
			g.offer = nil
		})
	})
}
