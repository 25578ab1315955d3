package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/caprockdb/caprock/pkg/kv"
)

// startServer serves on loopback until the test ends.
func startServer(t *testing.T, cfg Config, node *fakeNode) (s *Server, addr string) {
	t.Helper()
	s, err := NewServer(cfg, testDeps(node))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, s.Shutdown(ctx))
		require.NoError(t, <-served, "Serve returns nil after Shutdown")
		http.DefaultClient.CloseIdleConnections()
		goleak.VerifyNone(t)
	})
	return s, l.Addr().String()
}

// raw sends bytes on a connection of its own and reads one answer.
func raw(t *testing.T, addr, request string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, request)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestShutdownFinishesWhatIsInFlightAndTakesNothingNew(t *testing.T) {
	node := newFakeNode()
	entered, release := make(chan struct{}), make(chan struct{})
	node.execute = func(context.Context, *kv.Request) (kv.Response, error) {
		close(entered)
		<-release
		return kv.Response{Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Version: 7}, nil
	}
	s, addr := startServer(t, DefaultConfig(), node)
	answered := make(chan string, 1)
	go func() {
		r, _ := http.NewRequest("PUT", "http://"+addr+"/kv/a", strings.NewReader("v"))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answered <- fmt.Sprint(resp.StatusCode, " ", string(body))
	}()
	<-entered
	ready := raw(t, addr, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Equal(t, 200, ready.StatusCode)
	s.Drain()
	require.Equal(t, 503, raw(t, addr, "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").StatusCode)
	require.Equal(t, 503, raw(t, addr, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").StatusCode)

	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	require.Eventually(t, func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 5*time.Second, 5*time.Millisecond, "the listener closes first")
	select {
	case err := <-down:
		t.Fatalf("shutdown returned while a request was in flight: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	require.NoError(t, <-down)
	require.Contains(t, <-answered, `200 {"key":"a","version":7`)
}

func TestShutdownCutsWhatDoesNotFinishInTime(t *testing.T) {
	node := newFakeNode()
	entered := make(chan struct{})
	canceled := make(chan struct{})
	node.execute = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		close(entered)
		<-ctx.Done()
		close(canceled)
		return kv.Response{}, ctx.Err()
	}
	s, addr := startServer(t, DefaultConfig(), node)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	_, _ = io.WriteString(c, "GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
	<-canceled
	require.Equal(t, 503, call(t, s.Handler(), "GET", "/readyz", "").Code, "shutdown by itself fails readiness")
}

func TestClientThatLeavesAbandonsItsRequest(t *testing.T) {
	node := newFakeNode()
	entered, canceled := make(chan struct{}), make(chan struct{})
	node.execute = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		close(entered)
		<-ctx.Done()
		close(canceled)
		return kv.Response{}, ctx.Err()
	}
	_, addr := startServer(t, DefaultConfig(), node)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	_, _ = io.WriteString(c, "GET /kv/a?timeout=60s HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	require.NoError(t, c.Close())
	<-canceled
}

func TestDeadlineOfTheRequestReachesTheNode(t *testing.T) {
	node := newFakeNode()
	left := make(chan time.Duration, 1)
	node.execute = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		deadline, ok := ctx.Deadline()
		require.True(t, ok)
		left <- time.Until(deadline)
		return kv.Response{Found: true}, nil
	}
	h := newTestHandler(t, node)
	for query, want := range map[string]time.Duration{"": kv.RequestTimeout, "?timeout=1m": time.Minute, "?timeout=250ms": 250 * time.Millisecond} {
		call(t, h, "GET", "/kv/a"+query, "")
		require.InDelta(t, want.Seconds(), (<-left).Seconds(), 0.2)
	}
}

func TestLimitsOfTheWire(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ReadHeaderTimeout, cfg.ReadTimeout = 150*time.Millisecond, 300*time.Millisecond
	node := newFakeNode()
	_, addr := startServer(t, cfg, node)

	longest := raw(t, addr, "GET /kv/"+strings.Repeat("%41", kv.KeyBytesMax)+" HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Equal(t, 404, longest.StatusCode, "the longest key fits into the longest header")
	header := raw(t, addr, "GET /kv/a HTTP/1.1\r\nHost: x\r\nX-Filler: "+strings.Repeat("x", 80<<10)+"\r\n\r\n")
	require.Equal(t, 431, header.StatusCode)
	require.Equal(t, 400, raw(t, addr, "GET /kv/%zz HTTP/1.1\r\nHost: x\r\n\r\n").StatusCode)

	slow := raw(t, addr, "PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	require.Equal(t, 408, slow.StatusCode)
	body, err := io.ReadAll(slow.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), `"code":"REQUEST_TIMEOUT"`)
	require.Contains(t, string(body), `"outcome":"not_applied"`)

	idle, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer idle.Close()
	_, err = io.WriteString(idle, "GET /kv/a HTTP/1.1\r\nHos")
	require.NoError(t, err)
	_ = idle.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = io.Copy(io.Discard, idle)
	require.NoError(t, err, "a header that never ends is cut off")
	require.Empty(t, node.writes)
}

func TestClientThatSendsTooMuchReadsWhy(t *testing.T) {
	node := newFakeNode()
	_, addr := startServer(t, DefaultConfig(), node)
	for _, size := range []int{kv.ValueBytesMax + 1, 3 << 20} {
		for _, contentType := range []string{contentRaw, contentJSON} {
			body := bytes.Repeat([]byte{'x'}, size)
			if contentType == contentJSON {
				body = fmt.Appendf(nil, `{"value":%q}`, body)
			}
			r, err := http.NewRequest("PUT", "http://"+addr+"/kv/a", bytes.NewReader(body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", contentType)
			resp, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			require.Equal(t, 413, resp.StatusCode)
			require.NoError(t, resp.Body.Close())
		}
	}
	// A client that reads only once it has sent everything gets the answer too, whatever it was refused for.
	for target, status := range map[string]int{"/kv/a": 413, "/kv/a?nonsense=1": 400, "/nope": 404} {
		head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", target, 8<<20)
		require.Equal(t, status, raw(t, addr, head+strings.Repeat("x", 8<<20)).StatusCode)
	}
	require.Empty(t, node.writes)
}

func TestConfigThatMakesNoSenseIsRefused(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	for _, spoil := range []func(*Config){
		func(c *Config) { c.Limits.KeyBytesMax = 0 },
		func(c *Config) { c.RequestTimeout = 2 * time.Minute },
		func(c *Config) { c.ReadTimeout = 0 },
		func(c *Config) { c.WriteTimeout = c.RequestTimeoutMax },
		func(c *Config) { c.HeaderBytesMax = 4 << 10 },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		_, err := NewServer(cfg, testDeps(newFakeNode()))
		require.Error(t, err)
	}
	for _, spoil := range []func(*Deps){
		func(d *Deps) { d.Backend = nil },
		func(d *Deps) { d.Logger = nil },
		func(d *Deps) { d.Registerer = nil },
		func(d *Deps) { d.Gatherer = nil },
		func(d *Deps) { d.WallNow = nil },
	} {
		deps := testDeps(newFakeNode())
		spoil(&deps)
		_, err := NewHandler(DefaultConfig(), deps)
		require.Error(t, err)
	}
	require.NoError(t, DefaultRESPConfig().Validate())
	bad := DefaultRESPConfig()
	bad.BulkBytesMax = bad.Limits.ValueBytesMax
	_, err := NewRESP(bad, testDeps(newFakeNode()))
	require.Error(t, err)
	bad = DefaultRESPConfig()
	bad.KeysMax = 0
	require.Error(t, bad.Validate())
}
