package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// adminTimeout bounds one question to a node's admin routes. They answer from memory.
	adminTimeout = 3 * time.Second
	// aliveTimeout is how long a node may take to answer before it counts as silent.
	aliveTimeout = 400 * time.Millisecond
	answerMax    = 16 << 20
	pollEvery    = 50 * time.Millisecond
)

// The disk faults of a node's injector.
const (
	diskLow      = "low"
	diskFull     = "full"
	diskError    = "error"
	diskVolatile = "volatile"
)

// rule is one element of what /admin/faults takes: a fault of the network, the disk or the clock.
type rule struct {
	Peer      any    `json:"peer,omitempty"`
	Direction string `json:"direction,omitempty"`
	Cut       bool   `json:"cut,omitempty"`
	Delay     string `json:"delay,omitempty"`
	Disk      string `json:"disk,omitempty"`
	Clock     string `json:"clock,omitempty"`
}

// admin asks one node over HTTP.
type admin struct {
	base string // http://host:port
	http *http.Client
}

// newAdmin returns an admin. Each question has a connection of its own: one that is left over from a process that was
// killed or paused would make the next answer wrong.
func newAdmin(base string) admin {
	return admin{base: strings.TrimSuffix(base, "/"), http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
}

// answerError is an answer that is not 200.
type answerError struct {
	status int
	body   string
}

func (e *answerError) Error() string {
	return fmt.Sprintf("%d: %s", e.status, strings.TrimSpace(e.body))
}

// do asks, and returns the body of a 200.
func (a admin) do(ctx context.Context, timeout time.Duration, method, path string, body []byte) ([]byte, error) {
	content, _, err := a.exchange(ctx, timeout, method, path, body)
	return content, err
}

func (a admin) exchange(ctx context.Context, timeout time.Duration, method, path string, body []byte) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := a.http.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, answerMax))
	if err != nil {
		return nil, nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, nil, &answerError{status: response.StatusCode, body: string(content)}
	}
	return content, response.Header, nil
}

func (a admin) get(ctx context.Context, path string, into any) error {
	raw, err := a.do(ctx, adminTimeout, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// alive reports whether the process answers at all.
func (a admin) alive(ctx context.Context) error {
	_, err := a.do(ctx, aliveTimeout, http.MethodGet, "/livez", nil)
	return err
}

// ready reports whether the node serves every level.
func (a admin) ready(ctx context.Context) error {
	_, err := a.do(ctx, adminTimeout, http.MethodGet, "/readyz", nil)
	return err
}

// setFaults replaces the node's faults, and proves that they are in force by asking for them.
func (a admin) setFaults(ctx context.Context, rules ...rule) error {
	body, err := json.Marshal(rules)
	if err != nil {
		return err
	}
	if _, err := a.do(ctx, adminTimeout, http.MethodPost, "/admin/faults", body); err != nil {
		return fmt.Errorf("set faults: %w", err)
	}
	var inForce []rule
	if err := a.get(ctx, "/admin/faults", &inForce); err != nil {
		return fmt.Errorf("read the faults in force: %w", err)
	}
	if !covers(inForce, rules) {
		return fmt.Errorf("the faults in force are %+v instead of %+v", inForce, rules)
	}
	return nil
}

// covers reports whether every wanted rule is among those in force. The node spells out what a rule leaves open.
func covers(inForce, wanted []rule) bool {
	for _, w := range wanted {
		found := false
		for _, r := range inForce {
			found = found || (w.Peer == nil || fmt.Sprint(w.Peer) == fmt.Sprint(r.Peer)) &&
				(w.Direction == "" || w.Direction == r.Direction) && w.Cut == r.Cut && w.Disk == r.Disk &&
				sameDuration(w.Delay, r.Delay) && sameDuration(w.Clock, r.Clock)
		}
		if !found {
			return false
		}
	}
	return len(inForce) == len(wanted)
}

func sameDuration(a, b string) bool {
	x, errX := time.ParseDuration(a)
	y, errY := time.ParseDuration(b)
	return errX == nil && errY == nil && x == y || a == b
}

// clearFaults removes the node's faults.
func (a admin) clearFaults(ctx context.Context) error {
	if _, err := a.do(ctx, adminTimeout, http.MethodDelete, "/admin/faults", nil); err != nil {
		return fmt.Errorf("clear faults: %w", err)
	}
	return nil
}

// metric sums the samples of a metric whose labels contain all of the given ones, each spelled name="value".
func (a admin) metric(ctx context.Context, name string, labels ...string) (float64, error) {
	raw, err := a.do(ctx, adminTimeout, http.MethodGet, "/metrics", nil)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	return sumMetric(string(raw), name, labels...)
}

// errNoMetric is returned when a node has no such metric: then nothing can be proven by it.
var errNoMetric = errors.New("the node has no such metric")

func sumMetric(text, name string, labels ...string) (float64, error) {
	sum, found := 0.0, false
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		matches := true
		for _, label := range labels {
			matches = matches && strings.Contains(rest, label)
		}
		if !matches {
			continue
		}
		fields := strings.Fields(rest[strings.LastIndexByte(rest, '}')+1:])
		if len(fields) == 0 {
			return 0, fmt.Errorf("malformed metric %q", strings.TrimSpace(line))
		}
		value, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, fmt.Errorf("malformed metric %q: %w", strings.TrimSpace(line), err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("%w: %s %v", errNoMetric, name, labels)
	}
	return sum, nil
}

// status is as much of /admin/status as a run needs.
type status struct {
	Node   string    `json:"node"`
	NodeID kv.NodeID `json:"node_id"`
	Quorum struct {
		N int `json:"n"`
		R int `json:"r"`
		W int `json:"w"`
	} `json:"quorum"`
	Nodes []struct {
		Name string `json:"name"`
		GRPC string `json:"grpc"`
	} `json:"nodes"`
}

func (a admin) status(ctx context.Context) (status, error) {
	var s status
	err := a.get(ctx, "/admin/status", &s)
	return s, err
}

// partition is as much of an element of /admin/partitions as a run needs.
type partition struct {
	Partition int    `json:"partition"`
	Leader    string `json:"leader"`
	Term      uint64 `json:"term"`
}

func (a admin) partitions(ctx context.Context) ([]partition, error) {
	var doc struct {
		Partitions []partition `json:"partitions"`
	}
	err := a.get(ctx, "/admin/partitions", &doc)
	return doc.Partitions, err
}

// policies returns the prefixes that have one.
func (a admin) policies(ctx context.Context) ([]string, error) {
	var doc struct {
		Policies []struct {
			Prefix string `json:"prefix"`
		} `json:"policies"`
	}
	err := a.get(ctx, "/admin/policies", &doc)
	prefixes := make([]string, 0, len(doc.Policies))
	for _, p := range doc.Policies {
		prefixes = append(prefixes, p.Prefix)
	}
	return prefixes, err
}

func policyPath(prefix []byte) string { return "/admin/policies/" + url.PathEscape(string(prefix)) }

func (a admin) putPolicy(ctx context.Context, p kv.Policy) error {
	body, err := json.Marshal(map[string]string{"default": p.Default.String(), "resolver": p.Resolver})
	if err != nil {
		return err
	}
	_, err = a.do(ctx, adminTimeout, http.MethodPut, policyPath(p.Prefix), body)
	return err
}

func (a admin) deletePolicy(ctx context.Context, prefix []byte) error {
	_, err := a.do(ctx, adminTimeout, http.MethodDelete, policyPath(prefix), nil)
	return err
}

// probePrefix begins the keys of writes that only find out what a fault does.
const probePrefix = "verify-probe/"

// probeKeys is how many keys are tried to meet one that a node replicates itself.
const probeKeys = 16

// probed is what a node answered to a probe.
type probed struct {
	stamp       time.Time
	coordinator string
}

// probe writes a key that belongs to no history. query chooses level and quorum. A node that holds no replica of the key has
// another one coordinate the write, so that what concerns the node's own clock or disk takes some keys to be seen.
func (a admin) probe(ctx context.Context, key, query string) (probed, error) {
	raw, header, err := a.exchange(ctx, adminTimeout, http.MethodPut, "/kv/"+probePrefix+url.PathEscape(key)+"?"+query, []byte(`{"value":"probe"}`))
	if err != nil {
		return probed{}, err
	}
	var answer struct {
		Timestamp time.Time `json:"timestamp"`
	}
	err = json.Unmarshal(raw, &answer)
	return probed{stamp: answer.Timestamp, coordinator: header.Get("Caprock-Coordinator")}, err
}

// await asks again until check succeeds, and returns the last error when ctx or the limit ends first.
func await(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		// What the end of the wait itself did to the last question says nothing.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if !pause(ctx, pollEvery) {
			return last
		}
	}
}

// pause waits and reports whether it was not interrupted.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
