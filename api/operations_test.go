package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestIdempotencyKeyNamesTheWrite(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	key := "order 17/" + strings.Repeat("x", 246)
	require.Equal(t, 200, call(t, h, "PUT", "/kv/a", "v", "Idempotency-Key: "+key).Code)
	require.Equal(t, kv.OpID{Session: []byte(key), Required: true}, node.requests[0].ID)
	require.Equal(t, 200, call(t, h, "DELETE", "/kv/a?consistency=strong", "", "Idempotency-Key: k").Code)
	require.Equal(t, 200, call(t, h, "PUT", "/kv/a", "v").Code)
	require.True(t, node.requests[2].ID.IsZero())
}

func TestTTLIsADurationOrSeconds(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	for i, test := range []struct {
		text string
		want time.Duration
	}{{"90", 90 * time.Second}, {"1m30s", 90 * time.Second}, {"1.5s", 1500 * time.Millisecond}, {"315360000", kv.TTLMax}} {
		require.Equal(t, 200, call(t, h, "PUT", "/kv/a?ttl="+test.text, "v").Code, test.text)
		require.Equal(t, test.want, node.requests[i].TTL)
	}
}

func TestOperationAnswersAsDocumented(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	node.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		require.Equal(t, kv.OpInquire, r.Op)
		require.Equal(t, kv.LevelStrong, r.Level)
		require.Equal(t, "a b", string(r.Key))
		if string(r.ID.Session) != "x/y" {
			return kv.Response{}, kv.Errorf(kv.CodeOperationNotFound, "unknown").WithOutcome(kv.OutcomeUnknown)
		}
		return kv.Response{Found: true, Version: 58, Outcome: kv.OutcomeApplied, Level: kv.LevelStrong, Timestamp: fakeTime, Coordinator: 1}, nil
	}
	for _, target := range []string{"/ops/x/y?key=a%20b", "/ops/x%2Fy?key=a+b&timeout=1s"} {
		w := call(t, h, "GET", target, "")
		require.Equal(t, 200, w.Code, w.Body)
		require.JSONEq(t, `{"id":"x/y","key":"a b","outcome":"applied","version":58,"found":true,"timestamp":"2026-03-04T05:06:07.089Z"}`, w.Body.String())
		require.Equal(t, "strong", header(w.Header(), "Caprock-Consistency"))
	}
	w := call(t, h, "GET", "/ops/z?key=a%20b", "")
	require.Equal(t, 404, w.Code)
	doc := problemOf(t, w)
	require.Equal(t, "OPERATION_NOT_FOUND", doc["code"])
	require.Equal(t, "unknown", doc["outcome"])
}
