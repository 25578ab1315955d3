package main

import (
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Node n3 answers within the bound from what it was proven to hold, while it is cut off and after it stood still, and then says that it
// cannot.
func TestBoundedReadsOfRealProcessesKeepTheirBound(t *testing.T) {
	c := startCluster(t)
	n1, n3 := c.nodes[0], c.nodes[2]
	const target, limit = "/kv/k?consistency=bounded&max-staleness=3s", 3000
	c.do(n1, 200, http.MethodPut, "/kv/k", "old")
	require.Eventually(t, func() bool { // until the partition is known to have nothing but what is in the log
		a := c.do(n3, 200, http.MethodGet, "/kv/k?consistency=bounded&max-staleness=100ms", nil)
		return a.header.Get("Caprock-Replicas") == n3.name
	}, e2eReady, 50*time.Millisecond)
	stdout, stderr, code := caprock(nil, "get", "k", "--max-staleness", "3s", "-o", "json", "--endpoints", n3.grpc)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"staleness_bound_ms"`)
	_, stderr, code = caprock(nil, "put", "k", "new", "-c", "bounded", "--endpoints", n3.grpc)
	require.Equal(t, 2, code, stderr)

	c.faults(n3, http.StatusOK, http.MethodPost, `[{"cut":true}]`)
	cut, served := time.Now(), 0
	for {
		began := time.Now()
		a, err := n3.try(http.MethodGet, target, nil)
		require.NoError(t, err)
		if a.status != http.StatusOK {
			require.Equal(t, http.StatusServiceUnavailable, a.status, "%v", a.body)
			require.Contains(t, []any{"QUORUM_UNAVAILABLE", "NO_LEADER"}, a.body["code"])
			require.Greater(t, a.body["staleness_ms"], float64(limit))
			require.Less(t, time.Since(began), 2*time.Second, "a second, and some room")
			break
		}
		served++
		bound, err := strconv.Atoi(a.header.Get("Caprock-Staleness-Bound-Ms"))
		require.NoError(t, err)
		require.LessOrEqual(t, bound, limit)
		require.EqualValues(t, bound, a.body["staleness_bound_ms"])
		require.Less(t, time.Since(cut), 6*time.Second, "its proof is older than it may be")
		time.Sleep(50 * time.Millisecond)
	}
	require.Positive(t, served)
	a := c.do(n3, 200, http.MethodGet, target+"&fallback=local", nil)
	require.Equal(t, "local", a.body["consistency"])

	c.faults(n3, http.StatusOK, http.MethodDelete, "")
	require.Eventually(t, func() bool {
		a, err := n3.try(http.MethodGet, target, nil)
		return err == nil && a.status == http.StatusOK
	}, e2eReady, 50*time.Millisecond)

	require.NoError(t, n3.cmd.Process.Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool { // until there is a leader that runs
		a, err := n1.try(http.MethodPut, "/kv/k?timeout=2s", "new")
		return err == nil && a.status == http.StatusOK
	}, e2eReady, 50*time.Millisecond)
	time.Sleep(limit*time.Millisecond + 100*time.Millisecond)
	type read struct {
		answer
		err error
	}
	woken := make(chan read, 1)
	go func() {
		a, err := n3.try(http.MethodGet, target, nil)
		woken <- read{a, err}
	}()
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, n3.cmd.Process.Signal(syscall.SIGCONT))
	r := <-woken
	require.NoError(t, r.err)
	if r.status == http.StatusOK { // else it has not found its leader again
		require.Equal(t, "new", r.body["value"], "acknowledged 3.1 s before it was asked: %v", r.body)
	}
}
