package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// problemBytesMax bounds how much of an error's body is read.
const problemBytesMax = 64 << 10

// HTTPTarget sends operations over HTTP, with raw bodies both ways and one request at a time on a connection.
type HTTPTarget struct {
	client *http.Client
	bases  []string // "http://host:port/kv/"
	turn   atomic.Uint64
}

// NewHTTPTarget returns a target that spreads operations over the addresses (host:port) of nodes or gateways. It keeps as many
// connections to each as there are clients. Close it after use.
func NewHTTPTarget(addresses []string, clients int) (*HTTPTarget, error) {
	if len(addresses) == 0 {
		return nil, errors.New("workload: no HTTP address")
	}
	t := &HTTPTarget{client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: clients,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true, // values do not compress, and asking costs
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}}}
	for _, address := range addresses {
		t.bases = append(t.bases, "http://"+address+"/kv/")
	}
	return t, nil
}

// Close closes the idle connections.
func (t *HTTPTarget) Close() { t.client.CloseIdleConnections() }

// Do implements Target.
func (t *HTTPTarget) Do(ctx context.Context, op Op) error {
	ctx, cancel := context.WithTimeout(ctx, op.Timeout)
	defer cancel()
	r, err := t.request(ctx, op)
	if err != nil {
		return kv.Errorf(kv.CodeBadRequest, "%w", err)
	}
	response, err := t.client.Do(r)
	if err != nil {
		return failureOf(op, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		// Read to its end, or the connection cannot be used again.
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return failureOf(op, err)
		}
		return nil
	}
	return problemOf(op, response)
}

func (t *HTTPTarget) request(ctx context.Context, op Op) (*http.Request, error) {
	base := t.bases[t.turn.Add(1)%uint64(len(t.bases))]
	var target strings.Builder
	target.WriteString(base)
	target.WriteString(url.PathEscape(op.Key))
	separator := byte('?')
	add := func(name, value string) {
		target.WriteByte(separator)
		target.WriteString(name)
		target.WriteByte('=')
		target.WriteString(value)
		separator = '&'
	}
	if op.Level != kv.LevelUnset {
		add("consistency", op.Level.String())
	}
	if op.Timeout != kv.RequestTimeout {
		add("timeout", op.Timeout.String())
	}
	method, body := methodOf(op.Kind), io.Reader(nil)
	if op.Kind == kv.OpPut {
		body = bytes.NewReader(op.Value)
	}
	r, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return nil, err
	}
	// Assigned in canonical form, without the work of Set.
	r.Header["Content-Type"] = octetStream
	r.Header["Accept"] = octetStream
	return r, nil
}

// octetStream is the value of the headers that ask for raw bodies.
var octetStream = []string{"application/octet-stream"}

func methodOf(op kv.Op) string {
	switch op {
	case kv.OpPut:
		return http.MethodPut
	case kv.OpDelete:
		return http.MethodDelete
	default:
		return http.MethodGet
	}
}

// failureOf classifies a request without an answer: a write is certainly not applied only when no connection was made.
func failureOf(op Op, err error) *kv.Error {
	code := kv.CodeNotReady
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		code = kv.CodeDeadlineExceeded
	}
	out := kv.Errorf(code, "%w", err)
	dial, ok := errors.AsType[*net.OpError](err)
	if op.Kind.IsWrite() && !(ok && dial.Op == "dial") {
		return out.WithOutcome(kv.OutcomeUnknown)
	}
	return out
}

// problemOf reads the error document of an answer.
func problemOf(op Op, response *http.Response) *kv.Error {
	raw, err := io.ReadAll(io.LimitReader(response.Body, problemBytesMax))
	if err != nil {
		return failureOf(op, err)
	}
	var problem struct {
		Code      string `json:"code"`
		Detail    string `json:"detail"`
		Outcome   string `json:"outcome"`
		Retryable bool   `json:"retryable"`
	}
	if json.Unmarshal(raw, &problem) != nil || problem.Code == "" {
		out := kv.Errorf(kv.CodeInternal, "status %s without an error document", response.Status)
		if op.Kind.IsWrite() {
			return out.WithOutcome(kv.OutcomeUnknown)
		}
		return out
	}
	out := kv.Errorf(kv.Code(problem.Code), "%s", problem.Detail)
	out.Retryable = problem.Retryable
	if kv.OutcomeNotApplied.String() != problem.Outcome && op.Kind.IsWrite() {
		return out.WithOutcome(kv.OutcomeUnknown)
	}
	return out
}
