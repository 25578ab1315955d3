package quorum

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// sampleAll makes every coordinator measure all of its requests.
func (c *cluster) sampleAll() {
	for _, n := range c.nodes {
		n.coord.reads, n.coord.writes = newSampler(1, 1), newSampler(1, 2)
	}
}

// histogram returns how much a histogram counted, and the sum.
func histogram(t *testing.T, o prometheus.Observer) (count uint64, sum float64) {
	var m dto.Metric
	require.NoError(t, o.(prometheus.Metric).Write(&m))
	return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
}

func TestSamplerPicksItsShare(t *testing.T) {
	for _, share := range []float64{0, 0.1, 0.5, 1} {
		s, picked := newSampler(share, 7), 0
		for range 100_000 {
			if s.take() {
				picked++
			}
		}
		require.InDelta(t, share, float64(picked)/100_000, 0.01)
	}
}

func TestNearestReplicasAreAskedFirstAndSlowOnesLast(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *cluster) {
		c.slowLinks(time.Millisecond)
		coord := c.nodes[1].coord
		coord.deps.Distance = func(id kv.NodeID) int { return map[kv.NodeID]int{2: 2, 3: 1, 4: 2, 5: 1}[id] }
		order := func() []kv.NodeID {
			nodes, _ := coord.participants(&Call{Request: &kv.Request{Op: kv.OpGet}, Owners: c.owners(), Quorum: kv.Quorum{N: 5}})
			return nodes
		}
		require.Equal(t, []kv.NodeID{1, 3, 5, 2, 4}, order())
		res, err := c.get(1, "k", 3)
		require.NoError(t, err)
		require.ElementsMatch(t, []kv.NodeID{1, 3, 5}, res.Replicas)
		// A near replica that is slow stays before the far ones, and behind the near ones that are not.
		for range 30 {
			coord.latencies.observe(3, 40*time.Millisecond)
		}
		require.Equal(t, []kv.NodeID{1, 5, 3, 2, 4}, order())
		c.nodes[5].dead.Store(true)
		require.Equal(t, []kv.NodeID{1, 3, 2, 4, 5}, order(), "what is dead comes last")
		for range 100 {
			coord.latencies.observe(3, time.Millisecond)
		}
		require.Zero(t, coord.latencies.class(3), "it is forgiven")
	})
}

func TestHedgeWaitsLongerForReplicasThatAreBusy(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		coord := c.nodes[1].coord
		base := coord.cfg.HedgeDelay
		require.Equal(t, base, coord.hedgeDelay([]kv.NodeID{2}))
		for range 100 {
			coord.latencies.observe(2, base)
		}
		require.Greater(t, coord.hedgeDelay([]kv.NodeID{2}), 2*base)
		for range 100 {
			coord.latencies.observe(2, time.Hour)
		}
		require.Equal(t, hedgeFactorMax*base, coord.hedgeDelay([]kv.NodeID{2}))
	})
}

func TestSampledReadSaysWhetherItsAnswerWasTheNewest(t *testing.T) {
	for _, level := range []kv.Level{kv.LevelEventual, kv.LevelLocal} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.slowLinks(time.Millisecond)
			c.repair = RepairOff
			read := func(want string) {
				t.Helper()
				got, err := c.do(2, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: level}, kv.Quorum{R: 1})
				require.NoError(t, err)
				require.Equal(t, want, string(got.Value))
				require.Equal(t, 1, got.Acks, "those that look on do not count")
				time.Sleep(50 * time.Millisecond)
			}
			_, err := c.put(1, "k", "old", nil, 3)
			require.NoError(t, err)
			c.sampleAll()
			m := c.nodes[2].coord.metrics
			read("old")
			require.Equal(t, [2]float64{1, 0}, [2]float64{testutil.ToFloat64(m.sampled[level]), testutil.ToFloat64(m.stale[level])})

			// Nodes 1 and 3 have something newer for three seconds, then something newer still.
			c.setLink(1, 2, link{swallow: true})
			_, err = c.put(1, "k", "newer", nil, 2)
			require.NoError(t, err)
			time.Sleep(3 * time.Second)
			read("old")
			require.Equal(t, [2]float64{2, 1}, [2]float64{testutil.ToFloat64(m.sampled[level]), testutil.ToFloat64(m.stale[level])})
			count, sum := histogram(t, m.staleness[level])
			require.EqualValues(t, 2, count)
			require.InDelta(t, 3, sum, 0.1)

			// What nobody answers proves nothing.
			c.setLink(2, 1, link{swallow: true})
			c.setLink(2, 3, link{swallow: true})
			read("old")
			time.Sleep(10 * time.Second)
			require.Equal(t, 2.0, testutil.ToFloat64(m.sampled[level]))
			require.Equal(t, 1.0, testutil.ToFloat64(m.samplesPartial))
		})
	}
}

func TestWriteMadeAfterTheReadBeganDoesNotMakeItStale(t *testing.T) {
	at := func(when causal.HLC) causal.Stamp { return causal.Stamp{Time: when, Node: 1} }
	row := func(when causal.HLC) ReadReply {
		d := causal.Dot{Node: 1, Time: when}
		return ReadReply{Set: causal.SiblingSet{}.Put(causal.Sibling{ID: d, Dot: d, Stamp: at(when), Value: []byte("v")}, nil)}
	}
	answer := row(10)
	for _, c := range []struct {
		name  string
		seen  ReadReply
		stale bool
	}{
		{"the same", row(10), false},
		{"older", row(5), false},
		{"newer", row(20), true},
		{"made later", row(40), false},
		{"strong, newer", ReadReply{HasStrong: true, Strong: storage.Strong{Revision: 1, Stamp: at(20)}}, true},
		{"strong, older", ReadReply{HasStrong: true, Strong: storage.Strong{Revision: 1, Stamp: at(9)}}, false},
		{"settled", ReadReply{HasStrong: true, Strong: storage.Strong{Revision: 1, Stamp: at(10), Covered: []causal.Dot{{Node: 1, Time: 10}}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sample{answer: versions{set: answer.Set}, began: 30, waiting: 1}
			s.see(&c.seen)
			stale, _, known := s.stale()
			require.Equal(t, []bool{c.stale, true}, []bool{stale, known})
		})
	}
}

func TestSampledReadWhoseReplicaFailsIsAnsweredByThoseThatLookOn(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		_, err := c.put(1, "k", "v", nil, 3)
		require.NoError(t, err)
		c.sampleAll()
		c.setLink(1, 2, link{swallow: true})
		within(t, DefaultConfig().HedgeDelay+5*time.Millisecond, func() {
			res, err := c.get(1, "k", 2)
			require.NoError(t, err)
			require.ElementsMatch(t, []kv.NodeID{1, 3}, res.Replicas)
		})
	})
}

func TestReplicationLagIsTheTimeFromTheAnswerToTheLastReplica(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.sampleAll()
		c.setLink(1, 3, link{delay: 700 * time.Millisecond})
		_, err := c.put(1, "k", "v", nil, 2)
		require.NoError(t, err)
		time.Sleep(2 * time.Second)
		count, sum := histogram(t, c.nodes[1].coord.metrics.lag[kv.LevelEventual])
		require.EqualValues(t, 1, count)
		require.InDelta(t, 0.7, sum, 0.05)
	})
}

func TestBlockingRepairAnswersOnceAsManyReplicasHoldTheAnswer(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.repair = RepairBlocking
		c.setLink(1, 2, link{swallow: true})
		c.setLink(1, 3, link{swallow: true})
		_, err := c.put(1, "k", "v", nil, 1) // node 1 alone has it
		require.NoError(t, err)
		c.slowLinks(time.Millisecond)
		c.nodes[2].disk.set(func(d *testDisk) { d.sync = 30 * time.Millisecond })
		got, err := c.get(1, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
		holders := 0
		for _, n := range c.nodes {
			if len(n.held("k").Siblings) > 0 {
				holders++
			}
		}
		require.GreaterOrEqual(t, holders, 2, "no later read of two replicas can miss it")
		// Whoever reads without node 1 sees it.
		c.kill(1)
		got, err = c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
	})
}

func TestBlockingRepairGoesToAnotherReplicaWhenOneTakesNone(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.repair = RepairBlocking
		c.setLink(1, 2, link{swallow: true})
		c.setLink(1, 3, link{swallow: true})
		_, err := c.put(1, "k", "v", nil, 1)
		require.NoError(t, err)
		c.slowLinks(0)
		c.nodes[2].disk.set(func(d *testDisk) { d.sync = time.Minute })
		got, err := c.get(1, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "v", string(got.Value))
		require.Equal(t, []string{"v"}, values(c.nodes[3].held("k")))
		c.nodes[2].disk.set(func(d *testDisk) { d.sync = 0 })
	})
}

func TestBlockingRepairThatCannotBeMadeFailsTheRead(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.repair = RepairBlocking
		c.setLink(1, 2, link{swallow: true})
		c.setLink(1, 3, link{swallow: true})
		_, err := c.put(1, "k", "v", nil, 1)
		require.NoError(t, err)
		c.slowLinks(0)
		for id := kv.NodeID(2); id <= 3; id++ {
			c.nodes[id].disk.set(func(d *testDisk) { d.sync = 2 * time.Second })
		}
		_, err = c.get(1, "k", 2)
		require.Equal(t, kv.CodeDeadlineExceeded, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
	})
}

func TestBlockingRepairWaitsForStrongLanesThatLag(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.repair = RepairBlocking
		state := func(revision uint64) storage.Strong {
			return storage.Strong{Value: []byte{byte('0' + revision)}, Revision: revision, Stamp: causal.Stamp{Base: causal.Position{Term: 1, Index: revision}}}
		}
		for id := kv.NodeID(1); id <= 3; id++ {
			c.nodes[id].strong("k", state(4))
		}
		c.nodes[1].strong("k", state(7))
		c.slowLinks(time.Millisecond)
		go func() {
			time.Sleep(200 * time.Millisecond)
			c.nodes[3].strong("k", state(8))
		}()
		begun := time.Now()
		got, err := c.get(1, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "7", string(got.Value))
		require.GreaterOrEqual(t, time.Since(begun), 190*time.Millisecond)
	})
}
