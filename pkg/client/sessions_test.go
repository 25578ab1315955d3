package client

import (
	"bytes"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// operationsOf returns what the cluster was sent.
func operationsOf(cl *cluster) []*kvpb.Operation {
	var all []*kvpb.Operation
	for _, n := range cl.nodes {
		n.mu.Lock()
		all = append(all, n.operations...)
		n.mu.Unlock()
	}
	return all
}

func TestStrongWriteOfUnknownOutcomeIsSentAgainUnderItsName(t *testing.T) {
	for name, answer := range map[string]*kvpb.Result{
		"unknown":              refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNKNOWN),
		"quorum with some ack": refusal(kv.CodeQuorumUnavailable, kvpb.Outcome_OUTCOME_UNKNOWN),
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t, 3)
			var refused atomic.Int32
			for _, n := range cl.nodes {
				n.answer = func(op *kvpb.Operation) *kvpb.Result {
					if refused.Add(1) <= 4 {
						return answer
					}
					return n.ok(op)
				}
			}
			_, err := cl.client().SetContext(t.Context(), "k", "v")
			require.NoError(t, err)
			sent := operationsOf(cl)
			require.Len(t, sent, 5)
			required := 0
			for _, op := range sent {
				id := op.GetOperationId()
				require.Equal(t, sent[0].GetOperationId().GetSession(), id.GetSession())
				require.EqualValues(t, sessionMark, id.GetSession()[0])
				require.Equal(t, sent[0].GetOperationId().GetSequence(), id.GetSequence())
				if id.GetRequired() {
					required++
				}
			}
			require.Equal(t, 4, required, "a repetition may only run where it is recognised")
		})
	}
}

func TestStrongWriteGoesOnWhenItsNodeDiesMidCall(t *testing.T) {
	cl := newCluster(t, 2)
	first := make(chan *fakeNode, 2)
	for _, n := range cl.nodes {
		n.answer = func(op *kvpb.Operation) *kvpb.Result {
			select {
			case first <- n:
				if len(first) == 1 {
					return nil
				}
			default:
			}
			return n.ok(op)
		}
	}
	f := cl.client().SetAsync("k", "v", Strong())
	dies := <-first
	first <- dies
	dies.stop()
	_, err := f.Wait(t.Context())
	require.NoError(t, err)
}

func TestRefusalDoesNotMakeAnUnknownOutcomeKnown(t *testing.T) {
	for name, second := range map[string]*kvpb.Result{
		"no leader":               refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_NOT_APPLIED),
		"a level that is no help": {Error: &kvpb.Error{Code: "BAD_REQUEST", Outcome: kvpb.Outcome_OUTCOME_NOT_APPLIED}},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t, 1)
			var asked atomic.Int32
			cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result {
				if asked.Add(1) == 1 {
					return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNKNOWN)
				}
				return second
			}
			_, err := cl.client().SetContext(t.Context(), "k", "v", Timeout(60*time.Millisecond))
			// The deadline may come while the last attempt is under way, or in the pause after it.
			require.Contains(t, []kv.Code{kv.CodeNoLeader, kv.CodeDeadlineExceeded}, kv.CodeOf(err))
			require.Equal(t, kv.OutcomeUnknown, kv.AsError(err).Outcome, "%v", err)
			require.Greater(t, asked.Load(), int32(1))
		})
	}
}

func TestMissedConditionOfARepetitionIsTheOutcome(t *testing.T) {
	cl := newCluster(t, 1)
	var asked atomic.Int32
	cl.nodes[0].answer = func(*kvpb.Operation) *kvpb.Result {
		if asked.Add(1) == 1 {
			return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_UNKNOWN)
		}
		return &kvpb.Result{Error: &kvpb.Error{Code: "VERSION_MISMATCH", Outcome: kvpb.Outcome_OUTCOME_NOT_APPLIED}}
	}
	_, err := cl.client().SetContext(t.Context(), "k", "v", IfVersion(4))
	requireError(t, err, kv.CodeVersionMismatch, kv.OutcomeNotApplied)
}

func TestOnlyWritesThatMayBeStrongHaveNames(t *testing.T) {
	cl := newCluster(t, 1)
	c := cl.client()
	_, err := c.GetContext(t.Context(), "k", Strong())
	require.NoError(t, err)
	_, err = c.SetContext(t.Context(), "k", "v", Eventual())
	require.NoError(t, err)
	for _, op := range operationsOf(cl) {
		require.Nil(t, op.GetOperationId())
	}
	_, err = c.SetContext(t.Context(), "k", "v", OperationID("mine"))
	require.NoError(t, err)
	id := operationsOf(cl)[2].GetOperationId()
	require.Equal(t, "mine", string(id.GetSession()))
	require.True(t, id.GetRequired())
	require.Zero(t, id.GetSequence())
}

func TestTextThatNamesNothingIsRefused(t *testing.T) {
	cl := newCluster(t, 1)
	c := cl.client()
	for _, id := range []string{"", strings.Repeat("x", 256), "tab\there", "\x00", "naïve"} {
		_, err := c.SetContext(t.Context(), "k", "v", OperationID(id))
		requireError(t, err, kv.CodeBadRequest, kv.OutcomeNotApplied)
	}
	require.Empty(t, operationsOf(cl))
	_, err := c.SetContext(t.Context(), "k", "v", OperationID(strings.Repeat("~", 255)))
	require.NoError(t, err)
}

// The floor is the lowest number that goes on, told by a plain list.
func TestFloorIsTheLowestThatGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSessions()[0]
		var open []uint64
		next := uint64(0)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			if len(open) == 0 || rapid.Bool().Draw(t, "begin") {
				require.Equal(t, next, s.begin())
				open = append(open, next)
				next++
			} else {
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				s.end(open[i])
				open = slices.Delete(open, i, i+1)
			}
			floor := next
			if len(open) > 0 {
				floor = slices.Min(open)
			}
			require.Equal(t, floor, s.floor.Load())
			require.LessOrEqual(t, len(s.over), int(next-floor))
		}
	})
}

func TestWriteThatHangsHoldsUpOnlySoManyOthers(t *testing.T) {
	s := newSessions()[0]
	hangs := s.begin()
	for range overMax + 1 {
		s.end(s.begin())
	}
	require.Equal(t, uint64(overMax+2), s.floor.Load())
	require.Empty(t, s.over)
	s.end(hangs)
	require.Equal(t, uint64(overMax+2), s.floor.Load())
}

func TestSessionsOfTwoClientsDiffer(t *testing.T) {
	one, other := newSessions(), newSessions()
	require.False(t, bytes.Equal(one[0].name, other[0].name))
	require.False(t, bytes.Equal(one[0].name, one[1].name))
}
