package main

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// faults sends a request to the node's fault injector and returns what is in force according to its answer.
func (c *e2eCluster) faults(n *e2eNode, status int, method, body string) string {
	c.t.Helper()
	r, err := http.NewRequest(method, "http://"+n.http+"/admin/faults", strings.NewReader(body))
	require.NoError(c.t, err)
	resp, err := e2eClient.Do(r)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	require.Equal(c.t, status, resp.StatusCode, "%s %s at %s: %s", method, body, n.name, raw)
	return string(raw)
}

func TestNodeWithALowDiskRefusesWritesUntilItHasRoom(t *testing.T) {
	c := startCluster(t)
	n := c.nodes[0]
	c.do(n, http.StatusOK, http.MethodPut, "/kv/k", "v")
	all := `[{"peer":2,"direction":"in","class":"raft","delay":"1ms"},{"disk":"low"},{"clock":"-1s"}]`
	require.JSONEq(t, all, c.faults(n, http.StatusOK, http.MethodPost, all))
	for _, bad := range []string{`[{"disk":"low","bogus":1}]`, `[{"disk":"low"},{"disk":"full"}]`, `[{"clock":"25h"}]`, `[{"disk":"slow"}]`, `null`, `{}`} {
		c.faults(n, http.StatusBadRequest, http.MethodPost, bad)
		require.JSONEq(t, all, c.faults(n, http.StatusOK, http.MethodGet, ""), "%s changed something", bad)
	}
	for _, level := range []string{"strong", "eventual", "local"} {
		var last answer
		require.Eventually(t, func() bool {
			var err error
			last, err = n.try(http.MethodPut, "/kv/refused?consistency="+level, "v")
			return err == nil && last.status == http.StatusTooManyRequests
		}, e2eReady, e2ePoll)
		require.Equal(t, "OVERLOADED", last.code())
		require.Equal(t, "not_applied", last.body["outcome"])
		require.NotEmpty(t, last.header.Get("Retry-After"))
	}
	require.Equal(t, "v", c.do(n, http.StatusOK, http.MethodGet, "/kv/k", nil).body["value"])
	disk, _ := c.do(n, http.StatusOK, http.MethodGet, "/admin/status", nil).body["disk"].(map[string]any)
	require.Contains(t, disk["writes"], "full")
	require.JSONEq(t, `[]`, c.faults(n, http.StatusOK, http.MethodDelete, ""))
	require.Eventually(t, func() bool {
		a, err := n.try(http.MethodPut, "/kv/k", "w")
		return err == nil && a.status == http.StatusOK
	}, e2eReady, e2ePoll)
}

func TestNodeWhoseDiskFailsStopsAndSaysWhy(t *testing.T) {
	c := startCluster(t)
	c.do(c.nodes[2], http.StatusOK, http.MethodPut, "/kv/k", "v")
	for i, fault := range []string{"error", "full"} {
		n := c.nodes[i]
		c.faults(n, http.StatusOK, http.MethodPost, `[{"disk":"`+fault+`"}]`)
		// No more than its own bookkeeping is needed for the node to meet the fault.
		var exit *exec.ExitError
		require.ErrorAs(t, c.awaitExit(n), &exit)
		require.Positive(t, exit.ExitCode(), "the node ended by a signal")
		log, err := os.ReadFile(n.log)
		require.NoError(t, err)
		require.Contains(t, string(log), "node stopped: ")
		require.Contains(t, string(log), "stopped after a disk failure")
		require.Contains(t, string(log), map[string]string{"error": "input/output error", "full": "no space left on device"}[fault])
		c.start(n)
		c.waitReady(c.nodes...)
	}
	c.do(c.nodes[0], http.StatusOK, http.MethodGet, "/kv/k?consistency=strong", nil)
}

// A kill leaves what was written in the hands of the kernel. On volatile disks it takes away what was not synced.
func TestNothingAcknowledgedIsLostWhenAllNodesLoseTheirPower(t *testing.T) {
	c := startCluster(t)
	for _, n := range c.nodes {
		c.faults(n, http.StatusOK, http.MethodPost, `[{"disk":"volatile"}]`)
	}
	killAllUnderLoad(t, c, "")
}
