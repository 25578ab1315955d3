package api

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caprockdb/caprock/pkg/kv"
)

// instantNode answers at once, so that what is measured is the front.
type instantNode struct {
	*fakeNode
	resp kv.Response
}

func (n *instantNode) Execute(context.Context, *kv.Request) (kv.Response, error) { return n.resp, nil }

// sink is a ResponseWriter that keeps nothing.
type sink struct{ h http.Header }

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(int)             {}

// BenchmarkHandler measures what the front costs beyond net/http and the node.
func BenchmarkHandler(b *testing.B) {
	value := strings.Repeat("v", 100)
	node := &instantNode{newFakeNode(), kv.Response{
		Found: true, Settled: true, Level: kv.LevelStrong, Outcome: kv.OutcomeApplied, Acks: 2, Version: 12345, Value: []byte(value),
		Context: bytes.Repeat([]byte{7}, 40), Timestamp: fakeTime, Coordinator: 1, Replicas: []kv.NodeID{1, 3},
	}}
	h := newTestHandler(b, node)
	for _, bench := range []struct{ name, method, target, contentType, accept, body string }{
		{"get-json", "GET", "/kv/user:1234:profile?consistency=strong", "", "*/*", ""},
		{"get-raw", "GET", "/kv/user:1234:profile?consistency=strong", "", contentRaw, ""},
		{"put-json", "PUT", "/kv/user:1234:profile?consistency=eventual&w=2&timeout=2s", contentJSON, "*/*", `{"value":"` + value + `"}`},
		{"put-raw", "PUT", "/kv/user:1234:profile?consistency=strong", contentRaw, "*/*", value},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := httptest.NewRequest(bench.method, bench.target, nil)
			r.Header.Set("Accept", bench.accept)
			r.Header.Set("Content-Type", bench.contentType)
			r.ContentLength = int64(len(bench.body))
			body := strings.NewReader(bench.body)
			r.Body = io.NopCloser(body)
			w := &sink{make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(bench.body)
				clear(w.h)
				h.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkDecodeValue measures the body of a PUT with the largest value.
func BenchmarkDecodeValue(b *testing.B) {
	body := []byte(`{"value":"` + strings.Repeat("v", kv.ValueBytesMax) + `"}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := decodeValue(body); err != nil {
			b.Fatal(err)
		}
	}
}
