package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeNode is a node's HTTP API as far as the gateway sees it. ready and local say what /readyz answers.
type fakeNode struct {
	*httptest.Server
	ready, local atomic.Bool
	served       atomic.Int64
}

func newFakeNode(t *testing.T, serve http.HandlerFunc) *fakeNode {
	t.Helper()
	n := &fakeNode{}
	n.ready.Store(true)
	n.local.Store(true)
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			if !n.ready.Load() && (r.URL.Query().Get("consistency") != "local" || !n.local.Load()) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return
		}
		n.served.Add(1)
		serve(w, r)
	}))
	t.Cleanup(n.Close)
	return n
}

func (n *fakeNode) address() string { return n.Listener.Addr().String() }

// startGateway runs a gateway until the test ends and returns its address, once it has found ready nodes.
func startGateway(t *testing.T, ready int, addresses ...string) (string, *gateway) {
	t.Helper()
	g, err := newGateway(addresses, slog.New(slog.DiscardHandler), nil)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runGateway(ctx, l, g) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	require.Eventually(t, func() bool { return len(g.candidates()) == ready }, 5*time.Second, time.Millisecond)
	return l.Addr().String(), g
}

// rawRequest sends a request line exactly as given and returns the answer.
func rawRequest(t *testing.T, address, method, target string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: caprock.example\r\nConnection: close\r\n\r\n", method, target)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func requireProblem(t *testing.T, resp *http.Response, status int, code, outcome string) {
	t.Helper()
	require.Equal(t, status, resp.StatusCode)
	require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
	var p problem
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&p))
	require.Equal(t, code, p.Code)
	require.Equal(t, outcome, p.Outcome)
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.RequestID)
	require.Equal(t, p.RequestID, resp.Header.Get("X-Request-Id"))
}

// The gateway must not turn one key into another: whatever target a client spells, the node gets the same bytes.
func TestGatewayPassesTargetsThroughByteForByte(t *testing.T) {
	node := newFakeNode(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	address, _ := startGateway(t, 1, node.address())
	for _, target := range []string{
		"/kv/a", "/kv/a//b", "/kv/a/../b", "/kv/a/./b", "/kv/..", "/kv/a%2Fb", "/kv/a%2fb", "/kv/%2e%2e/b", "/kv/a%20b", "/kv/a+b",
		"/kv/a%3Fb?x=1", "/kv/%61", "/kv/a;b", "/kv/a:b@c", "/kv/%ff%00", "/kv/%25", "/kv/a\"b%2Fc", "/kv/a<b>|{}^`%2F", "/kv/é%2F",
		"/kv/a/", "/kv//", "/kv", "/", "/kv/a?", "/kv/a?consistency=strong&if-version=0", "/kv/a?a;b&c=%zz", "/kv/a?x=a%2Fb+c%20d",
		"/kv/" + strings.Repeat("%00", 4096),
	} {
		resp := rawRequest(t, address, http.MethodGet, target)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, target)
		require.Equal(t, target, string(body))
	}
}

func FuzzGatewayPassesEveryKeyThrough(f *testing.F) {
	for _, key := range []string{"a//b", "a/../b", "a%2Fb", "\x00\xff", "é\"<>", "?", ""} {
		f.Add(key)
	}
	node := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(f, err)
	go func() { _ = node.Serve(l) }()
	f.Cleanup(func() { _ = node.Close() })
	g, err := newGateway([]string{l.Addr().String()}, slog.New(slog.DiscardHandler), nil)
	require.NoError(f, err)
	g.setHealth(g.nodes[0], healthReady)
	front := httptest.NewServer(g)
	f.Cleanup(front.Close)
	f.Fuzz(func(t *testing.T, key string) {
		if strings.ContainsAny(key, " \r\n\t\x00?#") || len(key) > 4096 {
			return // these cannot stand in a request line as they are
		}
		conn, err := net.Dial("tcp", front.Listener.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "GET /kv/%s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", key)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		if resp.StatusCode == http.StatusOK {
			require.Equal(t, "/kv/"+key, string(body))
		} else {
			require.Equal(t, http.StatusBadRequest, resp.StatusCode, "a target that is refused is refused as malformed")
		}
	})
}

func TestGatewayHandsOnBodyHeadersAndHost(t *testing.T) {
	node := newFakeNode(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Caprock-Version", "41")
		w.WriteHeader(http.StatusPreconditionFailed)
		fmt.Fprintf(w, "%s|%s|%s|%s|%s", r.Method, r.Host, r.Header.Get("X-Request-Id"), r.Header.Get("Content-Type"), body)
	})
	address, _ := startGateway(t, 1, node.address())
	r, err := http.NewRequest(http.MethodPut, "http://"+address+"/kv/a", strings.NewReader(`{"value":"1"}`))
	require.NoError(t, err)
	r.Host = "caprock.example"
	r.Header.Set("X-Request-Id", "mine")
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, `PUT|caprock.example|mine|application/json|{"value":"1"}`, string(body))
	require.Equal(t, http.StatusPreconditionFailed, resp.StatusCode)
	require.Equal(t, "41", resp.Header.Get("Caprock-Version"))
}

func TestGatewaySpreadsRequestsOverReadyNodes(t *testing.T) {
	ok := func(http.ResponseWriter, *http.Request) {}
	a, b, c := newFakeNode(t, ok), newFakeNode(t, ok), newFakeNode(t, ok)
	c.ready.Store(false)
	c.local.Store(false)
	address, _ := startGateway(t, 2, a.address(), b.address(), c.address())
	for range 20 {
		require.Equal(t, http.StatusOK, rawRequest(t, address, http.MethodGet, "/kv/a").StatusCode)
	}
	require.GreaterOrEqual(t, a.served.Load(), int64(5))
	require.GreaterOrEqual(t, b.served.Load(), int64(5))
	require.Zero(t, c.served.Load(), "a node that is not ready gets no request")
}

// A node that only serves local requests is better than none, and worse than one that serves everything.
func TestGatewayAsksACutOffNodeOnlyWhenThereIsNoOther(t *testing.T) {
	ok := func(http.ResponseWriter, *http.Request) {}
	whole, cutOff := newFakeNode(t, ok), newFakeNode(t, ok)
	cutOff.ready.Store(false)
	address, g := startGateway(t, 2, whole.address(), cutOff.address())
	for range 10 {
		require.Equal(t, http.StatusOK, rawRequest(t, address, http.MethodGet, "/kv/a").StatusCode)
	}
	require.Zero(t, cutOff.served.Load())
	whole.ready.Store(false)
	whole.local.Store(false)
	require.Eventually(t, func() bool { return len(g.candidates()) == 1 }, 5*time.Second, 5*time.Millisecond)
	require.Equal(t, http.StatusOK, rawRequest(t, address, http.MethodGet, "/kv/a").StatusCode)
	require.EqualValues(t, 1, cutOff.served.Load())
}

// A node that died since the last health check costs nothing: its connection is refused before anything is sent, so
// that even a write, with its body, goes on to the next node.
func TestGatewayMovesWritesToAnotherNodeWhenNothingWasSent(t *testing.T) {
	alive := newFakeNode(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead := l.Addr().String()
	require.NoError(t, l.Close())

	g, err := newGateway([]string{dead, alive.address()}, slog.New(slog.DiscardHandler), nil)
	require.NoError(t, err)
	front := httptest.NewServer(g)
	defer front.Close()
	triedDead := 0
	for range 4 {
		for _, n := range g.nodes {
			g.setHealth(n, healthReady)
		}
		r, err := http.NewRequest(http.MethodPut, front.URL+"/kv/a", strings.NewReader("body"))
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Equal(t, "body", string(body))
		if g.nodes[0].health.Load() == healthDown {
			triedDead++
		}
	}
	require.Positive(t, triedDead, "a node that refused a connection is not tried again before it proves ready")
	require.EqualValues(t, 4, alive.served.Load())
}

// hangUp breaks the connection after the request has arrived.
func hangUp(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// A write that a node took and did not answer may have taken effect: it is not sent twice, and its outcome is unknown.
func TestGatewayNeverRepeatsAWriteThatWasSent(t *testing.T) {
	a, b := newFakeNode(t, hangUp), newFakeNode(t, hangUp)
	address, _ := startGateway(t, 2, a.address(), b.address())
	for i, method := range []string{http.MethodPut, http.MethodDelete, http.MethodPost} {
		r, err := http.NewRequest(method, "http://"+address+"/kv/a", strings.NewReader("body"))
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		requireProblem(t, resp, http.StatusGatewayTimeout, "DEADLINE_EXCEEDED", "unknown")
		require.NoError(t, resp.Body.Close())
		require.EqualValues(t, i+1, a.served.Load()+b.served.Load())
	}
}

func TestGatewayRepeatsAReadOnAnotherNode(t *testing.T) {
	broken := newFakeNode(t, hangUp)
	whole := newFakeNode(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "value") })
	address, _ := startGateway(t, 2, broken.address(), whole.address())
	for range 6 {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			require.Equal(t, http.StatusOK, rawRequest(t, address, method, "/kv/a").StatusCode)
		}
	}
	require.Positive(t, broken.served.Load())
}

func TestGatewaySaysSoWhenNoNodeIsReady(t *testing.T) {
	node := newFakeNode(t, func(http.ResponseWriter, *http.Request) {})
	node.ready.Store(false)
	node.local.Store(false)
	address, _ := startGateway(t, 0, node.address())
	for _, method := range []string{http.MethodGet, http.MethodPut} {
		requireProblem(t, rawRequest(t, address, method, "/kv/a"), http.StatusServiceUnavailable, "NOT_READY", "not_applied")
	}
	require.Zero(t, node.served.Load())
}

func TestGatewayNoticesThatANodeIsReadyAgain(t *testing.T) {
	node := newFakeNode(t, func(http.ResponseWriter, *http.Request) {})
	node.ready.Store(false)
	node.local.Store(false)
	address, g := startGateway(t, 0, node.address())
	node.ready.Store(true)
	require.Eventually(t, func() bool { return len(g.candidates()) == 1 }, 5*time.Second, 5*time.Millisecond)
	require.Equal(t, http.StatusOK, rawRequest(t, address, http.MethodGet, "/kv/a").StatusCode)
}

func TestGatewayRefusesABodyThatNoNodeWouldTake(t *testing.T) {
	node := newFakeNode(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	address, _ := startGateway(t, 1, node.address())
	r, err := http.NewRequest(http.MethodPut, "http://"+address+"/kv/a", io.LimitReader(neverEnding{}, gatewayBodyBytesMax+1))
	require.NoError(t, err)
	r.ContentLength = gatewayBodyBytesMax + 1
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	requireProblem(t, resp, http.StatusRequestEntityTooLarge, "VALUE_TOO_LARGE", "not_applied")
	require.Zero(t, node.served.Load())
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestGatewayFinishesRequestsInFlightBeforeItStops(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	node := newFakeNode(t, func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	g, err := newGateway([]string{node.address()}, slog.New(slog.DiscardHandler), nil)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- runGateway(ctx, l, g) }()
	require.Eventually(t, func() bool { return len(g.candidates()) == 1 }, 5*time.Second, time.Millisecond)
	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String() + "/kv/a")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
	<-entered
	stop()
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, 5*time.Second, time.Millisecond, "a gateway that stops takes no new request")
	close(release)
	require.Equal(t, "done", <-answer)
	require.NoError(t, <-stopped)
}

func TestGatewayNeedsAddresses(t *testing.T) {
	for _, addresses := range [][]string{nil, {"n1"}, {"http://n1:8081"}} {
		_, err := newGateway(addresses, slog.New(slog.DiscardHandler), nil)
		require.Error(t, err)
		require.Contains(t, err.Error(), "--nodes")
	}
}
