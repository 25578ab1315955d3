package api

import (
	"context"
	"encoding/json"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// lists makes the node list these keys.
func (f *fakeNode) lists(keys ...string) {
	f.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		if r.Level == kv.LevelUnset {
			r.Level = kv.LevelStrong
		}
		if err := r.Validate(kv.DefaultLimits()); err != nil {
			return kv.Response{}, err
		}
		resp := kv.Response{Level: kv.LevelStrong, Coordinator: 1, Replicas: []kv.NodeID{1, 3}}
		for _, key := range keys {
			if key <= string(r.List.After) {
				continue
			}
			if len(resp.Listed) == r.List.Limit {
				resp.More = true
				break
			}
			item := kv.ListItem{Key: []byte(key), Version: 41, Timestamp: fakeTime}
			if !r.List.KeysOnly {
				item.Value = []byte("v" + key)
			}
			resp.Listed = append(resp.Listed, item)
		}
		return resp, nil
	}
}

func TestListingAnswersAsDocumented(t *testing.T) {
	node := newFakeNode()
	node.lists("a1", "a2", "a\xff")
	h := newTestHandler(t, node)
	w := call(t, h, "GET", "/kv?prefix=a&limit=2&consistency=strong", "")
	require.Equal(t, 200, w.Code, w.Body)
	var page struct {
		Items []json.RawMessage `json:"items"`
		Token string            `json:"next_page_token"`
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &page))
	require.Len(t, page.Items, 2)
	require.JSONEq(t, `{"key":"a1","value":"va1","version":41,"timestamp":"2026-03-04T05:06:07.089Z"}`, string(page.Items[0]))
	require.NotEmpty(t, page.Token)
	require.Contains(t, w.Body.String(), `"guarantee":"each partition is linearizable`)
	require.Equal(t, "n1,n3", header(w.Header(), "Caprock-Replicas"))
	w = call(t, h, "GET", "/kv?prefix=a&keys-only&page_token="+page.Token, "")
	require.JSONEq(t, `{"items":[{"key":"Yf8=","key_encoding":"base64","version":41,"timestamp":"2026-03-04T05:06:07.089Z"}],
		"consistency":"strong","guarantee":"`+listGuarantees[kv.LevelStrong]+`"}`, w.Body.String())
	w = call(t, h, "GET", "/api/list?prefix=a", "")
	require.JSONEq(t, `{"pairs":[{"key":"a1","value":"va1"},{"key":"a2","value":"va2"},{"key":"Yf8=","key_encoding":"base64","value":"dmH/","encoding":"base64"}]}`, w.Body.String())
}

func TestBadListingsAreRefused(t *testing.T) {
	other := pageToken([]byte("b"), []byte("b1"))
	for name, target := range map[string]string{
		"replicas": "/kv?prefix=a&consistency=eventual&r=2", "limit zero": "/kv?limit=0",
		"limit above": "/kv?limit=1001", "limit nonsense": "/kv?limit=ten", "unknown parameter": "/kv?prefx=a", "keys nonsense": "/kv?keys-only=maybe",
		"token nonsense": "/kv?prefix=a&page_token=!", "token cut": "/kv?prefix=b&page_token=" + other[:4],
		"token of another prefix": "/kv?prefix=a&page_token=" + url.QueryEscape(other), "compat": "/api/list?prefix=a&page_token=" + other,
	} {
		t.Run(name, func(t *testing.T) {
			node := newFakeNode()
			node.lists("a1")
			w := call(t, newTestHandler(t, node), "GET", target, "")
			require.Equal(t, 400, w.Code, w.Body)
			require.Equal(t, "BAD_REQUEST", problemOf(t, w)["code"])
		})
	}
	w := call(t, newTestHandler(t, newFakeNode()), "PUT", "/kv?prefix=a", "")
	require.Equal(t, 405, w.Code)
}

func TestEventualListingsShowConcurrentVersionsAndSayWhatTheyAre(t *testing.T) {
	node := newFakeNode()
	node.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		require.NoError(t, r.Validate(kv.DefaultLimits()))
		return kv.Response{Level: r.Level, Listed: []kv.ListItem{{Key: []byte("a"), Timestamp: fakeTime, Siblings: []kv.Sibling{
			{Value: []byte("1"), Timestamp: fakeTime, Node: 1}, {Deleted: true, Timestamp: fakeTime, Node: 2},
		}}}}, nil
	}
	h := newTestHandler(t, node)
	for _, level := range []string{"eventual", "local"} {
		w := call(t, h, "GET", "/kv?prefix=a&consistency="+level, "")
		require.Equal(t, 200, w.Code, w.Body)
		require.Contains(t, w.Body.String(), `{"key":"a","siblings":[{"value":"1"`)
		require.Contains(t, w.Body.String(), `{"value":null`)
		require.Contains(t, w.Body.String(), `"consistency":"`+level+`"`)
		require.Contains(t, w.Body.String(), "no snapshot")
	}
	w := call(t, h, "GET", "/kv?prefix=a&consistency=eventual&keys-only", "")
	require.NotContains(t, w.Body.String(), "siblings")
}
