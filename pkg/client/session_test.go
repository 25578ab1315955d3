package client

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// counting has every node answer with a token that says how many operations were answered.
func (c *cluster) counting() {
	var answered atomic.Int32
	for _, n := range c.nodes {
		n.answer = func(op *kvpb.Operation) *kvpb.Result {
			r := n.ok(op)
			r.Session = fmt.Appendf(nil, "t%d", answered.Add(1))
			return r
		}
	}
}

func TestSessionHandsOnTheTokenFromOneOperationToTheNext(t *testing.T) {
	cl := newCluster(t, 1)
	cl.counting()
	s := cl.client().NewSession()
	_, err := s.Set(t.Context(), "a", "1", W(1))
	require.NoError(t, err)
	_, err = s.Get(t.Context(), "b", R(1))
	require.NoError(t, err)
	_, err = s.Delete(t.Context(), "a", Strong())
	require.NoError(t, err)
	require.Equal(t, "t3", string(s.Token()))
	_, err = cl.client().NewSession(s.Token()).Get(t.Context(), "a") // in another process
	require.NoError(t, err)
	sent := operationsOf(cl)
	require.Len(t, sent, 4)
	for i, want := range []struct {
		token string
		level kvpb.Level
	}{
		{kv.SessionNew, kvpb.Level_LEVEL_CAUSAL},
		{"t1", kvpb.Level_LEVEL_CAUSAL},
		{"t2", kvpb.Level_LEVEL_STRONG},
		{"t3", kvpb.Level_LEVEL_CAUSAL},
	} {
		require.Equal(t, want.token, string(sent[i].GetSession()))
		require.Equal(t, want.level, sent[i].GetLevel())
	}
}

// An operation that failed says nothing of what the session has seen, and the next one goes to whoever is left.
func TestSessionKeepsItsTokenWhenAnOperationFailsAndANodeIsGone(t *testing.T) {
	cl := newCluster(t, 2)
	cl.counting()
	s := cl.client().NewSession()
	_, err := s.Set(t.Context(), "a", "1")
	require.NoError(t, err)
	for _, n := range cl.nodes {
		n.mu.Lock()
		answer := n.answer
		n.answer = func(op *kvpb.Operation) *kvpb.Result {
			if string(op.GetKey()) == "bad" {
				return &kvpb.Result{Error: &kvpb.Error{Code: string(kv.CodeBadRequest), Outcome: kvpb.Outcome_OUTCOME_NOT_APPLIED}}
			}
			return answer(op)
		}
		n.mu.Unlock()
	}
	_, err = s.Set(t.Context(), "bad", "1")
	require.Error(t, err)
	require.Equal(t, "t1", string(s.Token()))
	cl.nodes[0].stop()
	for range 4 {
		before := s.Token()
		_, err = s.Get(t.Context(), "a")
		require.NoError(t, err)
		operations := cl.nodes[1].operations
		require.Equal(t, string(before), string(operations[len(operations)-1].GetSession()))
	}
}

// Operations of one session that are made at the same time run one after another: each has the token of the one before it.
func TestSessionsOperationsRunOneAfterAnother(t *testing.T) {
	cl := newCluster(t, 1)
	cl.counting()
	s := cl.client().NewSession()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			_, err := s.Get(t.Context(), "a")
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, op := range operationsOf(cl) {
		want := kv.SessionNew
		if i > 0 {
			want = fmt.Sprint("t", i)
		}
		require.Equal(t, want, string(op.GetSession()))
	}
}
