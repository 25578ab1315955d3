package quorum

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

// naiveTracker keeps every ballot in a map and counts from scratch each time.
type naiveTracker struct {
	needed, total int
	ballots       map[kv.NodeID]ballot
}

func (n *naiveTracker) cast(node kv.NodeID, b ballot) {
	was, voted := n.ballots[node]
	if !voted || was == ballotUnknown && b == ballotAcked {
		n.ballots[node] = b
	}
}

func (n *naiveTracker) count(b ballot) (count int) {
	for _, got := range n.ballots {
		if got == b {
			count++
		}
	}
	return count
}

func (n *naiveTracker) outcome() Outcome {
	best := n.count(ballotAcked) + n.total - len(n.ballots) // if all that have not voted acknowledged
	switch {
	case n.count(ballotAcked) >= n.needed:
		return Met
	case best < n.needed:
		return Unreachable
	default:
		return Pending
	}
}

func (n *naiveTracker) mayBeHeld() bool { return n.count(ballotRefused) != n.total }

func TestTrackerCountsLikeItsNaiveTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(1, votersInline+3).Draw(t, "total")
		needed := rapid.IntRange(1, total).Draw(t, "needed")
		tracker := NewTracker(needed, total)
		naive := naiveTracker{needed, total, map[kv.NodeID]ballot{}}
		for range rapid.IntRange(0, 2*total).Draw(t, "votes") {
			node := kv.NodeID(rapid.IntRange(1, total).Draw(t, "node"))
			var got Outcome
			switch rapid.IntRange(0, 2).Draw(t, "ballot") {
			case 0:
				got = tracker.Ack(node)
				naive.cast(node, ballotAcked)
			case 1:
				got = tracker.Fail(node, true)
				naive.cast(node, ballotRefused)
			default:
				got = tracker.Fail(node, false)
				naive.cast(node, ballotUnknown)
			}
			require.Equal(t, naive.outcome(), got)
			require.Equal(t, naive.outcome(), tracker.Outcome())
			require.Equal(t, naive.count(ballotAcked), tracker.Acked())
			require.Equal(t, total-len(naive.ballots), tracker.Missing())
			require.Equal(t, naive.mayBeHeld(), tracker.MayBeHeld())
			require.Len(t, tracker.AckedNodes(nil), tracker.Acked())
		}
	})
}

func TestTrackerSaysThatNobodyHoldsItOnlyWhenAllRefused(t *testing.T) {
	tracker := NewTracker(2, 3)
	require.True(t, tracker.MayBeHeld(), "all were sent to and none has answered")
	tracker.Fail(1, true)
	require.Equal(t, Unreachable, tracker.Fail(2, true))
	require.True(t, tracker.MayBeHeld(), "the third may yet take it")
	tracker.Fail(3, true)
	require.False(t, tracker.MayBeHeld())

	held := NewTracker(2, 3)
	held.Ack(1)
	held.Fail(2, true)
	held.Fail(3, true)
	require.True(t, held.MayBeHeld(), "one holds it")
}

func TestTrackerRefusesMoreVotersThanReplicas(t *testing.T) {
	tracker := NewTracker(1, 1)
	tracker.Ack(1)
	require.Panics(t, func() { tracker.Ack(2) })
	require.Panics(t, func() { NewTracker(2, 1) })
	require.Panics(t, func() { NewTracker(0, 1) })
}
