package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// laneKeysVariable names the environment variable with the number of keys that are switched.
const laneKeysVariable = "CAPROCK_LANE_KEYS"

// laneSwitchMax bounds the wait for a switch, however many keys there are.
const laneSwitchMax = 10 * time.Minute

// laneState is what a policy's answer says of its switch.
type laneState struct {
	State    string           `json:"state"`
	Switches []switchProgress `json:"switches"`
}

type switchProgress struct {
	Phase      string   `json:"phase"`
	WaitingFor []string `json:"waiting_for"`
	Settled    int      `json:"settled_keys"`
}

// lanePolicy sets the policy of the prefix, or asks for it if lanes is empty.
func lanePolicy(ctx context.Context, n *e2eNode, prefix, lanes string) (out laneState, err error) {
	method, body := http.MethodGet, ""
	if lanes != "" {
		method, body = http.MethodPut, `{"lanes":"`+lanes+`"}`
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+n.http+"/admin/policies/"+prefix, strings.NewReader(body))
	if err != nil {
		return out, err
	}
	resp, err := e2eClient.Do(r)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d: %s", resp.StatusCode, raw)
	}
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	return out, err
}

// laneSwitcher switches the lanes of a load's prefix and watches.
type laneSwitcher struct {
	*laneLoad
	c *e2eCluster
	// settled is the most keys that a switch was seen to have settled, held the nodes that one was seen to wait for, phases what it did.
	settled int
	held    map[string]bool
	phases  map[string]bool
}

func (s *laneSwitcher) set(lanes string) {
	s.t.Helper()
	_, err := lanePolicy(s.t.Context(), s.c.nodes[0], s.prefix, lanes)
	require.NoError(s.t, err)
}

// look asks the first node how far the switch is.
func (s *laneSwitcher) look() laneState {
	s.t.Helper()
	st, err := lanePolicy(s.t.Context(), s.c.nodes[0], s.prefix, "")
	require.NoError(s.t, err)
	for _, w := range st.Switches {
		s.settled = max(s.settled, w.Settled)
		s.phases[w.Phase] = true
		for _, name := range w.WaitingFor {
			s.held[name] = true
		}
	}
	return st
}

// await looks until it is as it should be, and returns how long that took.
func (s *laneSwitcher) await(what string, is func(laneState) bool) time.Duration {
	s.t.Helper()
	began := time.Now()
	for !is(s.look()) {
		require.Less(s.t, time.Since(began), laneSwitchMax, what)
		s.require()
		time.Sleep(e2ePoll)
	}
	return time.Since(began)
}

func (s *laneSwitcher) awaitActive() time.Duration {
	s.t.Helper()
	return s.await("the switch does not end", func(st laneState) bool { return st.State == "active" })
}

// under keeps the load on while f runs, then reads all keys strongly if they can be.
func (s *laneSwitcher) under(phase string, f func()) {
	s.t.Helper()
	stop := s.start(s.t.Context())
	f()
	time.Sleep(500 * time.Millisecond) // the clients go on for a while after the switch
	stop()
	s.t.Logf("%s: operations %v, %d keys in doubt", phase, s.tally(), s.doubtful())
	if !s.strongRefused.Load() {
		s.verify(s.t.Context())
		s.tally()
	}
	s.require()
}

// Lanes are switched there and back under load, and a node is killed in the midst of it.
func TestLanesAreSwitchedUnderLoadAndNothingAcknowledgedIsLost(t *testing.T) {
	count := 500
	if text := os.Getenv(laneKeysVariable); text != "" {
		var err error
		count, err = strconv.Atoi(text)
		require.NoError(t, err, laneKeysVariable)
	}
	c := startCluster(t)
	s := &laneSwitcher{laneLoad: newLaneLoad(t, c, "lanes:", count), c: c, held: map[string]bool{}, phases: map[string]bool{}}
	s.set("mixed")
	s.awaitActive()
	began := time.Now()
	s.fill(t.Context())
	s.tally()
	t.Logf("%d keys were written in %s", count, time.Since(began).Round(time.Millisecond))

	s.under("mixed to strong-only", func() { s.drainAndKill(c.nodes[1], count/10) })
	refused := s.tryEventual()
	require.Equal(t, "LEVEL_FENCED", refused.code())
	require.Equal(t, "not_applied", refused.body["outcome"])

	s.under("strong-only to mixed", func() {
		began := time.Now()
		s.set("mixed")
		s.awaitActive()
		t.Logf("opened in %s", time.Since(began).Round(time.Millisecond))
	})
	s.strongRefused.Store(true)
	s.under("mixed to eventual-only", func() {
		s.set("eventual-only")
		s.awaitActive()
	})
	s.under("eventual-only to mixed", func() {
		s.set("mixed")
		s.awaitActive()
		time.Sleep(2 * time.Second) // until every node acts by it
		s.strongRefused.Store(false)
	})
	s.under("mixed to strong-only again", func() {
		began := time.Now()
		s.set("strong-only")
		s.awaitActive()
		t.Logf("drained again in %s", time.Since(began).Round(time.Millisecond))
	})
}

func (s *laneSwitcher) tryEventual() answer {
	s.t.Helper()
	a, err := s.c.nodes[0].try(http.MethodPut, "/kv/"+s.key(0)+"?consistency=eventual", "0")
	require.NoError(s.t, err)
	return a
}

// drainAndKill makes the prefix strong-only, kills the node once so many keys are settled, and waits for the end with the node back.
func (s *laneSwitcher) drainAndKill(n *e2eNode, after int) {
	s.t.Helper()
	began := time.Now()
	s.set("strong-only")
	if after >= 1000 {
		s.await("nothing is settled", func(st laneState) bool { return s.settled >= after })
	}
	require.Equal(s.t, "draining", s.look().State, "the node has to be killed in the midst of it")
	s.t.Logf("killing %s after %s, with %d keys settled", n.name, time.Since(began).Round(time.Millisecond), s.settled)
	s.disturbed.Store(true)
	s.c.kill(n)
	s.await("nobody waits for the node that is away", func(st laneState) bool {
		return slices.ContainsFunc(st.Switches, func(w switchProgress) bool { return slices.Contains(w.WaitingFor, n.name) })
	})
	require.Equal(s.t, "draining", s.look().State, "a switch ended without a node")
	s.c.start(n)
	s.c.waitReady(n)
	s.t.Logf("%s is back after %s", n.name, time.Since(began).Round(time.Millisecond))
	s.awaitActive()
	s.disturbed.Store(false)
	s.t.Logf("drained in %s; %d keys seen settled, phases %v, waited for %v", time.Since(began).Round(time.Millisecond), s.settled, s.phases, s.held)
	require.True(s.t, s.phases["sweep"], "no progress was seen")
	require.Positive(s.t, s.settled)
}
