package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// send sends a request with a body and headers as they are.
func (n *e2eNode) send(t *testing.T, status int, method, target, body string, headers ...string) map[string]any {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+n.http+target, strings.NewReader(body))
	require.NoError(t, err)
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	resp, err := e2eClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, status, resp.StatusCode, "%s %s: %s", method, target, raw)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(raw, &doc), "%s", raw)
	return doc
}

func TestStrongLaneThroughEveryFront(t *testing.T) {
	c := startCluster(t)
	t.Run("a repeated write is applied once, whoever is asked", func(t *testing.T) { testRepeated(t, c) })
	t.Run("values that expire", func(t *testing.T) { testExpiry(t, c) })
	t.Run("what groups say of themselves", func(t *testing.T) { testStats(t, c) })
	t.Run("listings", func(t *testing.T) { testListings(t, c) })
	t.Run("batches", func(t *testing.T) { testBatches(t, c) })
}

func testRepeated(t *testing.T, c *e2eCluster) {
	var first map[string]any
	for i, n := range c.nodes {
		a := n.send(t, 200, "PUT", "/kv/once", "1", "Idempotency-Key: order 17")
		if i == 0 {
			first = a
		}
		require.Equal(t, first["version"], a["version"])
		require.Equal(t, first["timestamp"], a["timestamp"])
		a = n.send(t, 200, "GET", "/ops/order%2017?key=once", "")
		require.Equal(t, "applied", a["outcome"])
		require.Equal(t, first["version"], a["version"])
		a = n.send(t, 400, "PUT", "/kv/once", "2", "Idempotency-Key: order 17")
		require.Equal(t, "BAD_REQUEST", a["code"])
		a = n.send(t, 404, "GET", "/ops/order%2018?key=once", "")
		require.Equal(t, "OPERATION_NOT_FOUND", a["code"])
		require.Equal(t, "unknown", a["outcome"])
		a = n.send(t, 412, "PUT", "/kv/once?if-version=0", "x", "Idempotency-Key: create")
		require.Equal(t, first["version"], a["current_version"])
		a = n.send(t, 200, "GET", "/ops/create?key=once", "")
		require.Equal(t, "not_applied", a["outcome"])
	}
	a := c.nodes[2].send(t, 200, "GET", "/kv/once", "")
	require.Equal(t, "1", a["value"])
}

func testExpiry(t *testing.T, c *e2eCluster) {
	n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
	n1.send(t, 200, "PUT", "/kv/short?ttl=700ms", "v")
	n2.send(t, 200, "PUT", "/kv/long?ttl=3600", "v")
	n2.send(t, 200, "PUT", "/kv/kept?ttl=700ms", "v")
	n1.send(t, 200, "PUT", "/kv/kept", "w")
	a := n3.send(t, 200, "GET", "/kv/short", "")
	require.Equal(t, "v", a["value"])
	time.Sleep(700 * time.Millisecond)
	for _, n := range c.nodes {
		n.send(t, 404, "GET", "/kv/short", "")
		n.send(t, 404, "GET", "/kv/short?consistency=eventual", "")
		n.send(t, 404, "GET", "/kv/short?consistency=local", "")
		n.send(t, 200, "GET", "/kv/long", "")
		a = n.send(t, 200, "GET", "/kv/kept", "")
		require.Equal(t, "w", a["value"])
	}
	n2.send(t, 200, "PUT", "/kv/short?if-version=0&ttl=1h", "again")
	n3.send(t, 200, "GET", "/kv/short", "")
	_, stderr, code := command(t, "", "put", "tool-ttl", "v", "--ttl", "50ms", "--endpoints="+n1.grpc)
	require.Equal(t, 0, code, stderr)
	time.Sleep(100 * time.Millisecond)
	_, _, code = command(t, "", "get", "tool-ttl", "--endpoints="+n2.grpc)
	require.Equal(t, 3, code)
}

func testStats(t *testing.T, c *e2eCluster) {
	leads := 0.0
	for _, n := range c.nodes {
		a := n.send(t, 200, "GET", "/api/stats", "")
		leads += a["leads"].(float64)
		require.Positive(t, a["commit_index"])
		require.Positive(t, a["log_bytes"])
		p := n.send(t, 200, "GET", "/admin/partitions/3", "")
		require.Equal(t, true, p["local"])
		require.NotEmpty(t, p["leader"])
		require.Contains(t, []any{"leader", "follower"}, p["state"])
		require.Positive(t, p["term"])
		require.Contains(t, p, "lag")
		n.send(t, 404, "GET", "/admin/partitions/4711", "")
	}
	require.EqualValues(t, 8, leads, "each partition has one leader")
}

func testListings(t *testing.T, c *e2eCluster) {
	const count = 25
	for i := range count {
		c.nodes[i%3].send(t, 200, "PUT", fmt.Sprintf("/kv/list:%02d", i), "v"+itoa(i))
	}
	c.nodes[0].send(t, 200, "PUT", "/kv/list:05?ttl=1ms", "gone")
	c.nodes[0].send(t, 200, "DELETE", "/kv/list:06", "")
	time.Sleep(5 * time.Millisecond)
	for _, n := range c.nodes {
		var got []string
		target := "/kv?prefix=list:&limit=7"
		for pages := 0; pages < count; pages++ {
			a := n.send(t, 200, "GET", target, "")
			for _, item := range a["items"].([]any) {
				got = append(got, item.(map[string]any)["key"].(string))
			}
			token, more := a["next_page_token"].(string)
			if !more {
				break
			}
			target = "/kv?prefix=list:&limit=7&page_token=" + token
		}
		require.Len(t, got, count-2)
		require.True(t, slices.IsSorted(got), "%v", got)
		require.NotContains(t, got, "list:05")
		require.NotContains(t, got, "list:06")
	}
	endpoints := "--endpoints=" + c.nodes[1].grpc
	stdout, stderr, code := command(t, "", "list", "list:", "--keys-only", "-o", "json", endpoints)
	require.Equal(t, 0, code, stderr)
	require.Equal(t, count-2, strings.Count(stdout, `"key"`))
	require.NotContains(t, stdout, `"value"`)
	stdout, _, _ = command(t, "", "list", "list:", "--limit", "3", endpoints)
	require.Contains(t, stdout, "list:02")
	require.NotContains(t, stdout, "list:03")
}

func testBatches(t *testing.T, c *e2eCluster) {
	n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
	a := n1.send(t, 200, "POST", "/batch?atomic=true", `{"operations":[
		{"type":"PUT","key":"{cart}a","value":"1"},{"type":"PUT","key":"{cart}b","value":"2","if_version":0}]}`)
	results := a["results"].([]any)
	require.Len(t, results, 2)
	version := results[0].(map[string]any)["version"]
	require.Equal(t, version, results[1].(map[string]any)["version"], "one entry")
	for _, n := range c.nodes {
		a = n.send(t, 412, "POST", "/batch?atomic=true", `{"operations":[
			{"type":"PUT","key":"{cart}a","value":"9"},{"type":"DELETE","key":"{cart}b","if_version":1}]}`)
		require.Equal(t, version, a["current_version"])
		a = n.send(t, 200, "GET", "/kv/%7Bcart%7Da", "")
		require.Equal(t, "1", a["value"])
	}
	a = n2.send(t, 400, "POST", "/batch?atomic=true", `{"operations":[
		{"type":"PUT","key":"a","value":"1"},{"type":"PUT","key":"b","value":"1"},{"type":"PUT","key":"c","value":"1"},{"type":"PUT","key":"d","value":"1"}]}`)
	require.Equal(t, "CROSS_PARTITION", a["code"])
	n3.send(t, 404, "GET", "/kv/a", "")
	a = n3.send(t, 207, "POST", "/batch", `{"operations":[
		{"type":"PUT","key":"a","value":"1"},{"type":"PUT","key":"b","value":"2"},{"type":"GET","key":"a"},{"type":"GET","key":"absent"}]}`)
	require.Len(t, a["results"], 4)

	endpoints := "--endpoints=" + n1.grpc + "," + n2.grpc + "," + n3.grpc
	input := `{"type":"PUT","key":"{t}x","value":"1"}` + "\n" + `{"type":"DELETE","key":"{t}y"}` + "\n"
	stdout, stderr, code := command(t, input, "batch", "-", "--atomic", "-o", "json", endpoints)
	require.Equal(t, 0, code, stderr)
	require.Contains(t, stdout, `"outcome": "applied"`)
	stdout, _, code = command(t, `{"operations":[{"type":"GET","key":"{t}x"},{"type":"GET","key":"absent"}]}`, "batch", "-", endpoints)
	require.Equal(t, 3, code)
	require.Contains(t, stdout, "KEY_NOT_FOUND")
	_, _, code = command(t, `{"type":"PUT","key":"{t}x","value":"2","if_version":0}`, "batch", "-", "--atomic", endpoints)
	require.Equal(t, 4, code)
	_, _, code = command(t, `{"type":"MOVE","key":"x"}`, "batch", "-", endpoints)
	require.Equal(t, 2, code)
}
