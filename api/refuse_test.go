package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	jsonType = "Content-Type: application/json"
	formType = "Content-Type: application/x-www-form-urlencoded"
	rawType  = "Content-Type: application/octet-stream"
)

// refusal is a request that the contract answers with a 4xx before the node does anything.
type refusal struct {
	name, method, target, body string
	headers                    []string
	status                     int
	code                       kv.Code
	detail                     string // a part of it
}

// refusedValue is the body of a put that is refused for something else.
const refusedValue = `{"value":"1"}`

// Keys and paths.
func refusedKeys() []refusal {
	return []refusal{
		{"no key", "PUT", "/kv/", refusedValue, nil, 400, kv.CodeBadRequest, "empty"},
		{"no key on GET", "GET", "/kv/", "", nil, 400, kv.CodeBadRequest, "empty"},
		{"key too large", "PUT", "/kv/" + strings.Repeat("k", kv.KeyBytesMax+1), refusedValue, nil, 413, kv.CodeKeyTooLarge, "4097"},
		{"key too large on GET", "GET", "/kv/" + strings.Repeat("%00", kv.KeyBytesMax+1), "", nil, 413, kv.CodeKeyTooLarge, "4097"},
	}
}

// Routes and methods.
func refusedRoutes() []refusal {
	return []refusal{
		{"unknown route", "GET", "/nope", "", nil, 404, codeRouteNotFound, "/nope"},
		{"root", "GET", "/", "", nil, 404, codeRouteNotFound, ""},
		{"encoded route", "GET", "/kv%2Fa", "", nil, 404, codeRouteNotFound, ""},
		{"watch is later", "GET", "/watch?prefix=a", "", nil, 404, codeRouteNotFound, ""},
		{"POST to a key", "POST", "/kv/a", refusedValue, nil, 405, codeMethodNotAllowed, "POST"},
		{"PATCH to a key", "PATCH", "/kv/a", refusedValue, nil, 405, codeMethodNotAllowed, "PATCH"},
		{"OPTIONS of a key", "OPTIONS", "/kv/a", "", nil, 405, codeMethodNotAllowed, ""},
		{"POST to status", "POST", "/admin/status", "", nil, 405, codeMethodNotAllowed, ""},
		{"GET of set", "GET", "/api/set", "", nil, 405, codeMethodNotAllowed, ""},
		{"POST to policy", "POST", "/admin/policies/a", "{}", nil, 405, codeMethodNotAllowed, ""},
		{"faults without dev", "GET", "/admin/faults", "", nil, 404, codeRouteNotFound, ""},
		{"faults POST without dev", "POST", "/admin/faults", "[]", nil, 404, codeRouteNotFound, ""},
		{"faults PATCH without dev", "PATCH", "/admin/faults", "[]", nil, 404, codeRouteNotFound, ""},
	}
}

// Levels.
func refusedLevels() []refusal {
	return []refusal{
		{"unknown level", "PUT", "/kv/a?consistency=stronk", refusedValue, nil, 400, kv.CodeUnknownConsistency, "stronk"},
		{"unknown level on GET", "GET", "/kv/a?consistency=serial", "", nil, 400, kv.CodeUnknownConsistency, "causal"},
		{"session that is no token", "GET", "/kv/a?consistency=causal&session=*", "", nil, 400, kv.CodeBadRequest, "base64url"},
		{"session at eventual", "PUT", "/kv/a?consistency=eventual&session=new", refusedValue, nil, 400, kv.CodeBadRequest, "causal and strong"},
		{"session given twice", "GET", "/kv/a?consistency=causal&session=new", "", []string{"Caprock-Session: new"}, 400, kv.CodeBadRequest, "more than once"},
		{"bounded write", "PUT", "/kv/a?consistency=bounded", refusedValue, nil, 400, kv.CodeBadRequest, "reads"},
		{"max-staleness on a write", "PUT", "/kv/a?consistency=bounded&max-staleness=1s", refusedValue, nil, 400, kv.CodeBadRequest, "reads"},
		{"max-staleness=0", "GET", "/kv/a?consistency=bounded&max-staleness=0", "", nil, 400, kv.CodeBadRequest, "level strong"},
		{"max-staleness below zero", "GET", "/kv/a?consistency=bounded&max-staleness=-5", "", nil, 400, kv.CodeBadRequest, "out of range"},
		{"max-staleness of days", "GET", "/kv/a?consistency=bounded&max-staleness=48h", "", nil, 400, kv.CodeBadRequest, "out of range"},
		{"max-staleness that is none", "GET", "/kv/a?consistency=bounded&max-staleness=soon", "", nil, 400, kv.CodeBadRequest, "500ms"},
		{"max-staleness at eventual", "GET", "/kv/a?consistency=eventual&max-staleness=1s", "", nil, 400, kv.CodeBadRequest, "bounded"},
		{"max-staleness at no level", "GET", "/kv/a?max-staleness=1s", "", nil, 400, kv.CodeBadRequest, "bounded"},
		{"r at bounded", "GET", "/kv/a?consistency=bounded&r=1", "", nil, 400, kv.CodeBadRequest, "eventual"},
		{"max-staleness of a strong listing", "GET", "/kv?consistency=strong&max-staleness=1s", "", nil, 400, kv.CodeBadRequest, "bounded"},
		{"max-staleness of a strong batch", "POST", "/batch?consistency=strong&max-staleness=1s", `{"operations":[]}`, nil, 400, kv.CodeBadRequest, "bounded"},
		{"empty level", "GET", "/kv/a?consistency=", "", nil, 400, kv.CodeUnknownConsistency, ""},
		{"level in capitals", "GET", "/kv/a?consistency=STRONG", "", nil, 400, kv.CodeUnknownConsistency, ""},
		{"level in upper-case parameter", "GET", "/kv/a?Consistency=strong", "", nil, 400, kv.CodeBadRequest, `"consistency"`},
	}
}

// Quorums.
func refusedQuorums() []refusal {
	return []refusal{
		{"w=0", "PUT", "/kv/a?consistency=eventual&w=0", refusedValue, nil, 400, kv.CodeBadQuorum, "w=0"},
		{"w=-1", "PUT", "/kv/a?consistency=eventual&w=-1", refusedValue, nil, 400, kv.CodeBadQuorum, "w=-1"},
		{"w huge", "PUT", "/kv/a?consistency=eventual&w=99999999999999999999", refusedValue, nil, 400, kv.CodeBadQuorum, ""},
		{"w above n", "PUT", "/kv/a?consistency=eventual&n=2&w=3", refusedValue, nil, 400, kv.CodeBadQuorum, "w=3"},
		{"w above replicas", "PUT", "/kv/a?consistency=eventual&w=4", refusedValue, nil, 400, kv.CodeBadQuorum, ""},
		{"n above replicas", "PUT", "/kv/a?consistency=eventual&n=4", refusedValue, nil, 400, kv.CodeBadQuorum, ""},
		{"r above replicas", "GET", "/kv/a?consistency=eventual&r=4", "", nil, 400, kv.CodeBadQuorum, ""},
		{"w above replicas on DELETE", "DELETE", "/kv/a?consistency=eventual&w=4", "", nil, 400, kv.CodeBadQuorum, ""},
		{"w not a number", "PUT", "/kv/a?consistency=eventual&w=two", refusedValue, nil, 400, kv.CodeBadRequest, "two"},
		{"w empty", "PUT", "/kv/a?consistency=eventual&w=", refusedValue, nil, 400, kv.CodeBadRequest, ""},
		{"w fractional", "PUT", "/kv/a?consistency=eventual&w=1.5", refusedValue, nil, 400, kv.CodeBadRequest, ""},
		{"w at strong", "PUT", "/kv/a?consistency=strong&w=2", refusedValue, nil, 400, kv.CodeBadRequest, "strong"},
		{"w at default", "PUT", "/kv/a?w=2", refusedValue, nil, 400, kv.CodeBadRequest, "strong"},
		{"r at strong", "GET", "/kv/a?consistency=strong&r=2", "", nil, 400, kv.CodeBadRequest, "strong"},
		{"n at local", "GET", "/kv/a?consistency=local&n=3", "", nil, 400, kv.CodeBadRequest, "local"},
		{"w on GET", "GET", "/kv/a?consistency=eventual&w=2", "", nil, 400, kv.CodeBadRequest, `"w"`},
	}
}

// Conditions.
func refusedConditions() []refusal {
	return []refusal{
		{"if-version at eventual", "PUT", "/kv/a?consistency=eventual&if-version=1", refusedValue, nil, 400, kv.CodeConditionNeedsStrong, "eventual"},
		{"if-version at local", "DELETE", "/kv/a?consistency=local&if-version=1", "", nil, 400, kv.CodeConditionNeedsStrong, "local"},
		{"If-None-Match at eventual", "PUT", "/kv/a?consistency=eventual", refusedValue, []string{"If-None-Match: *"}, 400, kv.CodeConditionNeedsStrong, ""},
		{"if-version not a number", "PUT", "/kv/a?if-version=x", refusedValue, nil, 400, kv.CodeBadRequest, "if-version"},
		{"if-version negative", "PUT", "/kv/a?if-version=-1", refusedValue, nil, 400, kv.CodeBadRequest, "if-version"},
		{"if-version too long", "PUT", "/kv/a?if-version=18446744073709551616", refusedValue, nil, 400, kv.CodeBadRequest, "if-version"},
		{"if-version on GET", "GET", "/kv/a?if-version=1", "", nil, 400, kv.CodeBadRequest, "read"},
		{"two conditions", "PUT", "/kv/a?if-version=1", refusedValue, []string{`If-Match: "1"`}, 400, kv.CodeBadRequest, "one condition"},
		{"two headers", "PUT", "/kv/a", refusedValue, []string{`If-Match: "1"`, "If-None-Match: *"}, 400, kv.CodeBadRequest, "one condition"},
		{"If-Match twice", "PUT", "/kv/a", refusedValue, []string{`If-Match: "1"`, `If-Match: "2"`}, 400, kv.CodeBadRequest, "one condition"},
		{"If-Match list", "PUT", "/kv/a", refusedValue, []string{`If-Match: "1", "2"`}, 400, kv.CodeBadRequest, "If-Match"},
		{"If-Match bare", "PUT", "/kv/a", refusedValue, []string{`If-Match: 41`}, 400, kv.CodeBadRequest, "quotes"},
		{"If-Match weak", "PUT", "/kv/a", refusedValue, []string{`If-Match: W/"41"`}, 400, kv.CodeBadRequest, "quotes"},
		{"If-Match zero", "PUT", "/kv/a", refusedValue, []string{`If-Match: "0"`}, 400, kv.CodeBadRequest, "ETag"},
		{"If-Match of an unsettled value", "PUT", "/kv/a", refusedValue, []string{`If-Match: "e-12ab"`}, 400, kv.CodeConditionNeedsStrong, "Raft order"},
		{"If-None-Match tag on PUT", "PUT", "/kv/a", refusedValue, []string{`If-None-Match: "41"`}, 400, kv.CodeBadRequest, "If-None-Match"},
		{"if-version misses", "PUT", "/kv/held?if-version=7", refusedValue, nil, 412, kv.CodeVersionMismatch, ""},
		{"create misses", "PUT", "/kv/held?if-version=0", refusedValue, nil, 412, kv.CodeVersionMismatch, ""},
		{"If-None-Match misses", "PUT", "/kv/held", refusedValue, []string{"If-None-Match: *"}, 412, kv.CodeVersionMismatch, ""},
		{"If-Match misses", "DELETE", "/kv/held", "", []string{`If-Match: "7"`}, 412, kv.CodeVersionMismatch, ""},
		{"If-Match * misses", "PUT", "/kv/absent", refusedValue, []string{"If-Match: *"}, 412, kv.CodeVersionMismatch, ""},
	}
}

// Lifetimes, hints and fallbacks.
func refusedExtras() []refusal {
	return []refusal{
		{"unknown parameter", "PUT", "/kv/a?consistancy=strong", refusedValue, nil, 400, kv.CodeBadRequest, `"consistency"`},
		{"unknown parameter on DELETE", "DELETE", "/kv/a?timeot=1s", "", nil, 400, kv.CodeBadRequest, `"timeout"`},
		{"repeated parameter", "GET", "/kv/a?consistency=strong&consistency=eventual", "", nil, 400, kv.CodeBadRequest, "more than once"},
		{"bad escape in the query", "GET", "/kv/a?consistency=%zz", "", nil, 400, kv.CodeBadRequest, "escape"},
		{"ttl of a delete", "DELETE", "/kv/a?ttl=1s", "", nil, 400, kv.CodeBadRequest, "put"},
		{"ttl on GET", "GET", "/kv/a?ttl=1s", "", nil, 400, kv.CodeBadRequest, "read"},
		{"ttl nonsense", "PUT", "/kv/a?ttl=soon", refusedValue, nil, 400, kv.CodeBadRequest, "ttl"},
		{"ttl zero", "PUT", "/kv/a?ttl=0", refusedValue, nil, 400, kv.CodeBadRequest, "ttl"},
		{"ttl negative", "PUT", "/kv/a?ttl=-5s", refusedValue, nil, 400, kv.CodeBadRequest, "ttl"},
		{"ttl below a millisecond", "PUT", "/kv/a?ttl=10us", refusedValue, nil, 400, kv.CodeBadRequest, "ttl"},
		{"ttl of a century", "PUT", "/kv/a?ttl=3153600000", refusedValue, nil, 400, kv.CodeBadRequest, "87600"},
		{"ttl that would wrap around", "PUT", "/kv/a?ttl=9223372036854775807", refusedValue, nil, 400, kv.CodeBadRequest, "87600"},
		{"sloppy not a bool", "PUT", "/kv/a?consistency=eventual&sloppy=1", refusedValue, nil, 400, kv.CodeBadRequest, "neither true nor false"},
		{"sloppy at strong", "PUT", "/kv/a?consistency=strong&sloppy=true", refusedValue, nil, 400, kv.CodeBadRequest, "sloppy="},
		{"sloppy read", "GET", "/kv/a?consistency=eventual&sloppy=true", "", nil, 400, kv.CodeBadRequest, "means nothing on a read"},
		{"fallback to no level", "PUT", "/kv/a?fallback=weak", refusedValue, nil, 400, kv.CodeUnknownConsistency, "eventual"},
		{"fallback to strong", "PUT", "/kv/a?consistency=eventual&fallback=strong", refusedValue, nil, 400, kv.CodeBadRequest, "fall back to eventual or local"},
		{"fallback to the same level", "GET", "/kv/a?consistency=eventual&fallback=eventual", "", nil, 400, kv.CodeBadRequest, "not weaker"},
		{"fallback to a stronger level", "GET", "/kv/a?consistency=local&fallback=eventual", "", nil, 400, kv.CodeBadRequest, "not weaker"},
		{"fallback of a condition", "PUT", "/kv/a?consistency=strong&fallback=local&if-version=1", refusedValue, nil, 400, kv.CodeBadRequest, "condition"},
		{"fallback of an idempotent write", "PUT", "/kv/a?consistency=strong&fallback=local", refusedValue, []string{"Idempotency-Key: x"}, 400, kv.CodeBadRequest, "Idempotency-Key"},
	}
}

// Operations by name.
func refusedOperations() []refusal {
	return []refusal{
		{"explain", "GET", "/kv/a?explain", "", nil, 400, kv.CodeBadRequest, "not supported"},
		{"idempotency key at eventual", "PUT", "/kv/a?consistency=eventual", refusedValue, []string{"Idempotency-Key: x"}, 400, kv.CodeBadRequest, "strong"},
		{"idempotency key on GET", "GET", "/kv/a", "", []string{"Idempotency-Key: x"}, 400, kv.CodeBadRequest, "read"},
		{"idempotency key twice", "PUT", "/kv/a", refusedValue, []string{"Idempotency-Key: x", "Idempotency-Key: y"}, 400, kv.CodeBadRequest, "more than once"},
		{"idempotency key empty", "PUT", "/kv/a", refusedValue, []string{"Idempotency-Key: "}, 400, kv.CodeBadRequest, "1 to 255"},
		{"idempotency key too long", "PUT", "/kv/a", refusedValue, []string{"Idempotency-Key: " + strings.Repeat("x", 256)}, 400, kv.CodeBadRequest, "1 to 255"},
		{"idempotency key not printable", "PUT", "/kv/a", refusedValue, []string{"Idempotency-Key: \xc3\xa9"}, 400, kv.CodeBadRequest, "printable"},
		{"operation without key", "GET", "/ops/x", "", nil, 400, kv.CodeBadRequest, "key is missing"},
		{"operation with an empty key", "GET", "/ops/x?key=", "", nil, 400, kv.CodeBadRequest, "empty"},
		{"operation without id", "GET", "/ops/?key=a", "", nil, 400, kv.CodeBadRequest, "1 to 255"},
		{"operation with another parameter", "GET", "/ops/x?kee=a", "", nil, 400, kv.CodeBadRequest, `"key"`},
		{"operation written", "PUT", "/ops/x?key=a", refusedValue, nil, 405, codeMethodNotAllowed, "GET"},
	}
}

// Timeouts, siblings and contexts.
func refusedContexts() []refusal {
	return []refusal{
		{"timeout without unit", "GET", "/kv/a?timeout=5", "", nil, 400, kv.CodeBadRequest, "timeout"},
		{"timeout nonsense", "GET", "/kv/a?timeout=soon", "", nil, 400, kv.CodeBadRequest, "timeout"},
		{"timeout zero", "GET", "/kv/a?timeout=0s", "", nil, 400, kv.CodeBadRequest, "timeout"},
		{"timeout too long", "GET", "/kv/a?timeout=61s", "", nil, 400, kv.CodeBadRequest, "1m0s"},
		{"siblings nonsense", "GET", "/kv/a?siblings=some", "", nil, 400, kv.CodeBadRequest, "siblings"},
		{"siblings on PUT", "PUT", "/kv/a?siblings=all", refusedValue, nil, 400, kv.CodeBadRequest, "write"},
		{"siblings refused", "GET", "/kv/sib?siblings=error", "", nil, 409, kv.CodeSiblings, ""},
		{"context nonsense", "PUT", "/kv/a?consistency=eventual&context=!!", refusedValue, nil, 400, kv.CodeBadRequest, "context"},
		{"context empty", "PUT", "/kv/a?consistency=eventual&context=", refusedValue, nil, 400, kv.CodeBadRequest, "context"},
		{"context header nonsense", "PUT", "/kv/a?consistency=eventual", refusedValue, []string{"Caprock-Context: a b"}, 400, kv.CodeBadRequest, "context"},
		{"context twice", "PUT", "/kv/a?consistency=eventual&context=AQ", refusedValue, []string{"Caprock-Context: AQ"}, 400, kv.CodeBadRequest, "more than once"},
		{"context at strong", "PUT", "/kv/a?consistency=strong&context=AQ", refusedValue, nil, 400, kv.CodeBadRequest, "context"},
		{"context on GET", "GET", "/kv/a?consistency=eventual&context=AQ", "", nil, 400, kv.CodeBadRequest, "read"},
		{"context header on GET", "GET", "/kv/a?consistency=eventual", "", []string{"Caprock-Context: AQ"}, 400, kv.CodeBadRequest, "read"},
	}
}

// Bodies.
func refusedBodies() []refusal {
	big := strings.Repeat("x", kv.ValueBytesMax+1)
	return []refusal{
		{"value missing", "PUT", "/kv/a", `{}`, []string{jsonType}, 400, kv.CodeBadRequest, `"value"`},
		{"value missing in a form", "PUT", "/kv/a", ` {"encoding":"base64"}`, []string{formType}, 400, kv.CodeBadRequest, `"value"`},
		{"value a number", "PUT", "/kv/a", `{"value":1}`, []string{jsonType}, 400, kv.CodeBadRequest, "not a string"},
		{"value null", "PUT", "/kv/a", `{"value":null}`, []string{jsonType}, 400, kv.CodeBadRequest, "not a string"},
		{"value an object", "PUT", "/kv/a", `{"value":{}}`, []string{formType}, 400, kv.CodeBadRequest, "not a string"},
		{"unknown field", "PUT", "/kv/a", `{"value":"1","ttl":"5s"}`, []string{jsonType}, 400, kv.CodeBadRequest, `"ttl"`},
		{"field in capitals", "PUT", "/kv/a", `{"Value":"1"}`, []string{jsonType}, 400, kv.CodeBadRequest, `"value"`},
		{"field twice", "PUT", "/kv/a", `{"value":"1","value":"2"}`, []string{jsonType}, 400, kv.CodeBadRequest, "more than once"},
		{"truncated", "PUT", "/kv/a", `{"value":"1"`, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"truncated form", "PUT", "/kv/a", `{"value":`, []string{formType}, 400, kv.CodeBadRequest, "malformed"},
		{"trailing comma", "PUT", "/kv/a", `{"value":"1",}`, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"trailing garbage", "PUT", "/kv/a", `{"value":"1"} x`, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"two objects", "PUT", "/kv/a", refusedValue + refusedValue, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"not an object", "PUT", "/kv/a", `"1"`, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"an array", "PUT", "/kv/a", `["1"]`, []string{"Content-Type: application/json; charset=utf-8"}, 400, kv.CodeBadRequest, "malformed"},
		{"no body", "PUT", "/kv/a", ``, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"invalid UTF-8", "PUT", "/kv/a", "{\"value\":\"\xff\"}", []string{jsonType}, 400, kv.CodeBadRequest, "UTF-8"},
		{"lone surrogate", "PUT", "/kv/a", `{"value":"\ud800"}`, []string{jsonType}, 400, kv.CodeBadRequest, "surrogates"},
		{"bad escape", "PUT", "/kv/a", `{"value":"\x41"}`, []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"bare control character", "PUT", "/kv/a", "{\"value\":\"a\nb\"}", []string{jsonType}, 400, kv.CodeBadRequest, "malformed"},
		{"not base64", "PUT", "/kv/a", `{"value":"%%","encoding":"base64"}`, []string{jsonType}, 400, kv.CodeBadRequest, "base64"},
		{"base64 without padding", "PUT", "/kv/a", `{"value":"YQ","encoding":"base64"}`, []string{jsonType}, 400, kv.CodeBadRequest, "base64"},
		{"unknown encoding", "PUT", "/kv/a", `{"value":"00","encoding":"hex"}`, []string{jsonType}, 400, kv.CodeBadRequest, "hex"},
		{"compressed body", "PUT", "/kv/a", "x", []string{"Content-Encoding: gzip"}, 400, kv.CodeBadRequest, "gzip"},
		{"raw value too large", "PUT", "/kv/a", big, []string{rawType}, 413, kv.CodeValueTooLarge, ""},
		{"JSON value too large", "PUT", "/kv/a", `{"value":"` + big + `"}`, []string{jsonType}, 413, kv.CodeValueTooLarge, "1048577"},
	}
}

// Compatibility routes.
func refusedCompat() []refusal {
	return []refusal{
		{"set without key", "POST", "/api/set", `{"value":"1"}`, nil, 400, kv.CodeBadRequest, `"key"`},
		{"set with empty key", "POST", "/api/set", `{"key":"","value":"1"}`, nil, 400, kv.CodeBadRequest, "empty"},
		{"set with unknown field", "POST", "/api/set", `{"key":"a","value":"1","x":"y"}`, nil, 400, kv.CodeBadRequest, `"x"`},
		{"get without key", "GET", "/api/get", "", nil, 400, kv.CodeBadRequest, "empty"},
		{"get with unknown parameter", "GET", "/api/get?k=a", "", nil, 400, kv.CodeBadRequest, `"key"`},
		{"get of nothing", "GET", "/api/get?key=absent", "", nil, 404, kv.CodeKeyNotFound, ""},
		{"delete without key", "DELETE", "/api/delete", "", nil, 400, kv.CodeBadRequest, "empty"},
		{"parameter of status", "GET", "/admin/status?verbose", "", nil, 400, kv.CodeBadRequest, "none"},
	}
}

func TestBadRequestsAreRefusedAndWriteNothing(t *testing.T) {
	tests := slices.Concat(
		refusedKeys(), refusedRoutes(), refusedLevels(), refusedQuorums(), refusedConditions(),
		refusedExtras(), refusedOperations(), refusedContexts(), refusedBodies(), refusedCompat(),
	)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := newFakeNode()
			node.values["held"] = kv.Response{Found: true, Settled: true, Version: 41, Value: []byte("old"), Timestamp: fakeTime}
			node.values["sib"] = kv.Response{Siblings: make([]kv.Sibling, 2)}
			w := call(t, newTestHandler(t, node), test.method, test.target, test.body, test.headers...)
			require.Equal(t, test.status, w.Code, "body: %s", w.Body)
			doc := problemOf(t, w)
			require.Equal(t, string(test.code), doc["code"], "detail: %s", doc["detail"])
			require.Contains(t, doc["detail"], test.detail)
			require.Equal(t, "not_applied", doc["outcome"])
			require.Empty(t, node.writes, "something was written")
			if test.status == http.StatusMethodNotAllowed {
				require.NotEmpty(t, w.Header().Get("Allow"))
				require.NotContains(t, w.Header().Get("Allow"), test.method)
			}
			if test.name == "if-version misses" {
				require.EqualValues(t, 41, doc["current_version"])
			}
		})
	}
}

// TestFailuresOfTheNodeKeepTheirCode checks the table of codes and statuses, and the facts that go with them.
func TestFailuresOfTheNodeKeepTheirCode(t *testing.T) {
	unmet := kv.Errorf(kv.CodeQuorumUnavailable, "1 of 2").WithOutcome(kv.OutcomeUnknown)
	unmet.Required, unmet.Alive, unmet.Acked = 2, 1, 0
	moved := kv.Errorf(kv.CodeNoLeader, "elsewhere")
	moved.Leader = "n2"
	busy := kv.Errorf(kv.CodeOverloaded, "busy")
	slow := kv.Errorf(kv.CodeOverloaded, "busy")
	slow.RetryAfter = 1500 * time.Millisecond
	tests := []struct {
		err        error
		status     int
		code       kv.Code
		outcome    string
		retryable  bool
		facts      map[string]any
		retryAfter string
	}{
		{kv.Errorf(kv.CodeCrossPartition, "x"), 400, kv.CodeCrossPartition, "not_applied", false, nil, ""},
		{kv.Errorf(kv.CodeLevelFenced, "x"), 409, kv.CodeLevelFenced, "not_applied", false, nil, ""},
		{kv.Errorf(kv.CodeNotReady, "x"), 503, kv.CodeNotReady, "not_applied", true, nil, ""},
		{moved, 503, kv.CodeNoLeader, "not_applied", true, map[string]any{"leader": "n2"}, ""},
		{unmet, 503, kv.CodeQuorumUnavailable, "unknown", true, map[string]any{"required": 2.0, "alive": 1.0, "acked": 0.0}, ""},
		{busy, 429, kv.CodeOverloaded, "not_applied", true, nil, "1"},
		{slow, 429, kv.CodeOverloaded, "not_applied", true, nil, "2"},
		{kv.Errorf(kv.CodeDeadlineExceeded, "x").WithOutcome(kv.OutcomeUnknown), 504, kv.CodeDeadlineExceeded, "unknown", true, nil, ""},
		{fmt.Errorf("wrapped: %w", context.DeadlineExceeded), 504, kv.CodeDeadlineExceeded, "unknown", true, nil, ""},
		{context.Canceled, 504, kv.CodeDeadlineExceeded, "unknown", true, nil, ""},
		{fmt.Errorf("wrapped: %w", kv.Errorf(kv.CodeLevelFenced, "x")), 409, kv.CodeLevelFenced, "not_applied", false, nil, ""},
		{errors.New("disk \xff on fire"), 500, kv.CodeInternal, "unknown", false, nil, ""},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.code, test.retryAfter), func(t *testing.T) {
			node := newFakeNode()
			node.execute = func(context.Context, *kv.Request) (kv.Response, error) { return kv.Response{}, test.err }
			h := newTestHandler(t, node)
			w := call(t, h, "PUT", "/kv/a", "v")
			require.Equal(t, test.status, w.Code)
			doc := problemOf(t, w)
			require.Equal(t, string(test.code), doc["code"])
			require.Equal(t, test.outcome, doc["outcome"])
			require.Equal(t, test.retryable, doc["retryable"])
			require.Equal(t, test.retryAfter, w.Header().Get("Retry-After"))
			for member, fact := range test.facts {
				require.Equal(t, fact, doc[member], member)
			}
			read := problemOf(t, call(t, h, "GET", "/kv/a", ""))
			require.Equal(t, "not_applied", read["outcome"], "a read applies nothing")
		})
	}
}

func TestPanicIsAnsweredAndLeavesTheFrontServing(t *testing.T) {
	node := newFakeNode()
	node.execute = func(context.Context, *kv.Request) (kv.Response, error) {
		node.execute = nil
		panic("a bug")
	}
	h := newTestHandler(t, node)
	w := call(t, h, "PUT", "/kv/a", "v")
	require.Equal(t, 500, w.Code)
	require.Equal(t, "unknown", problemOf(t, w)["outcome"])
	require.Equal(t, 200, call(t, h, "PUT", "/kv/a", "v").Code)
}

// TestEveryCodeHasAStatusATitleAndItsPlaceInTheReference keeps the links in problem documents alive.
func TestEveryCodeHasAStatusATitleAndItsPlaceInTheReference(t *testing.T) {
	reference, err := os.ReadFile("../docs/api.md")
	require.NoError(t, err)
	require.Contains(t, string(reference), "\n#### INTERNAL\n")
	for _, code := range allCodes() {
		require.NotEqual(t, titleOf(kv.CodeInternal), titleOf(code), code)
		require.NotEqual(t, http.StatusInternalServerError, StatusOf(code), code)
		require.Contains(t, string(reference), "\n#### "+string(code)+"\n")
	}
}

func allCodes() []kv.Code {
	return []kv.Code{
		kv.CodeBadRequest, kv.CodeUnknownConsistency, kv.CodeBadQuorum, kv.CodeConditionNeedsStrong, kv.CodeCrossPartition,
		kv.CodeKeyNotFound, kv.CodeLevelFenced, kv.CodeSiblings, kv.CodeVersionMismatch, kv.CodeValueTooLarge, kv.CodeKeyTooLarge,
		kv.CodeOverloaded, kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady, kv.CodeDeadlineExceeded,
		codeRouteNotFound, codeMethodNotAllowed, codeRequestTimeout, codePolicyNotFound,
	}
}
