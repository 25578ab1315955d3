package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Bounds of the gateway.
const (
	gatewayHealthInterval = 500 * time.Millisecond
	gatewayHealthTimeout  = time.Second
	gatewayDialTimeout    = time.Second
	// gatewayAnswerTimeout is longer than the longest deadline a node grants, so that the node's own answer wins.
	gatewayAnswerTimeout = kv.RequestTimeoutMax + 5*time.Second
	// gatewayBodyBytesMax stops what no node would take before it is sent to one. A value of 1 MiB written as JSON has
	// at most six times its size.
	gatewayBodyBytesMax  = 16 << 20
	gatewayNodesMax      = 1000
	gatewayIdlePerNode   = 256
	gatewayRequestIDSize = 8
)

// gateway is the stateless front door: it hands each request to a node that is ready. It implements http.Handler.
//
// Invariants:
//   - The escaped path and the query reach the node byte for byte as they came: a key is never another key.
//   - A request is sent to a second node only if nothing of it was sent to the first, or if it is a GET or HEAD without
//     a body, which may be repeated.
type gateway struct {
	nodes     []*gatewayNode
	next      atomic.Uint64
	transport *http.Transport
	proxy     *httputil.ReverseProxy
	onChange  func(address string, ready bool)
}

// gatewayNode is one node behind the gateway.
type gatewayNode struct {
	address string
	health  atomic.Int32 // one of the health constants
}

// How much a node can serve. A node that is cut off from the others still serves local requests, and is asked when no
// node serves everything.
const (
	healthDown int32 = iota
	healthLocal
	healthReady
)

// newGateway returns a gateway to the nodes' HTTP addresses. It knows of no ready node until watch runs. onChange, if
// any, is called from watch's goroutines whenever a node becomes ready or ceases to be.
func newGateway(addresses []string, log *slog.Logger, onChange func(address string, ready bool)) (*gateway, error) {
	if len(addresses) == 0 || len(addresses) > gatewayNodesMax {
		return nil, fmt.Errorf("%d nodes: give 1 to %d HTTP addresses with --nodes", len(addresses), gatewayNodesMax)
	}
	g := &gateway{
		onChange: onChange,
		transport: &http.Transport{
			// No proxy from the environment: nodes are reached directly.
			DialContext:           (&net.Dialer{Timeout: gatewayDialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			MaxIdleConnsPerHost:   gatewayIdlePerNode,
			IdleConnTimeout:       time.Minute,
			ResponseHeaderTimeout: gatewayAnswerTimeout,
			ExpectContinueTimeout: time.Second,
			// Values pass as they are.
			DisableCompression: true,
		},
	}
	for _, a := range addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return nil, fmt.Errorf("--nodes: %q is no address: write host:port of a node's HTTP API", a)
		}
		g.nodes = append(g.nodes, &gatewayNode{address: a})
	}
	g.proxy = &httputil.ReverseProxy{
		Rewrite:      rewrite,
		Transport:    g,
		ErrorHandler: answerProxyError,
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return g, nil
}

// rewrite prepares the outgoing request. RoundTrip fills in the node.
func rewrite(p *httputil.ProxyRequest) {
	p.SetXForwarded()
	p.Out.Host = p.In.Host
	p.Out.URL.Scheme = "http"
	// ReverseProxy drops query parameters that it cannot parse; the node shall see and refuse them.
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.URL.ForceQuery = p.In.URL.ForceQuery
	// Opaque is sent as it stands. URL.EscapedPath would re-encode a path that holds a byte it thinks should have been
	// escaped, and with it everything else in the path. An Opaque that starts with two slashes means a host, and a
	// target that is no path at all (CONNECT, "*") stays with net/http.
	path, _, _ := strings.Cut(p.In.RequestURI, "?")
	if strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
		p.Out.URL.Opaque = path
	}
}

// ServeHTTP implements http.Handler.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Request-Id") == "" {
		r.Header.Set("X-Request-Id", newRequestID())
	}
	if r.ContentLength > gatewayBodyBytesMax {
		writeProblem(w, r, http.StatusRequestEntityTooLarge,
			kv.Errorf(kv.CodeValueTooLarge, "the body has %d bytes; the gateway takes at most %d", r.ContentLength, gatewayBodyBytesMax))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, gatewayBodyBytesMax)
	g.proxy.ServeHTTP(w, r)
}

// Errors of a request that no node answered.
var (
	// errNoNodeReady is returned when nothing was sent anywhere, or only reads that may be repeated.
	errNoNodeReady = errors.New("no node is ready")
	// errNoAnswer is returned when a node took a request that may not be repeated, or part of it, and did not answer.
	errNoAnswer = errors.New("the node did not answer")
)

// RoundTrip implements http.RoundTripper: it sends the request to one ready node after another, until one answers or the
// request may not be repeated.
func (g *gateway) RoundTrip(r *http.Request) (*http.Response, error) {
	var last error
	for _, n := range g.candidates() {
		resp, err := g.transport.RoundTrip(addressed(r, n.address))
		if err == nil {
			return resp, nil
		}
		if r.Context().Err() != nil {
			return nil, err
		}
		unsent := isDialError(err)
		if unsent {
			g.setHealth(n, healthDown)
		}
		if !unsent && (!repeatable(r) || isTimeout(err)) {
			return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
		}
		last = err
	}
	if last != nil {
		return nil, fmt.Errorf("%w: the last one tried: %w", errNoNodeReady, last)
	}
	return nil, errNoNodeReady
}

// addressed returns a copy of r that goes to the node. Its body survives the attempt: a transport closes the body of a
// request that it could not even dial for, and the next attempt needs it. ReverseProxy closes the original.
func addressed(r *http.Request, address string) *http.Request {
	out := r.WithContext(r.Context())
	u := *r.URL
	u.Host = address
	out.URL = &u
	if r.Body != nil && r.Body != http.NoBody {
		out.Body = io.NopCloser(r.Body)
	}
	return out
}

// candidates returns the nodes to try, those that serve everything first, each kind beginning with a different node each
// time.
func (g *gateway) candidates() []*gatewayNode {
	start := g.next.Add(1)
	out := make([]*gatewayNode, 0, len(g.nodes))
	for _, wanted := range []int32{healthReady, healthLocal} {
		for i := range g.nodes {
			n := g.nodes[(start+uint64(i))%uint64(len(g.nodes))]
			if n.health.Load() == wanted {
				out = append(out, n)
			}
		}
	}
	return out
}

// isDialError reports whether the connection was never made, so that nothing was sent.
func isDialError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

func repeatable(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.Body == nil || r.Body == http.NoBody)
}

// watch asks every node every gatewayHealthInterval whether it is ready, until ctx is done.
func (g *gateway) watch(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range g.nodes {
		group.Go(func() error {
			tick := time.NewTicker(gatewayHealthInterval)
			defer tick.Stop()
			for {
				g.setHealth(n, g.askHealth(ctx, n))
				select {
				case <-ctx.Done():
					g.transport.CloseIdleConnections()
					return nil
				case <-tick.C:
				}
			}
		})
	}
	return group.Wait()
}

func (g *gateway) askHealth(ctx context.Context, n *gatewayNode) int32 {
	ctx, cancel := context.WithTimeout(ctx, gatewayHealthTimeout)
	defer cancel()
	switch {
	case g.answersOK(ctx, n, ""):
		return healthReady
	case g.answersOK(ctx, n, "?consistency=local"):
		return healthLocal
	default:
		return healthDown
	}
}

func (g *gateway) answersOK(ctx context.Context, n *gatewayNode, query string) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.address+"/readyz"+query, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := g.transport.RoundTrip(r)
	if err != nil {
		return false
	}
	// The answer is a line or two; what is left of a longer one costs the connection, not memory.
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (g *gateway) setHealth(n *gatewayNode, health int32) {
	before := n.health.Swap(health)
	if (before == healthReady) != (health == healthReady) && g.onChange != nil {
		g.onChange(n.address, health == healthReady)
	}
}

// answerProxyError answers a request that no node answered. What was sent and not answered is unknown, and says so.
func answerProxyError(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		// The client is gone; this status is for the log of whoever stands between.
		w.WriteHeader(499)
		return
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		// The node has not seen the end of the body, and answers only to whole bodies.
		writeProblem(w, r, http.StatusRequestEntityTooLarge,
			kv.Errorf(kv.CodeValueTooLarge, "the body is larger than the %d bytes that the gateway takes", tooLarge.Limit))
		return
	}
	if errors.Is(err, errNoAnswer) {
		e := kv.Errorf(kv.CodeDeadlineExceeded, "%v", err)
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			e = e.WithOutcome(kv.OutcomeUnknown)
		}
		writeProblem(w, r, http.StatusGatewayTimeout, e)
		return
	}
	writeProblem(w, r, http.StatusServiceUnavailable, kv.Errorf(kv.CodeNotReady, "%v", err))
}

// problem is the body of the gateway's own errors, in the form of the nodes' errors.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	Outcome   string `json:"outcome"`
	Retryable bool   `json:"retryable"`
	RequestID string `json:"request_id"`
}

func writeProblem(w http.ResponseWriter, r *http.Request, status int, e *kv.Error) {
	id := r.Header.Get("X-Request-Id")
	body, err := json.Marshal(problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status,
		Code: string(e.Code), Detail: e.Detail, Outcome: e.Outcome.String(), Retryable: e.Retryable, RequestID: id,
	})
	if err != nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Request-Id", id)
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

func newRequestID() string {
	var b [gatewayRequestIDSize]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
