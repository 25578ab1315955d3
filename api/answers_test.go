package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// header returns a header as a client sees it, whatever case the front spells it in.
func header(h http.Header, name string) string {
	for spelled, values := range h {
		if strings.EqualFold(spelled, name) {
			return strings.Join(values, "|")
		}
	}
	return ""
}

func TestStrongPutAnswersAsDocumented(t *testing.T) {
	node := newFakeNode()
	w := call(t, newTestHandler(t, node), "PUT", "/kv/account:balance?consistency=strong", `{"value":"1000.00"}`, jsonType, "X-Request-Id: abc-1")
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, `{"key":"account:balance","version":41,"context":"AQL_","timestamp":"2026-03-04T05:06:07.089Z",
		"consistency":"strong","acks":2,"outcome":"applied"}`, w.Body.String())
	require.Equal(t, contentJSON, w.Header().Get("Content-Type"))
	require.Equal(t, "1000.00", string(node.requests[0].Value))
	for name, value := range map[string]string{
		"ETag": `"41"`, "Caprock-Version": "41", "Caprock-Context": "AQL_", "Caprock-Consistency": "strong",
		"Caprock-Coordinator": "n1", "Caprock-Replicas": "n1,n3", "X-Request-Id": "abc-1",
	} {
		require.Equal(t, value, header(w.Header(), name), name)
	}
}

func TestEventualPutHasVersionZeroAndAnOpaqueTag(t *testing.T) {
	w := call(t, newTestHandler(t, newFakeNode()), "PUT", "/kv/a?consistency=eventual&n=3&w=2&timeout=500ms", `{"value":"1"}`, formType)
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, `{"key":"a","version":0,"context":"AQL_","timestamp":"2026-03-04T05:06:07.089Z",
		"consistency":"eventual","acks":2,"outcome":"applied"}`, w.Body.String())
	require.Equal(t, "0", header(w.Header(), "Caprock-Version"))
	require.Regexp(t, `^"e-[0-9a-f]+"$`, header(w.Header(), "ETag"))
}

func TestGetAnswersAsDocumented(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	require.Equal(t, 200, call(t, h, "PUT", "/kv/a", "text \"quoted\"\n\x01é", rawType).Code)
	w := call(t, h, "GET", "/kv/a", "")
	require.Equal(t, 200, w.Code)
	require.Equal(t, `{"key":"a","value":"text \"quoted\"\n\u0001é","version":41,"context":"AQL_",`+
		`"timestamp":"2026-03-04T05:06:07.089Z","consistency":"strong","found":true,"settled":true}`+"\n", w.Body.String())
	require.Equal(t, `"41"`, header(w.Header(), "ETag"))
	require.Equal(t, "2026-03-04T05:06:07.089Z", header(w.Header(), "Caprock-Timestamp"))
	require.Equal(t, "true", header(w.Header(), "Caprock-Settled"))

	require.Equal(t, 200, call(t, h, "PUT", "/kv/%FF%00?consistency=eventual", "\x00\xff", rawType).Code)
	w = call(t, h, "GET", "/kv/%FF%00?consistency=eventual&r=1", "")
	require.JSONEq(t, `{"key":"/wA=","key_encoding":"base64","value":"AP8=","encoding":"base64","version":0,"context":"AQL_",
		"timestamp":"2026-03-04T05:06:07.089Z","consistency":"eventual","found":true,"settled":false}`, w.Body.String())
	require.Equal(t, "false", header(w.Header(), "Caprock-Settled"))
}

func TestAbsentKeyIsAProblemWithTheContextOfItsTombstone(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	require.Equal(t, 200, call(t, h, "PUT", "/kv/a", "v").Code)
	w := call(t, h, "DELETE", "/kv/a", "")
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, `{"key":"a","version":42,"context":"AQL_","timestamp":"2026-03-04T05:06:07.089Z",
		"consistency":"strong","acks":2,"outcome":"applied","found":true}`, w.Body.String())
	w = call(t, h, "DELETE", "/kv/a", "")
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), `"found":false`)

	for _, accept := range []string{"Accept: application/json", "Accept: application/octet-stream"} {
		w = call(t, h, "GET", "/kv/a", "", accept)
		require.Equal(t, 404, w.Code)
		doc := problemOf(t, w)
		require.Equal(t, "KEY_NOT_FOUND", doc["code"])
		require.Equal(t, false, doc["found"])
		require.Equal(t, "AQL_", header(w.Header(), "Caprock-Context"))
		require.Equal(t, "strong", header(w.Header(), "Caprock-Consistency"))
		require.Empty(t, header(w.Header(), "ETag"))
	}
	head := call(t, h, "HEAD", "/kv/a", "")
	require.Equal(t, 404, head.Code)
	require.Empty(t, head.Body.String())
}

func TestHeadHasTheHeadersOfGetAndNoBody(t *testing.T) {
	h := newTestHandler(t, newFakeNode())
	call(t, h, "PUT", "/kv/a", "value")
	for _, accept := range []string{"", "Accept: application/octet-stream"} {
		get, head := call(t, h, "GET", "/kv/a", "", accept, "X-Request-Id: x"), call(t, h, "HEAD", "/kv/a", "", accept, "X-Request-Id: x")
		require.Equal(t, get.Code, head.Code)
		require.Equal(t, get.Header(), head.Header())
		require.NotEmpty(t, header(head.Header(), "Content-Length"))
		require.Empty(t, head.Body.String())
	}
}

func TestRawModeGivesTheBytesAndTheFactsInHeaders(t *testing.T) {
	h := newTestHandler(t, newFakeNode())
	call(t, h, "PUT", "/kv/a", "\x00\xffbytes", rawType)
	for accept, raw := range map[string]bool{
		"":                              false,
		"*/*":                           false,
		"text/html, */*;q=0.8":          false,
		"application/json, */*":         false,
		"application/octet-stream":      true,
		"Application/Octet-Stream":      true,
		"application/octet-stream, */*": true,
		"text/plain,application/octet-stream;q=0.5":             true,
		"application/octet-stream;q=0":                          false,
		"application/octet-stream;q=x":                          false,
		"application/json, application/octet-stream":            false,
		"application/octet-stream, application/json":            true,
		"application/json;q=0.1, application/octet-stream;q=.2": true,
	} {
		w := call(t, h, "GET", "/kv/a", "", "Accept: "+accept)
		require.Equal(t, 200, w.Code)
		require.Equal(t, raw, w.Header().Get("Content-Type") == contentRaw, accept)
		require.Equal(t, raw, w.Body.String() == "\x00\xffbytes", accept)
		require.Equal(t, "41", header(w.Header(), "Caprock-Version"))
		require.Equal(t, "Accept", header(w.Header(), "Vary"))
	}
}

func siblings() kv.Response {
	return kv.Response{
		Found: true, Context: []byte{9}, Timestamp: fakeTime, Value: []byte("two"), Siblings: []kv.Sibling{
			{Value: []byte("one"), Timestamp: fakeTime, Node: 1},
			{Value: []byte{0xFF}, Timestamp: fakeTime, Node: 2},
			{Deleted: true, Timestamp: fakeTime, Node: 3},
		},
	}
}

func TestSiblingsAnswerThreeHundred(t *testing.T) {
	node := newFakeNode()
	node.values["s"] = siblings()
	h := newTestHandler(t, node)
	for _, query := range []string{"", "&siblings=all"} {
		w := call(t, h, "GET", "/kv/s?consistency=eventual"+query, "", "Accept: application/octet-stream")
		require.Equal(t, 300, w.Code)
		require.JSONEq(t, `{"key":"s","context":"CQ","siblings":[
			{"value":"one","timestamp":"2026-03-04T05:06:07.089Z","node":"n1"},
			{"value":"/w==","encoding":"base64","timestamp":"2026-03-04T05:06:07.089Z","node":"n2"},
			{"value":null,"timestamp":"2026-03-04T05:06:07.089Z","node":"n3","deleted":true}]}`, w.Body.String())
		require.Equal(t, "CQ", header(w.Header(), "Caprock-Context"))
	}
	w := call(t, h, "GET", "/kv/s?consistency=eventual&siblings=resolve", "")
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, `{"key":"s","value":"two","version":0,"context":"CQ","timestamp":"2026-03-04T05:06:07.089Z",
		"consistency":"eventual","found":true,"settled":false,"siblings":3}`, w.Body.String())
	require.Equal(t, "3", header(w.Header(), "Caprock-Siblings"))
}

func TestEntityTagsMakeReadsConditional(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	call(t, h, "PUT", "/kv/strong", "v")
	call(t, h, "PUT", "/kv/weak?consistency=eventual", "v")
	for _, key := range []string{"strong", "weak"} {
		tag := header(call(t, h, "GET", "/kv/"+key, "").Header(), "ETag")
		for _, list := range []string{tag, "*", `"other", ` + tag, "W/" + tag} {
			w := call(t, h, "GET", "/kv/"+key, "", "If-None-Match: "+list)
			require.Equal(t, 304, w.Code, list)
			require.Equal(t, tag, header(w.Header(), "ETag"))
			require.Empty(t, w.Body.String())
			require.Empty(t, header(w.Header(), "Content-Length"))
			require.Equal(t, 200, call(t, h, "GET", "/kv/"+key, "", "If-Match: "+list).Code, list)
		}
		require.Equal(t, 200, call(t, h, "GET", "/kv/"+key, "", `If-None-Match: "7"`).Code)
		w := call(t, h, "GET", "/kv/"+key, "", `If-Match: "7"`)
		require.Equal(t, 412, w.Code)
		require.Equal(t, "VERSION_MISMATCH", problemOf(t, w)["code"])
	}
	require.Equal(t, 404, call(t, h, "GET", "/kv/absent", "", "If-None-Match: *").Code)
}

func TestOpaqueTagsTellVersionsApart(t *testing.T) {
	base := kv.Response{Found: true, Context: []byte{1}, Value: []byte("a"), Timestamp: fakeTime}
	other := base
	other.Context = []byte{2}
	later := base
	later.Timestamp = fakeTime.Add(time.Millisecond)
	changed := base
	changed.Value = []byte("b")
	unsettled := base
	unsettled.Version = 41
	seen := map[string]bool{}
	for _, resp := range []kv.Response{base, other, later, changed, unsettled} {
		seen[tagOf(&resp)] = true
	}
	require.Len(t, seen, 5)
	settled := unsettled
	settled.Settled = true
	require.Equal(t, `"41"`, tagOf(&settled))
	require.NotContains(t, seen, `"41"`, "an unsettled value must not pass for the strong version")
}

func TestConditionsReachTheNode(t *testing.T) {
	tests := []struct {
		query   string
		headers []string
		want    kv.Condition
	}{
		{"", nil, kv.Condition{}},
		{"?if-version=0", nil, kv.Condition{Kind: kv.ConditionVersion}},
		{"?if-version=18446744073709551615", nil, kv.Condition{Kind: kv.ConditionVersion, Version: 1<<64 - 1}},
		{"", []string{"If-None-Match: *"}, kv.Condition{Kind: kv.ConditionVersion}},
		{"", []string{"If-Match: *"}, kv.Condition{Kind: kv.ConditionExists}},
		{"", []string{`If-Match: "41"`}, kv.Condition{Kind: kv.ConditionVersion, Version: 41}},
	}
	for _, test := range tests {
		for _, method := range []string{"PUT", "DELETE"} {
			node := newFakeNode()
			call(t, newTestHandler(t, node), method, "/kv/a"+test.query, "v", test.headers...)
			require.Len(t, node.requests, 1)
			require.Equal(t, test.want, node.requests[0].Condition)
		}
	}
}

func TestParametersReachTheNode(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	call(t, h, "GET", "/kv/a?consistency=eventual&n=3&r=2&siblings=resolve&timeout=2s", "")
	call(t, h, "PUT", "/kv/a?&context=AQL_&w=1&&consistency=eventual", "v", rawType)
	call(t, h, "PUT", "/kv/a", "v", "Caprock-Context: AQI=", rawType)
	require.Equal(t, kv.Request{
		Op: kv.OpGet, Level: kv.LevelEventual, Quorum: kv.Quorum{N: 3, R: 2}, Siblings: kv.SiblingsResolve, Key: []byte("a"),
	}, node.requests[0])
	require.Equal(t, kv.Request{
		Op: kv.OpPut, Level: kv.LevelEventual, Quorum: kv.Quorum{W: 1}, Key: []byte("a"), Value: []byte("v"), Context: []byte{1, 2, 0xFF},
	}, node.requests[1])
	require.Equal(t, []byte{1, 2}, node.requests[2].Context)
	require.Equal(t, kv.LevelUnset, node.requests[2].Level, "the node decides the level that a request leaves open")
}

func TestRequestIDs(t *testing.T) {
	h := newTestHandler(t, newFakeNode())
	first, second := call(t, h, "GET", "/kv/a", ""), call(t, h, "GET", "/livez", "")
	require.NotEmpty(t, first.Header().Get("X-Request-Id"))
	require.NotEqual(t, first.Header().Get("X-Request-Id"), second.Header().Get("X-Request-Id"))
	for _, given := range []string{"", "with space", "ünicode", strings.Repeat("x", requestIDBytesMax+1)} {
		require.NotEqual(t, given, call(t, h, "GET", "/livez", "", "X-Request-Id: "+given).Header().Get("X-Request-Id"))
	}
	require.Equal(t, "trace-7", call(t, h, "GET", "/nope", "", "X-Request-Id: trace-7").Header().Get("X-Request-Id"))
}
