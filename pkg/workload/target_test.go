package workload

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func newHTTPTarget(t *testing.T, handler http.HandlerFunc) *HTTPTarget {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	target, err := NewHTTPTarget([]string{server.Listener.Addr().String()}, 4)
	require.NoError(t, err)
	t.Cleanup(target.Close)
	return target
}

func TestHTTPTargetSpellsOperations(t *testing.T) {
	type seen struct{ method, uri, body, contentType string }
	var got []seen
	target := newHTTPTarget(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, seen{r.Method, r.RequestURI, string(body), r.Header.Get("Content-Type")})
	})
	for _, op := range []Op{
		{Kind: kv.OpPut, Key: "a/b%", Value: []byte("v"), Level: kv.LevelEventual, Timeout: kv.RequestTimeout},
		{Kind: kv.OpGet, Key: "k", Timeout: 2 * time.Second},
		{Kind: kv.OpDelete, Key: "k", Level: kv.LevelStrong, Timeout: time.Second},
	} {
		require.NoError(t, target.Do(t.Context(), op))
	}
	require.Equal(t, []seen{
		{"PUT", "/kv/a%2Fb%25?consistency=eventual", "v", "application/octet-stream"},
		{"GET", "/kv/k?timeout=2s", "", "application/octet-stream"},
		{"DELETE", "/kv/k?consistency=strong&timeout=1s", "", "application/octet-stream"},
	}, got)
}

func TestHTTPTargetSaysWhatAFailureMeans(t *testing.T) {
	put := Op{Kind: kv.OpPut, Key: "k", Timeout: time.Second}
	get := Op{Kind: kv.OpGet, Key: "k", Timeout: time.Second}
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		op      Op
		code    kv.Code
		outcome kv.Outcome
	}{
		"refused":         {answer(503, `{"code":"NO_LEADER","outcome":"not_applied"}`), put, kv.CodeNoLeader, kv.OutcomeNotApplied},
		"unknown":         {answer(504, `{"code":"DEADLINE_EXCEEDED","outcome":"unknown"}`), put, kv.CodeDeadlineExceeded, kv.OutcomeUnknown},
		"absent":          {answer(404, `{"code":"KEY_NOT_FOUND","outcome":"not_applied"}`), get, kv.CodeKeyNotFound, kv.OutcomeNotApplied},
		"no document":     {answer(500, `boom`), put, kv.CodeInternal, kv.OutcomeUnknown},
		"cut while put":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, put, kv.CodeNotReady, kv.OutcomeUnknown},
		"cut while get":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, get, kv.CodeNotReady, kv.OutcomeNotApplied},
		"too late, a put": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, Op{Kind: kv.OpPut, Key: "k", Timeout: 20 * time.Millisecond}, kv.CodeDeadlineExceeded, kv.OutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			err := newHTTPTarget(t, test.handler).Do(t.Context(), test.op)
			require.Equal(t, test.code, kv.CodeOf(err), "%v", err)
			require.Equal(t, test.outcome.String(), kv.AsError(err).Outcome.String(), "%v", err)
		})
	}
	gone, err := NewHTTPTarget([]string{"127.0.0.1:1"}, 1)
	require.NoError(t, err)
	err = gone.Do(t.Context(), put)
	require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome, "%v", err)
	_, err = NewHTTPTarget(nil, 1)
	require.Error(t, err)
}
