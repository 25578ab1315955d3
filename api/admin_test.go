package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestOnePartitionIsADocument(t *testing.T) {
	node := newFakeNode()
	node.document = func(name string) (any, error) {
		if name == DocPartition+"/3" {
			return map[string]int{"partition": 3}, nil
		}
		return nil, nil
	}
	h := newTestHandler(t, node)
	w := call(t, h, "GET", "/admin/partitions/3", "")
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, `{"partition":3}`, w.Body.String())
	for _, target := range []string{"/admin/partitions/4", "/admin/partitions/-1", "/admin/partitions/x", "/admin/partitions/", "/admin/partitions/99999"} {
		w = call(t, h, "GET", target, "")
		require.Equal(t, 404, w.Code, target)
		require.Equal(t, "ROUTE_NOT_FOUND", problemOf(t, w)["code"], target)
	}
	require.Equal(t, 405, call(t, h, "PUT", "/admin/partitions/3", "").Code)
}

func TestHealthSaysWhatCanBeServedAndWhyNot(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	for _, target := range []string{"/livez", "/readyz", "/health", "/readyz?consistency=strong"} {
		w := call(t, h, "GET", target, "")
		require.Equal(t, 200, w.Code)
		require.JSONEq(t, `{"status":"ok","node":"n1"}`, w.Body.String())
	}
	verbose := `{"status":"ok","node":"n1","levels":{"strong":{"ready":true},"eventual":{"ready":true},"local":{"ready":true}}}`
	for _, query := range []string{"?verbose", "?verbose=true", "?verbose=1"} {
		require.JSONEq(t, verbose, call(t, h, "GET", "/readyz"+query, "").Body.String())
	}

	node.unready[kv.LevelStrong] = errors.New("partition 3 has no leader")
	require.Equal(t, 200, call(t, h, "GET", "/livez", "").Code)
	require.Equal(t, 200, call(t, h, "GET", "/readyz?consistency=local", "").Code)
	for _, target := range []string{"/readyz", "/readyz?consistency=strong"} {
		w := call(t, h, "GET", target, "")
		require.Equal(t, 503, w.Code)
		doc := problemOf(t, w)
		require.Equal(t, "NOT_READY", doc["code"])
		require.Equal(t, "partition 3 has no leader", doc["detail"])
		require.Equal(t, true, doc["retryable"])
		require.NotContains(t, doc, "levels")
	}
	doc := problemOf(t, call(t, h, "GET", "/readyz?verbose", ""))
	require.Equal(t, map[string]any{"ready": true}, doc["levels"].(map[string]any)["local"])
	w := call(t, h, "GET", "/health", "")
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), `"status":"degraded"`)
	require.Contains(t, w.Body.String(), `"why":"partition 3 has no leader"`)

	node.unready[kv.LevelStrong] = kv.Errorf(kv.CodeNoLeader, "no leader")
	require.Equal(t, "NO_LEADER", problemOf(t, call(t, h, "GET", "/readyz", ""))["code"])
	node.unready[kv.LevelEventual] = errors.New("no map")
	node.unready[kv.LevelLocal] = kv.Errorf(kv.CodeBadRequest, "no map")
	require.Equal(t, 503, call(t, h, "GET", "/health", "").Code)
	require.Equal(t, "NOT_READY", problemOf(t, call(t, h, "GET", "/readyz?consistency=local", ""))["code"])

	require.Equal(t, 400, call(t, h, "GET", "/readyz?consistency=never", "").Code)
	require.Equal(t, 400, call(t, h, "GET", "/readyz?level=strong", "").Code)
	require.Equal(t, 400, call(t, h, "GET", "/readyz?verbose=maybe", "").Code)
}

func TestDocumentsAreServed(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	for target, name := range map[string]string{
		"/admin/status": "status", "/admin/ring": "ring", "/admin/nodes": "nodes", "/admin/partitions": "partitions", "/api/stats": "stats",
	} {
		w := call(t, h, "GET", target, "")
		require.Equal(t, 200, w.Code)
		require.JSONEq(t, `{"document":"`+name+`"}`, w.Body.String())
	}
	node.document = func(string) (any, error) { return nil, kv.Errorf(kv.CodeNotReady, "no map yet") }
	require.Equal(t, "NOT_READY", problemOf(t, call(t, h, "GET", "/admin/ring", ""))["code"])
	node.document = func(string) (any, error) { return func() {}, nil }
	require.Equal(t, 500, call(t, h, "GET", "/admin/ring", "").Code)
}

func TestPolicies(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	require.JSONEq(t, `{"policies":[]}`, call(t, h, "GET", "/admin/policies", "").Body.String())

	whole := `{"prefix":"user:/","default":"eventual","lanes":"mixed","n":3,"r":2,"w":1,"resolver":"siblings","expr":null,"ttl":null,
		"durability":"sync","read_repair":"background","state":"active"}`
	w := call(t, h, "PUT", "/admin/policies/user:%2F", `{"default":"eventual","n":3,"r":2,"w":1,"resolver":"siblings","lanes":"mixed",
		"durability":"sync","read_repair":"background","ttl":null,"expr":null}`, jsonType)
	require.Equal(t, 200, w.Code, w.Body)
	require.JSONEq(t, whole, w.Body.String())
	require.Equal(t, kv.Policy{
		Prefix: []byte("user:/"), Default: kv.LevelEventual, Lanes: "mixed", Quorum: kv.Quorum{N: 3, R: 2, W: 1}, Resolver: "siblings", ReadRepair: "background",
		Durability: "sync",
	}, node.policies["user:/"])
	require.JSONEq(t, whole, call(t, h, "GET", "/admin/policies/user:/", "").Body.String())

	w = call(t, h, "PUT", "/admin/policies/%FF", `{}`, formType)
	require.JSONEq(t, `{"prefix":"/w==","prefix_encoding":"base64","default":null,"lanes":"mixed","n":null,"r":null,"w":null,
		"resolver":"lww","expr":null,"ttl":null,"durability":"sync","read_repair":"background","state":"active"}`, w.Body.String())
	var list struct{ Policies []map[string]any }
	for _, target := range []string{"/admin/policies", "/admin/policies/"} {
		require.NoError(t, json.Unmarshal(call(t, h, "GET", target, "").Body.Bytes(), &list))
		require.Len(t, list.Policies, 2)
	}

	w = call(t, h, "PUT", "/admin/policies/all", `{"resolver":"expr","expr":"a.value > b.value","ttl":"90s","read_repair":"off"}`, jsonType)
	require.JSONEq(t, `{"prefix":"all","default":null,"lanes":"mixed","n":null,"r":null,"w":null,"resolver":"expr","expr":"a.value > b.value",
		"ttl":"1m30s","durability":"sync","read_repair":"off","state":"active"}`, w.Body.String())

	require.JSONEq(t, `{"prefix":"user:/","found":true}`, call(t, h, "DELETE", "/admin/policies/user:/", "").Body.String())
	require.JSONEq(t, `{"prefix":"user:/","found":false}`, call(t, h, "DELETE", "/admin/policies/user:/", "").Body.String())
	w = call(t, h, "GET", "/admin/policies/user:/", "")
	require.Equal(t, 404, w.Code)
	require.Equal(t, "POLICY_NOT_FOUND", problemOf(t, w)["code"])
}

func TestBadPoliciesChangeNothing(t *testing.T) {
	for body, want := range map[string]struct {
		code   kv.Code
		detail string
	}{
		``:                         {kv.CodeBadRequest, "JSON object"},
		`null`:                     {kv.CodeBadRequest, "JSON object"},
		`[]`:                       {kv.CodeBadRequest, "JSON object"},
		`{"default":"eventual"} x`: {kv.CodeBadRequest, "JSON object"},
		`{"defualt":"eventual"}`:   {kv.CodeBadRequest, `"default"`},
		`{"Default":"eventual"}`:   {kv.CodeBadRequest, `"default"`},
		`{"default":"sometimes"}`:  {kv.CodeUnknownConsistency, "sometimes"},
		`{"default":3}`:            {kv.CodeBadRequest, "not a string"},
		`{"n":"3"}`:                {kv.CodeBadRequest, "not a number"},
		`{"n":1.5}`:                {kv.CodeBadRequest, "whole"},
		`{"n":0}`:                  {kv.CodeBadQuorum, "n=0"},
		`{"w":-1}`:                 {kv.CodeBadQuorum, "w=-1"},
		`{"n":2,"r":3}`:            {kv.CodeBadQuorum, "r=3"},
		`{"resolver":"new est"}`:   {kv.CodeBadRequest, "resolver"},
		`{"resolver":"expr"}`:      {kv.CodeBadRequest, "needs expr"},
		`{"lanes":"strong-only","default":"eventual"}`: {kv.CodeBadRequest, "refuses"},
		`{"lanes":"weak"}`:       {kv.CodeBadRequest, "weak"},
		`{"expr":"true"}`:        {kv.CodeBadRequest, "expr goes with"},
		`{"ttl":"soon"}`:         {kv.CodeBadRequest, "soon"},
		`{"ttl":5}`:              {kv.CodeBadRequest, "not a string"},
		`{"durability":"never"}`: {kv.CodeBadRequest, "unknown durability"},
		`{"durability":"async","resolver":"counter"}`: {kv.CodeBadRequest, "goes with the resolver lww"},
		`{"read_repair":"never"}`:                     {kv.CodeBadRequest, "never"},
		`{"state":"active"}`:                          {kv.CodeBadRequest, `unknown field "state"`},
		strings.Repeat(" ", 1<<20) + `{}`:             {kv.CodeValueTooLarge, "1048576"},
	} {
		node := newFakeNode()
		doc := problemOf(t, call(t, newTestHandler(t, node), "PUT", "/admin/policies/p", body, jsonType))
		require.Equal(t, string(want.code), doc["code"], body)
		require.Contains(t, doc["detail"], want.detail, body)
		require.Empty(t, node.policies)
	}
}

func TestFaultRoutesExistOnlyWithTheInjector(t *testing.T) {
	node := newFakeNode()
	node.faults = &fakeFaults{rules: json.RawMessage("[]")}
	h := newTestHandler(t, node)
	require.Equal(t, "[]\n", call(t, h, "GET", "/admin/faults", "").Body.String())
	require.Equal(t, "[{}]\n", call(t, h, "POST", "/admin/faults", "[{}]").Body.String())
	for _, body := range []string{"{}", "", "[", "x"} {
		w := call(t, h, "POST", "/admin/faults", body)
		require.Equal(t, 400, w.Code, body)
		require.Equal(t, "BAD_REQUEST", problemOf(t, w)["code"])
	}
	require.Equal(t, "[{}]\n", call(t, h, "GET", "/admin/faults", "").Body.String())
	require.Equal(t, "[]\n", call(t, h, "DELETE", "/admin/faults", "").Body.String())
	require.Equal(t, 405, call(t, h, "PUT", "/admin/faults", "[]").Code)
}

func TestCompatibilityRoutes(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	w := call(t, h, "POST", "/api/set", `{"key":"a b","value":"v"}`, formType)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "{\"success\":true}\n", w.Body.String())
	w = call(t, h, "GET", "/api/get?key=a+b", "")
	require.Equal(t, "{\"value\":\"v\",\"found\":true}\n", w.Body.String())
	require.Equal(t, "{\"success\":true}\n", call(t, h, "DELETE", "/api/delete?key=a%20b", "").Body.String())
	w = call(t, h, "GET", "/api/get?key=a+b", "")
	require.Equal(t, 404, w.Code)
	require.Equal(t, false, problemOf(t, w)["found"])
	for _, r := range node.requests {
		require.Equal(t, kv.LevelStrong, r.Level)
	}
}

func TestOperationsAreCounted(t *testing.T) {
	node := newFakeNode()
	deps := testDeps(node)
	h, err := NewHandler(DefaultConfig(), deps)
	require.NoError(t, err)
	_, err = NewRESP(DefaultRESPConfig(), deps)
	require.NoError(t, err, "the fronts of a node share their metrics")

	call(t, h, "PUT", "/kv/a", "v")
	call(t, h, "PUT", "/kv/a?consistency=eventual", "v")
	call(t, h, "GET", "/kv/a", "")
	call(t, h, "HEAD", "/kv/absent", "")
	call(t, h, "PUT", "/kv/a?if-version=7", "v")
	call(t, h, "PUT", "/kv/a?consistency=eventual&if-version=7", "v")
	call(t, h, "PUT", "/kv/a?nonsense=1", "v")
	call(t, h, "GET", "/kv?prefix=a", "")
	call(t, h, "GET", "/api/list?prefix=a", "")
	call(t, h, "GET", "/kv?limit=none", "")
	call(t, h, "POST", "/batch?atomic=true", `{"operations":[{"type":"PUT","key":"b","value":"1"}]}`)
	call(t, h, "POST", "/batch?atomic=true&consistency=eventual", `{"operations":[{"type":"PUT","key":"b","value":"1"}]}`)
	call(t, h, "POST", "/batch", `{"operations":[{"type":"PUT","key":"c","value":"1"},{"type":"GET","key":"nope"}]}`)
	call(t, h, "POST", "/batch", `{"operations":[]}`)
	call(t, h, "GET", "/ops/5?key=a", "")
	node.execute = func(context.Context, *kv.Request) (kv.Response, error) {
		return kv.Response{}, kv.Errorf(kv.CodeOperationNotFound, "x").WithOutcome(kv.OutcomeUnknown)
	}
	call(t, h, "GET", "/ops/6?key=a", "")
	for code, outcome := range map[kv.Code]kv.Outcome{
		kv.CodeDeadlineExceeded: kv.OutcomeUnknown, kv.CodeNoLeader: kv.OutcomeNotApplied, kv.CodeOverloaded: kv.OutcomeNotApplied,
	} {
		node.execute = func(context.Context, *kv.Request) (kv.Response, error) {
			return kv.Response{}, kv.Errorf(code, "x").WithOutcome(outcome)
		}
		call(t, h, "DELETE", "/kv/a?consistency=local", "")
	}
	counted := `
# HELP kvstore_operations_total Operations by the level achieved (asked for, where they failed), kind and result.
# TYPE kvstore_operations_total counter
`
	lines := map[string]int{
		"strong,put,ok": 2, "eventual,put,ok": 1, "strong,get,ok": 1, "strong,get,not_found": 2, "default,put,conflict": 1,
		"strong,list,ok": 2, "default,list,refused": 1, "strong,batch,ok": 1, "eventual,batch,refused": 1, "default,batch,refused": 1,
		"strong,inquire,ok": 1, "strong,inquire,not_found": 1,
		"eventual,put,refused": 1, "default,put,refused": 1, "local,delete,unknown": 1, "local,delete,error": 1, "local,delete,refused": 1,
	}
	for _, level := range []string{"default", "strong", "eventual", "local", "causal", "bounded"} {
		for _, op := range []string{"get", "put", "delete", "inquire", "batch", "list"} {
			for _, result := range resultNames {
				counted += fmt.Sprintf("kvstore_operations_total{consistency_level=%q,operation=%q,result=%q} %d\n",
					level, op, result, lines[level+","+op+","+result])
			}
		}
	}
	require.NoError(t, testutil.GatherAndCompare(deps.Gatherer, strings.NewReader(counted), metricOperations))

	w := call(t, h, "GET", "/metrics", "")
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), `kvstore_operation_duration_seconds_count{consistency_level="strong",operation="put"} 2`)
}
