package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	pathData     = "/kv/"
	pathPolicies = "/admin/policies/"
	pathOps      = "/ops/"
	pathParts    = "/admin/partitions/"

	// requestIDBytesMax bounds a request id that a client chose; a longer one is replaced.
	requestIDBytesMax = 128
)

// handler serves the HTTP front. It dispatches on the path by itself: http.ServeMux cleans paths and redirects, and a
// redirect of /kv/a//b leads to another key.
type handler struct {
	cfg    Config
	deps   Deps
	exec   *executor
	params []dataParam
	routes map[string]routeEntry

	// idPrefix and idCounter make request ids that are unique across nodes and restarts.
	idPrefix  string
	idCounter atomic.Uint64

	// draining is set when shutdown began, so that readiness fails while the last requests finish.
	draining atomic.Bool

	exchanges sync.Pool // of *exchange
}

// routeEntry is a route with a fixed path.
type routeEntry struct {
	allow string // the methods, as the Allow header spells them
	serve func(*exchange)
}

// NewHandler returns the HTTP front.
func NewHandler(cfg Config, deps Deps) (http.Handler, error) { return newHandler(cfg, deps) }

func newHandler(cfg Config, deps Deps) (*handler, error) {
	if deps.Gatherer == nil {
		return nil, errors.New("api: Deps.Gatherer is missing")
	}
	exec, err := executorOf(cfg.Validate(), deps, cfg.Limits)
	if err != nil {
		return nil, err
	}
	h := &handler{
		cfg:      cfg,
		deps:     deps,
		exec:     exec,
		params:   dataParamTable(),
		idPrefix: fmt.Sprintf("%s-%s-", deps.Backend.Self(), strconv.FormatInt(deps.WallNow().UnixMicro(), 36)),
	}
	h.exchanges.New = func() any { return new(exchange) }
	metrics := promhttp.HandlerFor(deps.Gatherer, promhttp.HandlerOpts{})
	h.routes = map[string]routeEntry{
		"/kv":               {"", (*exchange).list},
		"/batch":            {"POST", (*exchange).batch},
		"/health":           {"GET, HEAD", (*exchange).health},
		"/livez":            {"GET, HEAD", (*exchange).live},
		"/readyz":           {"GET, HEAD", (*exchange).ready},
		"/metrics":          {"GET, HEAD", func(x *exchange) { metrics.ServeHTTP(x.w, x.r) }},
		"/admin/status":     {"GET, HEAD", func(x *exchange) { x.document(DocStatus) }},
		"/admin/ring":       {"GET, HEAD", func(x *exchange) { x.document(DocRing) }},
		"/admin/nodes":      {"GET, HEAD", func(x *exchange) { x.document(DocNodes) }},
		"/admin/partitions": {"GET, HEAD", func(x *exchange) { x.document(DocPartitions) }},
		"/admin/policies":   {"GET, HEAD", (*exchange).listPolicies},
		pathPolicies:        {"GET, HEAD", (*exchange).listPolicies},
		"/admin/faults":     {"", (*exchange).faults},
		"/api/set":          {"POST", (*exchange).compatSet},
		"/api/get":          {"GET, HEAD", (*exchange).compatGet},
		"/api/list":         {"GET, HEAD", (*exchange).compatList},
		"/api/delete":       {"DELETE", (*exchange).compatDelete},
		"/api/stats":        {"GET, HEAD", func(x *exchange) { x.document(DocStats) }},
	}
	return h, nil
}

// exchange is one request and its answer.
type exchange struct {
	h      *handler
	w      http.ResponseWriter
	r      *http.Request
	id     string
	route  string // the pattern of the route, for the log: never a key
	status int
	body   []byte // of the answer; reused
}

// ServeHTTP serves one request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := h.exchanges.Get().(*exchange)
	*x = exchange{h: h, w: w, r: r, body: x.body[:0]}
	x.id = h.requestID(r)
	w.Header()["X-Request-Id"] = []string{x.id}
	start := time.Now()
	defer func() {
		if cause := recover(); cause != nil {
			x.panicked(cause)
		}
		x.log(time.Since(start))
		if cap(x.body) > pooledBytesMax {
			x.body = nil
		}
		x.w, x.r = nil, nil
		h.exchanges.Put(x)
	}()
	x.dispatch()
}

// pooledBytesMax is the largest answer whose buffer is kept for reuse.
const pooledBytesMax = 64 << 10

// dispatch finds the route. Data and policy routes are recognised by their prefix on the path as the client sent it;
// everything after the prefix belongs to the key.
func (x *exchange) dispatch() {
	path, encoded := route(x.r.URL)
	if rest, ok := strings.CutPrefix(path, pathData); ok {
		x.route = "/kv/{key}"
		x.data(rest, encoded)
		return
	}
	if rest, ok := strings.CutPrefix(path, pathPolicies); ok && rest != "" {
		x.route = "/admin/policies/{prefix}"
		x.policy(rest, encoded)
		return
	}
	if rest, ok := strings.CutPrefix(path, pathParts); ok {
		x.route = "/admin/partitions/{id}"
		x.partition(rest)
		return
	}
	if rest, ok := strings.CutPrefix(path, pathOps); ok {
		x.route = "/ops/{id}"
		x.operation(rest, encoded)
		return
	}
	entry, ok := x.h.routes[path]
	if !ok {
		x.notFound()
		return
	}
	x.route = path
	if entry.allow != "" && !allows(entry.allow, x.r.Method) {
		x.methodNotAllowed(entry.allow)
		return
	}
	entry.serve(x)
}

// allows reports whether an Allow header lists the method.
func allows(allow, method string) bool {
	for listed := range strings.SplitSeq(allow, ", ") {
		if listed == method {
			return true
		}
	}
	return false
}

func (x *exchange) notFound() {
	x.fail(kv.Errorf(codeRouteNotFound, "there is no route %s in this version", cutText(x.r.URL.Path)))
}

func (x *exchange) methodNotAllowed(allow string) {
	x.w.Header()["Allow"] = []string{allow}
	x.fail(kv.Errorf(codeMethodNotAllowed, "method %s is not allowed here; allowed are %s", cutText(x.r.Method), allow))
}

// cutText shortens what a client sent to what is worth repeating in an answer.
func cutText(s string) string {
	const echoBytesMax = 100
	if len(s) <= echoBytesMax {
		return s
	}
	return s[:echoBytesMax] + "…"
}

// send writes the answer that x.body holds.
func (x *exchange) send(status int, contentType string) {
	h := x.w.Header()
	h["Content-Type"] = []string{contentType}
	h["X-Content-Type-Options"] = headerNoSniff
	h["Content-Length"] = []string{strconv.Itoa(len(x.body))}
	x.status = status
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(x.body) // a client that went away is no concern of ours
	}
}

// Header values that are always the same share one slice; net/http only reads them.
var (
	headerNoSniff = []string{"nosniff"}
	headerNoCache = []string{"no-cache"}
	headerAccept  = []string{"Accept"}
)

// deadline returns the context in which the request runs. The caller cancels it.
func (x *exchange) deadline(timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout == 0 {
		timeout = x.h.cfg.RequestTimeout
	}
	return context.WithTimeout(x.r.Context(), timeout)
}

// requestID returns the id that the client gave, if it is fit for headers and logs, else a new one.
func (h *handler) requestID(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && isToken(given[0]) {
		return given[0]
	}
	return h.idPrefix + strconv.FormatUint(h.idCounter.Add(1), 36)
}

// isToken reports whether s is visible ASCII of a sensible length.
func isToken(s string) bool {
	if s == "" || len(s) > requestIDBytesMax {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// panicked answers a request whose handling hit a bug. Others go on: the store behind the front keeps its invariants by
// itself. A panic that net/http uses to abort is passed on.
func (x *exchange) panicked(cause any) {
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(cause)
	}
	x.h.deps.Logger.Error("request handler panicked", slog.String("request_id", x.id), slog.String("route", x.route),
		slog.Any("cause", cause), slog.String("stack", string(debug.Stack())))
	if x.status != 0 {
		return // the answer is on its way; net/http notices that it is short
	}
	x.fail(&kv.Error{Code: kv.CodeInternal, Detail: "an internal error; the log has it under this request id", Outcome: kv.OutcomeUnknown})
}

// log writes the access log, which is for debugging: metrics count what is served.
func (x *exchange) log(took time.Duration) {
	logger := x.h.deps.Logger
	if !logger.Enabled(x.r.Context(), slog.LevelDebug) {
		return
	}
	logger.LogAttrs(x.r.Context(), slog.LevelDebug, "http request", slog.String("request_id", x.id),
		slog.String("method", cutText(x.r.Method)), slog.String("route", x.route), slog.Int("status", x.status),
		slog.Int("answer_bytes", len(x.body)), slog.Duration("took", took), slog.String("client", x.r.RemoteAddr))
}
