package quorum

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// walker is a session that goes from node to node.
type walker struct {
	c     *cluster
	token []byte
}

func (c *cluster) session() *walker { return &walker{c, []byte(kv.SessionNew)} }

func (w *walker) do(at kv.NodeID, r kv.Request, q kv.Quorum) (kv.Response, error) {
	r.Level, r.Session = kv.LevelCausal, w.token
	res, err := w.c.do(at, 5*time.Second, &r, q)
	if err == nil {
		require.NotEmpty(w.c.t, res.Session)
		w.token = res.Session
	}
	return res, err
}

// put writes at a node, with w=1 where nothing else is said.
func (w *walker) put(at kv.NodeID, key, value string) {
	w.c.t.Helper()
	_, err := w.do(at, kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value)}, kv.Quorum{W: 1})
	require.NoError(w.c.t, err)
}

// get reads one replica, if that will do, and returns "" for nothing.
func (w *walker) get(at kv.NodeID, key string) (string, error) {
	res, err := w.do(at, kv.Request{Op: kv.OpGet, Key: []byte(key)}, kv.Quorum{R: 1})
	return string(res.Value), err
}

// reads requires that the session reads the value at the node.
func (w *walker) reads(at kv.NodeID, key, value string) {
	w.c.t.Helper()
	got, err := w.get(at, key)
	require.NoError(w.c.t, err)
	require.Equal(w.c.t, value, got, "at node %d", at)
}

// fails requires that the session is told within the patience that nobody who answers has what it has seen, and how much is missing.
func (w *walker) fails(at kv.NodeID, key string) *kv.Error {
	w.c.t.Helper()
	began := time.Now()
	got, err := w.get(at, key)
	require.Error(w.c.t, err, "read %q", got)
	require.Less(w.c.t, time.Since(began), causalPatience+100*time.Millisecond)
	e := kv.AsError(err)
	require.Equal(w.c.t, kv.CodeQuorumUnavailable, e.Code)
	return e
}

// mute loses all that the node sends to the others: they do not get its writes, and have its answers.
func (c *cluster) mute(id kv.NodeID) {
	for to := range c.nodes {
		if to != id {
			c.setLink(id, to, link{swallow: true})
		}
	}
}

// away cuts the node off.
func (c *cluster) away(id kv.NodeID) {
	c.mute(id)
	for from := range c.nodes {
		c.setLink(from, id, link{swallow: true})
	}
}

func TestSessionReadsWhatItWroteFromReplicasThatLackIt(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.keeps = keeps
			c.slowLinks(time.Millisecond)
			c.mute(1)
			s := c.session()
			s.put(1, "k", "mine")
			require.Empty(t, c.nodes[2].held("k").Siblings)
			s.reads(2, "k", "mine")
			s.reads(3, "k", "mine")
			_, err := s.do(1, kv.Request{Op: kv.OpDelete, Key: []byte("k")}, kv.Quorum{W: 1})
			require.NoError(t, err)
			s.reads(2, "k", "")
		})
	}
}

func TestSessionNeverReadsLessThanItHasRead(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.keeps = keeps
			c.slowLinks(time.Millisecond)
			_, err := c.put(1, "k", "old", nil, 3)
			require.NoError(t, err)
			c.mute(1)
			held := causal.EncodeContext([]byte("k"), c.nodes[1].held("k").Context)
			_, err = c.put(1, "k", "new", held, 1)
			require.NoError(t, err)
			s := c.session()
			s.reads(2, "k", "old")
			s.reads(1, "k", "new")
			s.reads(2, "k", "new")
			c.away(1)
			e := s.fails(3, "k")
			require.Positive(t, e.Lag)
			require.Equal(t, 2, e.Acked)
			c.session().reads(3, "k", "old") // who has not seen it is answered
		})
	}
}

func TestSessionsWritesFollowWhatItWroteAndRead(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		for _, reads := range []bool{false, true} {
			t.Run(fmt.Sprintf("siblings=%v reads=%v", keeps, reads), func(t *testing.T) {
				inBubble(t, 3, func(t *testing.T, c *cluster) {
					c.keeps = keeps
					c.slowLinks(time.Millisecond)
					c.nodes[2].skew = -300 * time.Millisecond // its own clock would order the second write before the first
					time.Sleep(200 * time.Millisecond)
					c.mute(1)
					s := c.session()
					if reads {
						_, err := c.put(1, "k", "first", nil, 1)
						require.NoError(t, err)
						s.reads(1, "k", "first")
					} else {
						s.put(1, "k", "first")
					}
					s.put(2, "k", "second")
					c.slowLinks(time.Millisecond)
					for at := range c.nodes {
						res, err := c.get(at, "k", 3)
						require.NoError(t, err)
						require.Empty(t, res.Siblings, "the second write stands beside the first")
						require.Equal(t, "second", string(res.Value))
					}
				})
			})
		}
	}
}

// What a write has to follow is on a replica that is gone: it is not made where it might come before it.
func TestSessionsWriteFailsWhereItCannotFollow(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.mute(1)
		s := c.session()
		s.put(1, "k", "first")
		c.away(1)
		_, err := s.do(2, kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte("second")}, kv.Quorum{W: 1})
		require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		require.Positive(t, kv.AsError(err).Lag)
		s.put(2, "other", "goes on")
	})
}

func TestSessionWaitsForTheLogThatItHasSeen(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		old := storage.Strong{Revision: 5, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 5}}, Value: []byte("old")}
		next := storage.Strong{Revision: 7, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: 7}}, Value: []byte("new")}
		for _, n := range c.nodes {
			n.strong("k", old)
		}
		c.nodes[1].strong("k", next)
		s := c.session()
		s.reads(1, "k", "new")
		s.reads(2, "k", "new") // of the first replica
		c.away(1)
		require.Contains(t, s.fails(2, "k").Error(), "2 log entries of the coordinator missing")
		// A replica that never answers does not keep the one that catches up from being looked at again.
		go func() {
			time.Sleep(300 * time.Millisecond)
			c.nodes[2].strong("k", next)
		}()
		began := time.Now()
		s.reads(2, "k", "new")
		require.Less(t, time.Since(began), 400*time.Millisecond)
	})
}

// A repair has told a replica that the session's version is gone; the state that it was taken into has yet to come.
func TestSessionDoesNotTakeAContextForTheStateThatIsMissing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		s := c.session()
		s.put(1, "k", "mine")
		time.Sleep(time.Second)
		mine := c.nodes[1].held("k").Siblings[0]
		pruned := c.nodes[1].held("k").Prune(func(causal.Sibling) bool { return false }, 9)
		for _, n := range c.nodes {
			n.store.Write(WriteRequest{Partition: 3, Epoch: 1, Key: []byte("k"), Set: pruned}, func(WriteReply, error) {})
		}
		time.Sleep(time.Second)
		state := storage.Strong{Revision: 9, Stamp: mine.Stamp, Value: mine.Value, Covered: []causal.Dot{mine.ID}}
		c.nodes[3].strong("k", state)
		s.reads(1, "k", "mine")
		c.away(3)
		s.fails(1, "k")
		c.nodes[1].strong("k", state)
		s.reads(1, "k", "mine")
	})
}

// A write that another one of its coordinator carried is in its session's token as any other.
func TestSessionKnowsAWriteThatWasCarried(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		delay := func(d time.Duration) {
			for id := kv.NodeID(2); id <= 3; id++ {
				c.setLink(1, id, link{delay: d})
				c.setLink(id, 1, link{delay: 50 * time.Millisecond})
			}
		}
		c.nodes[1].disk.set(func(d *testDisk) { d.sync = 200 * time.Millisecond }) // the later one is still under way when this is refused
		delay(100 * time.Millisecond)
		s, done := c.session(), make(chan error, 1)
		go func() {
			_, err := s.do(1, kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte("carried")}, kv.Quorum{W: 2})
			done <- err
		}()
		time.Sleep(10 * time.Millisecond)
		delay(80 * time.Millisecond) // sent later, and there before
		_, err := c.session().do(1, kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte("over")}, kv.Quorum{W: 2})
		require.NoError(t, err)
		require.NoError(t, <-done)
		require.EqualValues(t, 1, testutil.ToFloat64(c.nodes[1].coord.metrics.carried))
		token, err := causal.DecodeSession(s.token)
		require.NoError(t, err)
		known, ok := token.Key(3, causal.KeyHash([]byte("k")))
		require.True(t, ok, "the session has forgotten its write")
		require.Len(t, known.Dots, 1)
	})
}

// Replicas that have been heard enough may still answer: what they say then is in neither the answer nor the token.
func TestSessionsAnswerAndTokenAreOfTheSameVersions(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		_, err := c.put(2, "k", "late", nil, 3)
		require.NoError(t, err)
		call := c.call(&kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelCausal}, kv.Quorum{R: 1})
		g := &gather{
			c: c.nodes[1].coord, call: &call, wake: make(chan struct{}, 1),
			replies: map[kv.NodeID]*ReadReply{}, asked: map[kv.NodeID]bool{}, out: map[kv.NodeID]bool{},
		}
		g.report(1, ReadReply{}, nil)
		require.True(t, g.enough(1))
		g.report(2, ReadReply{Set: c.nodes[2].held("k")}, nil)
		require.Empty(t, g.seen(false).Dots)
		require.Empty(t, g.merged.set.Siblings)
	})
}

// More keys than a token has room for: those that sank into the floor are read of a majority, those that no majority holds do not sink.
func TestSessionWithMoreKeysThanItsTokenHoldsForgetsNone(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		c.away(3)
		const keys = causal.SessionKeysMax + 8
		s := c.session()
		for i := range keys {
			s.put(kv.NodeID(1+i%2), fmt.Sprint("k", i), fmt.Sprint("v", i))
			require.LessOrEqual(t, len(s.token), kv.SessionBytesMax)
		}
		time.Sleep(time.Second)
		c.slowLinks(time.Millisecond)
		c.mute(1) // 2 and 3 have to do with each other, and 1 answers
		for i := range 2 * keys {
			s.reads(3, fmt.Sprint("k", i%keys), fmt.Sprint("v", i%keys))
		}
	})
}

// A clock that is ten minutes ahead stamps what only its own node takes. The session goes on everywhere with other keys, and is told
// about this one.
func TestSessionOutlivesAClockThatIsWrong(t *testing.T) {
	for _, skew := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				c.slowLinks(time.Millisecond)
				c.nodes[1].skew = skew
				s := c.session()
				s.put(1, "odd", "mine")
				for at := kv.NodeID(1); at <= 3; at++ {
					key := fmt.Sprint("other", at)
					s.put(at, key, "v")
					for from := kv.NodeID(1); from <= 3; from++ {
						s.reads(from, key, "v")
						s.reads(from, "odd", "mine")
					}
				}
				c.away(1)
				s.reads(2, "other2", "v")
				s.reads(3, "other3", "v")
				if skew > 0 {
					s.fails(2, "odd")
				}
			})
		})
	}
}
