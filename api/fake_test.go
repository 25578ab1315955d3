package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// fakeNode is a Backend in memory. It validates as a node of a cluster with three replicas does, so that what the front
// leaves to the node is refused too, and it records what would have been written.
type fakeNode struct {
	mu       sync.Mutex
	values   map[string]kv.Response
	version  uint64
	writes   []string // keys, in order
	requests []kv.Request
	// execute, when set, takes the place of the store.
	execute  func(ctx context.Context, r *kv.Request) (kv.Response, error)
	unready  map[kv.Level]error
	policies map[string]kv.Policy
	// switches are those under way, the same for every prefix.
	switches []kv.LaneSwitch
	faults   FaultStore
	document func(name string) (any, error)
}

func newFakeNode() *fakeNode {
	return &fakeNode{values: map[string]kv.Response{}, unready: map[kv.Level]error{}, policies: map[string]kv.Policy{}, version: 40}
}

var fakeTime = time.Date(2026, 3, 4, 5, 6, 7, 89_000_000, time.UTC)

// executeEach runs the requests, those on one key in their order and all others at once.
func executeEach(ctx context.Context, rs []kv.Request, execute func(context.Context, *kv.Request) (kv.Response, error)) []kv.Answer {
	out := make([]kv.Answer, len(rs))
	byKey := map[string][]int{}
	for i := range rs {
		byKey[string(rs[i].Key)] = append(byKey[string(rs[i].Key)], i)
	}
	var wg sync.WaitGroup
	for _, indexes := range byKey {
		wg.Go(func() {
			for _, i := range indexes {
				var err error
				if out[i].Response, err = execute(ctx, &rs[i]); err != nil {
					out[i].Err = kv.AsError(err)
				}
			}
		})
	}
	wg.Wait()
	return out
}

func (f *fakeNode) ExecuteEach(ctx context.Context, rs []kv.Request) []kv.Answer {
	out := make([]kv.Answer, len(rs))
	for i := range rs {
		var err error
		if out[i].Response, err = f.Execute(ctx, &rs[i]); err != nil {
			out[i].Err = kv.AsError(err)
		}
	}
	return out
}

func (f *fakeNode) Execute(ctx context.Context, r *kv.Request) (kv.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, *r)
	if f.execute != nil {
		return f.execute(ctx, r)
	}
	if r.Level == kv.LevelUnset {
		r.Level = kv.LevelStrong
	}
	if err := r.Validate(kv.DefaultLimits()); err != nil {
		return kv.Response{}, err
	}
	if _, err := r.Quorum.Resolve(kv.Quorum{N: 3, R: 2, W: 2}, 3); err != nil {
		return kv.Response{}, err
	}
	switch r.Op {
	case kv.OpList:
		return f.list(r), nil
	case kv.OpInquire, kv.OpBatch:
		return kv.Response{Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Items: make([]kv.ItemResult, len(r.Items))}, nil
	}
	held := f.values[string(r.Key)]
	held.Level, held.Coordinator, held.Replicas = r.Level, 1, []kv.NodeID{1, 3}
	if r.Op == kv.OpGet {
		if len(held.Siblings) > 0 && r.Siblings == kv.SiblingsError {
			return kv.Response{}, kv.Errorf(kv.CodeSiblings, "the key has %d concurrent versions", len(held.Siblings))
		}
		if len(held.Siblings) > 0 && r.Siblings == kv.SiblingsResolve {
			held.Concurrent, held.Siblings = len(held.Siblings), nil
		}
		return held, nil
	}
	if err := checkCondition(r.Condition, &held); err != nil {
		return kv.Response{}, err
	}
	f.writes = append(f.writes, string(r.Key))
	resp := kv.Response{
		Found: held.Found, Level: r.Level, Outcome: kv.OutcomeApplied, Acks: 2, Context: []byte{1, 2, 0xFF},
		Timestamp: fakeTime, Coordinator: 1, Replicas: []kv.NodeID{1, 3},
	}
	if r.Level == kv.LevelStrong {
		f.version++
		resp.Version = f.version
	}
	stored := resp
	stored.Value, stored.Found, stored.Settled, stored.Outcome = bytes.Clone(r.Value), r.Op == kv.OpPut, r.Level == kv.LevelStrong, 0
	switch {
	case r.TTL == kv.TTLKeep:
		stored.Expires = held.Expires
	case r.TTL > 0:
		stored.Expires = fakeTime.Add(r.TTL)
	}
	if r.Op == kv.OpDelete {
		stored = kv.Response{Context: resp.Context}
	}
	f.values[string(r.Key)] = stored
	return resp, nil
}

func (f *fakeNode) list(r *kv.Request) kv.Response {
	res := kv.Response{Found: true, Level: kv.LevelStrong}
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		if !f.values[key].Found || !strings.HasPrefix(key, string(r.List.Prefix)) || key <= string(r.List.After) {
			continue
		}
		if len(res.Listed) == r.List.Limit {
			res.More = true
			break
		}
		res.Listed = append(res.Listed, kv.ListItem{Key: []byte(key)})
	}
	return res
}

func checkCondition(c kv.Condition, held *kv.Response) error {
	current := uint64(0)
	if held.Found {
		current = held.Version
	}
	if c.Kind == kv.ConditionVersion && c.Version != current || c.Kind == kv.ConditionExists && !held.Found {
		err := kv.Errorf(kv.CodeVersionMismatch, "the current version is %d", current)
		err.CurrentVersion = current
		return err
	}
	return nil
}

func (f *fakeNode) NodeName(id kv.NodeID) string {
	return map[kv.NodeID]string{1: "n1", 2: "n2", 3: "n3"}[id]
}
func (f *fakeNode) Self() string { return "n1" }

func (f *fakeNode) PartitionCount() int { return 16 }

func (f *fakeNode) Ready(level kv.Level) error {
	if level != kv.LevelUnset {
		return f.unready[level]
	}
	for l := kv.LevelStrong; l <= kv.LevelLocal; l++ {
		if err := f.unready[l]; err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeNode) Document(_ context.Context, name string) (any, error) {
	if f.document != nil {
		return f.document(name)
	}
	return map[string]string{"document": name}, nil
}

func (f *fakeNode) Policies() PolicyStore { return fakePolicies{f} }
func (f *fakeNode) Faults() FaultStore    { return f.faults }

type fakePolicies struct{ *fakeNode }

func (f fakePolicies) List(context.Context) ([]kv.Policy, error) {
	var all []kv.Policy
	for _, p := range f.policies {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b kv.Policy) int { return bytes.Compare(a.Prefix, b.Prefix) })
	return all, nil
}

func (f fakePolicies) Get(_ context.Context, prefix []byte) (kv.Policy, bool, error) {
	p, ok := f.policies[string(prefix)]
	return p, ok, nil
}

func (f fakePolicies) Switches(context.Context, []byte) []kv.LaneSwitch { return f.switches }

func (f fakePolicies) Put(_ context.Context, p kv.Policy) (kv.Policy, error) {
	f.policies[string(p.Prefix)] = p
	f.writes = append(f.writes, string(p.Prefix))
	return p, nil
}

func (f fakePolicies) Delete(_ context.Context, prefix []byte) error {
	delete(f.policies, string(prefix))
	return nil
}

type fakeFaults struct{ rules json.RawMessage }

func (f *fakeFaults) Rules() json.RawMessage { return f.rules }
func (f *fakeFaults) Clear()                 { f.rules = json.RawMessage("[]") }
func (f *fakeFaults) Set(rules json.RawMessage) error {
	if rules[0] != '[' {
		return errors.New("the rules are a list")
	}
	f.rules = rules
	return nil
}

func testDeps(node Backend) Deps {
	reg := prometheus.NewRegistry()
	return Deps{
		Backend: node, Logger: slog.New(slog.DiscardHandler), Registerer: reg, Gatherer: reg,
		WallNow: func() time.Time { return fakeTime },
	}
}

func newTestHandler(tb testing.TB, node Backend) http.Handler {
	tb.Helper()
	h, err := NewHandler(DefaultConfig(), testDeps(node))
	require.NoError(tb, err)
	return h
}

// call sends a request through the handler. Headers are given as "Name: value".
func call(tb testing.TB, h http.Handler, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	tb.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// problemOf decodes a problem document and checks what every one of them has.
func problemOf(tb testing.TB, w *httptest.ResponseRecorder) map[string]any {
	tb.Helper()
	require.Equal(tb, contentProblem, w.Header().Get("Content-Type"), "body: %s", w.Body)
	var doc map[string]any
	require.NoError(tb, json.Unmarshal(w.Body.Bytes(), &doc))
	require.EqualValues(tb, w.Code, doc["status"])
	require.Equal(tb, w.Header().Get("X-Request-Id"), doc["request_id"])
	for _, member := range []string{"type", "title", "code", "detail", "outcome"} {
		require.NotEmpty(tb, doc[member], "member %s", member)
	}
	require.Contains(tb, doc, "retryable")
	return doc
}
