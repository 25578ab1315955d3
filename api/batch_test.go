package api

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestBatchAnswersEachOperationAsAlone(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	w := call(t, h, "POST", "/batch", `{"operations":[
		{"type":"PUT","key":"a","value":"1"}, {"type":"PUT","key":"/wA=","key_encoding":"base64","value":"AP8=","encoding":"base64"},
		{"type":"GET","key":"a"}, {"type":"GET","key":"absent"}, {"type":"DELETE","key":"a","if_version":9}]}`)
	require.Equal(t, 207, w.Code, w.Body)
	require.Contains(t, w.Body.String(), `"request_id"`)
	require.Equal(t, "\xff\x00", string(node.requests[indexOf(node, "\xff\x00")].Key))
	require.Equal(t, "\x00\xff", string(node.requests[indexOf(node, "\xff\x00")].Value))
	body := w.Body.String()
	for _, part := range []string{
		`{"results":[{"status":200,"key":"a","version":4`, `{"status":200,"key":"/wA=","key_encoding":"base64","version":4`,
		`{"status":200,"key":"a","value":"1","version":4`, `"status":404,"code":"KEY_NOT_FOUND"`, `"status":412,"code":"VERSION_MISMATCH"`, `"key":"absent"`,
	} {
		require.Contains(t, body, part)
	}
	// What is done with one key is done in order.
	w = call(t, h, "POST", "/batch?consistency=eventual&atomic=false", `{"operations":[{"type":"PUT","key":"k","value":"1"},{"type":"PUT","key":"k","value":"2"},{"type":"GET","key":"k"}]}`)
	require.Equal(t, 200, w.Code, w.Body)
	require.Contains(t, w.Body.String(), `"value":"2"`)
	require.Contains(t, w.Body.String(), `"consistency":"eventual"`)
}

func indexOf(node *fakeNode, key string) int {
	for i, r := range node.requests {
		if string(r.Key) == key {
			return i
		}
	}
	return -1
}

func TestAtomicBatchIsOneRequest(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	node.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		return kv.Response{
			Level: kv.LevelStrong, Version: 7, Outcome: kv.OutcomeApplied, Acks: 2, Timestamp: fakeTime, Items: []kv.ItemResult{{}, {Found: true}},
		}, r.Validate(kv.DefaultLimits())
	}
	w := call(t, h, "POST", "/batch?atomic=true", `{"operations":[{"type":"PUT","key":"{t}a","value":"1","if_version":0,"ttl":"1m"},{"type":"DELETE","key":"{t}b"}]}`,
		"Idempotency-Key: once")
	require.Equal(t, 200, w.Code, w.Body)
	require.JSONEq(t, `{"results":[
		{"status":200,"key":"{t}a","version":7,"context":"","timestamp":"2026-03-04T05:06:07.089Z","consistency":"strong","acks":2,"outcome":"applied"},
		{"status":200,"key":"{t}b","version":7,"context":"","timestamp":"2026-03-04T05:06:07.089Z","consistency":"strong","acks":2,"outcome":"applied","found":true}
	]}`, w.Body.String())
	require.Len(t, node.requests, 1)
	r := node.requests[0]
	require.Equal(t, kv.OpBatch, r.Op)
	require.Equal(t, "{t}a", string(r.Key))
	require.Equal(t, "once", string(r.ID.Session))
	require.Equal(t, kv.BatchItem{
		Op: kv.OpPut, Key: []byte("{t}a"), Value: []byte("1"), Condition: kv.Condition{Kind: kv.ConditionVersion}, TTL: time.Minute,
	}, r.Items[0])
}

func TestBadBatchesAreRefusedAndWriteNothing(t *testing.T) {
	const put = `{"type":"PUT","key":"a","value":"1"}`
	wrap := func(operations string) string { return `{"operations":[` + operations + `]}` }
	big := strings.Repeat("v", kv.ValueBytesMax)
	var large []string
	for i := range 5 {
		large = append(large, fmt.Sprintf(`{"type":"PUT","key":"k%d","value":"%s"}`, i, big))
	}
	for name, test := range map[string]struct {
		target, body string
		code         kv.Code
		detail       string
	}{
		"nothing":                {"/batch", ``, kv.CodeBadRequest, "malformed"},
		"another member":         {"/batch", `{"ops":[]}`, kv.CodeBadRequest, "operations"},
		"no operations":          {"/batch", wrap(``), kv.CodeBadRequest, "0 operations"},
		"too many":               {"/batch", wrap(strings.TrimSuffix(strings.Repeat(put+",", 1001), ",")), kv.CodeBadRequest, "1000"},
		"too large":              {"/batch", wrap(strings.Join(large, ",")), kv.CodeValueTooLarge, "limit"},
		"too large to be atomic": {"/batch?atomic=true", wrap(strings.Join(large, ",")), kv.CodeValueTooLarge, "limit"},
		"trailing":               {"/batch", wrap(put) + "x", kv.CodeBadRequest, "malformed"},
		"truncated":              {"/batch", `{"operations":[` + put, kv.CodeBadRequest, "malformed"},
		"a trailing comma":       {"/batch", wrap(put + ","), kv.CodeBadRequest, "operation 1"},
		"an unknown type":        {"/batch", wrap(`{"type":"put","key":"a","value":"1"}`), kv.CodeBadRequest, `"PUT"`},
		"no key":                 {"/batch", wrap(`{"type":"GET"}`), kv.CodeBadRequest, `"key"`},
		"no value":               {"/batch", wrap(`{"type":"PUT","key":"a"}`), kv.CodeBadRequest, `"value"`},
		"a value to delete":      {"/batch", wrap(`{"type":"DELETE","key":"a","value":""}`), kv.CodeBadRequest, `"value"`},
		"an unknown field":       {"/batch", wrap(`{"type":"GET","key":"a","keys":"b"}`), kv.CodeBadRequest, `"keys"`},
		"a field twice":          {"/batch", wrap(`{"type":"GET","key":"a","key":"b"}`), kv.CodeBadRequest, "more than once"},
		"a key that is a number": {"/batch", wrap(`{"type":"GET","key":1}`), kv.CodeBadRequest, "string"},
		"a version with a sign":  {"/batch", wrap(`{"type":"DELETE","key":"a","if_version":-1}`), kv.CodeBadRequest, "if_version"},
		"a version with a dot":   {"/batch", wrap(`{"type":"DELETE","key":"a","if_version":1.5}`), kv.CodeBadRequest, "if_version"},
		"a ttl that is none":     {"/batch", wrap(`{"type":"PUT","key":"a","value":"1","ttl":"0s"}`), kv.CodeBadRequest, "ttl"},
		"a delete with a ttl":    {"/batch", wrap(`{"type":"DELETE","key":"a","ttl":"5s"}`), kv.CodeBadRequest, "ttl"},
		"an empty key":           {"/batch?atomic=true", wrap(`{"type":"DELETE","key":""}`), kv.CodeBadRequest, "empty"},
		"atomic nonsense":        {"/batch?atomic=yes", wrap(put), kv.CodeBadRequest, "atomic"},
		"atomic at eventual":     {"/batch?atomic=true&consistency=eventual", wrap(put), kv.CodeBadRequest, "strong"},
		"an atomic read":         {"/batch?atomic=true", wrap(`{"type":"GET","key":"a"}`), kv.CodeBadRequest, "puts and deletes"},
		"a key twice":            {"/batch?atomic=true", wrap(put + "," + put), kv.CodeBadRequest, "twice"},
		"an unknown parameter":   {"/batch?atomc=true", wrap(put), kv.CodeBadRequest, `"atomic"`},
	} {
		t.Run(name, func(t *testing.T) {
			node := newFakeNode()
			w := call(t, newTestHandler(t, node), "POST", test.target, test.body)
			doc := problemOf(t, w)
			require.Equal(t, string(test.code), doc["code"], "detail: %s", doc["detail"])
			require.Contains(t, doc["detail"], test.detail)
			require.Empty(t, node.writes)
		})
	}
	node := newFakeNode()
	w := call(t, newTestHandler(t, node), "POST", "/batch", wrap(put), "Idempotency-Key: k")
	require.Equal(t, 400, w.Code)
	require.Empty(t, node.writes)
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add([]byte(`{"operations":[{"type":"PUT","key":"a","value":"1","if_version":3},{"type":"GET","key":"b"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		items, err := decodeBatch(body)
		if err == nil {
			require.LessOrEqual(t, len(items), kv.BatchItemsMax)
		}
	})
}
