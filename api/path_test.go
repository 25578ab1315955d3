package api

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// keyOf sends a request line through net/http's own parser and the handler, and returns the key that the node was asked
// for. An error stands for anything but reaching the node.
func keyOf(h http.Handler, node *fakeNode, target string) (string, error) {
	node.requests = nil
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
	if err != nil {
		return "", err
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if len(node.requests) != 1 {
		return "", fmt.Errorf("status %d", w.Code)
	}
	if location := w.Header().Get("Location"); location != "" {
		return "", fmt.Errorf("redirected to %s", location)
	}
	return string(node.requests[0].Key), nil
}

func TestKeyIsExactlyWhatItsPathSpells(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	for target, key := range map[string]string{
		"/kv/a":                        "a",
		"/kv/a//b":                     "a//b",
		"/kv//":                        "/",
		"/kv//a":                       "/a",
		"/kv/a/":                       "a/",
		"/kv/a/../b":                   "a/../b",
		"/kv/../admin/status":          "../admin/status",
		"/kv/.":                        ".",
		"/kv/..":                       "..",
		"/kv/%2e%2e":                   "..",
		"/kv/%2E%2e/%2fetc":            "..//etc",
		"/kv/a%2Fb":                    "a/b",
		"/kv/a%252Fb":                  "a%2Fb",
		"/kv/a%2Fb%2525":               "a/b%25",
		"/kv/a%20b":                    "a b",
		"/kv/a+b":                      "a+b",
		"/kv/a%2Bb":                    "a+b",
		"/kv/a;b=c":                    "a;b=c",
		"/kv/a%3Fb?consistency=strong": "a?b",
		"/kv/a:b@c!$&'()*,=~":          "a:b@c!$&'()*,=~",
		"/kv/%00%ff":                   "\x00\xff",
		"/kv/\xc3\xa9":                 "é",
		"/kv/\xc3\xa9%2F":              "é/",
		"/kv/é/%C3%A9":                 "é/é",
		"/kv/[x]":                      "[x]",
		"http://other/kv/a//b":         "a//b",
	} {
		got, err := keyOf(h, node, target)
		require.NoError(t, err, target)
		require.Equal(t, key, got, target)
	}
}

func TestPathsThatSpellNoKeyAreRefused(t *testing.T) {
	node := newFakeNode()
	h := newTestHandler(t, node)
	for _, target := range []string{"/kv/", "/kv?a", "/KV/a", "//kv/a", "/kv%2Fa", "/%6bv/a", "/./kv/a", "/x/../kv/a", "/kv/%", "/kv/%2", "/kv/%zz"} {
		_, err := keyOf(h, node, target)
		require.Error(t, err, target)
	}
	// net/http refuses bad escapes before the handler sees them; a front that hands over such a URL gets 400 too.
	for _, raw := range []string{"/kv/%", "/kv/%2", "/kv/a%zz", "/kv/%%%"} {
		node.requests = nil
		r := httptest.NewRequest("GET", "/kv/x", nil)
		r.URL = &url.URL{Path: "/kv/x", RawPath: raw}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, 400, w.Code, raw)
		require.Equal(t, "BAD_REQUEST", problemOf(t, w)["code"])
		require.Empty(t, node.requests)
	}
}

// spellings returns the ways in which clients encode a key into a path.
func spellings(key string) []string {
	var upper, lower, needed strings.Builder
	for i := range len(key) {
		c := key[i]
		fmt.Fprintf(&upper, "%%%02X", c)
		fmt.Fprintf(&lower, "%%%02x", c)
		if c <= ' ' || c == '%' || c == '?' || c == '#' || c == 0x7F {
			fmt.Fprintf(&needed, "%%%02X", c)
		} else {
			needed.WriteByte(c) // as little as a request line can do with
		}
	}
	return []string{url.PathEscape(key), upper.String(), lower.String(), needed.String(), (&url.URL{Path: "/" + key}).EscapedPath()[1:]}
}

// FuzzKeyIsNeverAnotherKey sends two keys in every spelling: each reaches the node as exactly its own bytes, so that two
// different keys can never meet.
func FuzzKeyIsNeverAnotherKey(f *testing.F) {
	for _, seed := range []string{
		"a", "a/b", "a//b", "..", "../..", ".", "a/./b", "%", "%2F", "%252e", "+", " ", "a b", "\x00", "\xff\xfe", "é", "/", "//", "?", "#", "a?b#c",
		";", "a;b", "*", "[", "kv/", "../kv/a", "a%", "\n", "\r\n", "\x7f", "http://x/", "@", ":", "a%2fb", "a%2Fb",
	} {
		f.Add(seed, seed+"/")
	}
	node := newFakeNode()
	h := newTestHandler(f, node)
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, key := range []string{a, b} {
			if len(key) == 0 || len(key) > kv.KeyBytesMax {
				continue
			}
			for _, spelled := range spellings(key) {
				got, err := keyOf(h, node, "/kv/"+spelled)
				require.NoError(t, err, "%q spelled %q", key, spelled)
				require.Equal(t, key, got, "spelled %q", spelled)
			}
		}
	})
}
