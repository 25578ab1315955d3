package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestBodyIsJSONOnlyWhereItsTypeSaysSo(t *testing.T) {
	tests := []struct{ contentType, body, value string }{
		{"application/json", `{"value":"text"}`, "text"},
		{"application/json", "\n {\t\"encoding\" : \"base64\" ,\r\n \"value\":\"AP8=\"} \n", "\x00\xff"},
		{"Application/JSON; charset=utf-8", `{"value":""}`, ""},
		{"application/json", `{"value":"\u00e9\ud83d\ude00\n\/\"\\"}`, "é😀\n/\"\\"},
		{"application/json", `{"\u0076alue":"x"}`, "x"},
		{"application/x-www-form-urlencoded", ` {"value":"text"}`, "text"},
		{"application/x-www-form-urlencoded", `value=text`, "value=text"},
		{"application/x-www-form-urlencoded", ``, ""},
		{"application/octet-stream", `{"value":"text"}`, `{"value":"text"}`},
		{"text/plain", "\xff\x00", "\xff\x00"},
		{"application/problem+json", `{`, `{`},
		{"", `{"value":"text"}`, `{"value":"text"}`},
		{";;;", `x`, `x`},
	}
	for _, test := range tests {
		node := newFakeNode()
		w := call(t, newTestHandler(t, node), "PUT", "/kv/a", test.body, "Content-Type: "+test.contentType)
		require.Equal(t, 200, w.Code, "%s: %s", test.contentType, w.Body)
		require.Equal(t, test.value, string(node.requests[0].Value), test.contentType)
	}
}

func TestLargestValueFitsHoweverItIsSpelled(t *testing.T) {
	value := strings.Repeat("\x01", kv.ValueBytesMax)
	escaped, err := json.Marshal(map[string]string{"value": value})
	require.NoError(t, err)
	encoded := `{"encoding":"base64","value":"` + base64.StdEncoding.EncodeToString([]byte(value)) + `"}`
	for body, contentType := range map[string]string{string(escaped): jsonType, encoded: jsonType, value: rawType} {
		for _, chunked := range []bool{false, true} {
			node := newFakeNode()
			r := httptest.NewRequest("PUT", "/kv/a", strings.NewReader(body))
			r.Header.Set("Content-Type", strings.TrimPrefix(contentType, "Content-Type: "))
			if chunked {
				r.ContentLength = -1
			}
			w := httptest.NewRecorder()
			newTestHandler(t, node).ServeHTTP(w, r)
			require.Equal(t, 200, w.Code)
			require.True(t, value == string(node.requests[0].Value))
		}
	}
}

// TestOversizeBodyIsReadForABoundedWhile sends an endless body.
func TestOversizeBodyIsReadForABoundedWhile(t *testing.T) {
	for _, contentType := range []string{"application/json", "application/octet-stream"} {
		body := &countingReader{}
		r := httptest.NewRequest("PUT", "/kv/a", body)
		r.Header.Set("Content-Type", contentType)
		r.ContentLength = -1
		w := httptest.NewRecorder()
		newTestHandler(t, newFakeNode()).ServeHTTP(w, r)
		require.Equal(t, 413, w.Code)
		require.Equal(t, "VALUE_TOO_LARGE", problemOf(t, w)["code"])
		require.LessOrEqual(t, body.n, int64(bodyBytesMax(kv.DefaultLimits())+drainBytesMax+1<<20))
	}
	body := &countingReader{}
	r := httptest.NewRequest("PUT", "/kv/a", body)
	r.ContentLength = 1 << 40
	r.Header.Set("Expect", "100-continue")
	w := httptest.NewRecorder()
	newTestHandler(t, newFakeNode()).ServeHTTP(w, r)
	require.Equal(t, 413, w.Code)
	require.Zero(t, body.n, "a client that asks before it sends is told not to")
}

type countingReader struct{ n int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	r.n += int64(len(p))
	return len(p), nil
}

func TestBodyThatEndsEarlyWritesNothing(t *testing.T) {
	node := newFakeNode()
	r := httptest.NewRequest("PUT", "/kv/a", io.MultiReader(strings.NewReader("half"), brokenReader{}))
	r.ContentLength = 100
	w := httptest.NewRecorder()
	newTestHandler(t, node).ServeHTTP(w, r)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Empty(t, node.requests)
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// FuzzDecodeValue compares the parser with encoding/json, which it must agree with on everything but what it refuses on
// purpose: names in other letter case, repeated names, and strings that are not Unicode.
func FuzzDecodeValue(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"value":"x"}`, ` {"value" : "\u00e9\ud83d\ude00" } `, `{"value":"YQ==","encoding":"base64"}`, `{"value":"\ud800"}`,
		`{"value":"a","value":"b"}`, `{"Value":"a"}`, `{"value":"a"}x`, `{"value":null}`, "{\"value\":\"\xff\"}", `{"value":"\\\"\/\b\f\n\r\t"}`,
		`{"value":"\u0000"`, `{"value":"\u12`, `{"value":"\`, `{"encoding":"base64"}`, `{,}`, `{"value":"a",}`, `["value"]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var want struct {
			Value, Encoding *string
		}
		strict := json.NewDecoder(bytes.NewReader(body))
		strict.DisallowUnknownFields()
		jsonErr := strict.Decode(&want)
		if jsonErr == nil && json.Unmarshal(body, &json.RawMessage{}) != nil {
			jsonErr = io.ErrUnexpectedEOF // something follows the object
		}
		original := bytes.Clone(body)
		got, err := decodeValue(body)
		if err == nil {
			require.NoError(t, jsonErr, "accepted %q", original)
			require.NotNil(t, want.Value)
			expected := []byte(*want.Value)
			if want.Encoding != nil {
				require.Equal(t, "base64", *want.Encoding)
				decoded, err := base64.StdEncoding.DecodeString(*want.Value)
				require.NoError(t, err)
				expected = decoded
			}
			require.True(t, bytes.Equal(expected, got), "%q: got %q, want %q", original, got, expected)
			return
		}
		require.Equal(t, kv.OutcomeNotApplied, err.Outcome)
		if jsonErr != nil || want.Value == nil || want.Encoding != nil || !plainObject(original) {
			return
		}
		t.Fatalf("refused %q: %v", original, err)
	})
}

// plainObject reports whether a JSON object that encoding/json accepts holds nothing that the parser refuses on purpose.
func plainObject(body []byte) bool {
	return utf8.Valid(body) && bytes.Count(body, []byte(`"`)) == 4 && bytes.Contains(body, []byte(`"value"`)) &&
		!bytes.Contains(body, []byte(`\u`))
}
