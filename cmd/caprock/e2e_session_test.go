package main

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// walker carries a session's token from node to node over HTTP, in the header.
type walker struct {
	t     *testing.T
	token string
}

// send sends one operation of the session.
func (w *walker) send(n *e2eNode, status int, method, target, body string) map[string]any {
	w.t.Helper()
	doc := n.send(w.t, status, method, target, body, "Caprock-Session: "+w.token)
	if token, ok := doc["session"].(string); ok {
		w.token = token
	}
	return doc
}

// Node n3 is cut off while a session writes in both lanes; then it is back, and another one is killed. Through every front the session
// sees what it wrote. What only a node has that is gone is missed, and said to be, until that node is back.
func TestSessionSeesWhatItWroteThroughEveryFrontWhateverFails(t *testing.T) {
	c := startCluster(t)
	n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
	c.faults(n3, http.StatusOK, http.MethodPost, `[{"cut":true}]`)
	w := &walker{t, "new"}
	const put = "1"
	w.send(n1, 200, "PUT", "/kv/a?consistency=causal&w=2", put)
	w.send(n2, 200, "PUT", "/kv/b?consistency=causal&w=2", put)
	require.Eventually(t, func() bool { // until the partition has a leader that is not n3
		r, err := n1.try(http.MethodPut, "/kv/c?consistency=strong&timeout=2s&session="+w.token, "1")
		require.NoError(t, err)
		if token, ok := r.body["session"].(string); ok {
			w.token = token
		}
		return r.status == http.StatusOK
	}, e2eReady, e2ePoll)
	file := filepath.Join(t.TempDir(), "session")
	_, stderr, code := caprock(nil, "put", "d", "1", "-c", "causal", "--w", "2", "--session", file, "--endpoints", n1.grpc)
	require.Zero(t, code, stderr)

	c.kill(n1)
	c.faults(n3, http.StatusOK, http.MethodDelete, "")
	for _, key := range []string{"a", "b", "c"} {
		for _, n := range []*e2eNode{n3, n2} {
			require.Eventually(t, func() bool {
				r, err := n.try(http.MethodGet, "/kv/"+key+"?consistency=causal&r=1&session="+w.token, nil)
				require.NoError(t, err)
				require.NotEqual(t, http.StatusNotFound, r.status, "%s at %s: %v", key, n.name, r.body)
				if r.status == http.StatusOK {
					require.Equal(t, "1", r.body["value"])
				}
				return r.status == http.StatusOK // until n3 has found the others again it may say that it has not
			}, e2eReady, 100*time.Millisecond, "%s at %s", key, n.name)
		}
	}
	for range 2 {
		stdout, stderr, code := caprock(nil, "get", "d", "-o", "raw", "--session", file, "--timeout", "30s", "--endpoints", n3.grpc)
		require.Zero(t, code, stderr)
		require.Equal(t, "1", stdout)
	}

	c.faults(n2, http.StatusOK, http.MethodPost, `[{"cut":true}]`)
	w.send(n2, 200, "PUT", "/kv/a?consistency=causal&w=1", "2")
	began := time.Now()
	missed := w.send(n3, 503, "GET", "/kv/a?consistency=causal&r=1", "")
	require.Equal(t, "QUORUM_UNAVAILABLE", missed["code"])
	require.Positive(t, missed["lag"])
	require.Less(t, time.Since(began), 3*time.Second)
	c.kill(n2)
	c.start(n1, n2)
	c.waitReady(n1, n2)
	for _, n := range c.nodes {
		require.Eventually(t, func() bool {
			r, err := n.try(http.MethodGet, "/kv/a?consistency=causal&r=1&session="+w.token, nil)
			require.NoError(t, err)
			require.NotEqual(t, "1", r.body["value"], "at %s", n.name)
			return r.body["value"] == "2"
		}, e2eReady, 100*time.Millisecond, "at %s", n.name)
	}
}
