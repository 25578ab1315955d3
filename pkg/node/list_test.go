package node

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Pages of a listing, one after the other, hold what one sorted list does, whatever the parts hold back.
func TestPagesHoldEveryKeyOnceAndInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		partitions := rapid.IntRange(1, 5).Draw(t, "partitions")
		keys := make([][][]byte, partitions)
		var all [][]byte
		for i := range rapid.IntRange(0, 60).Draw(t, "keys") {
			key := fmt.Appendf(nil, "k%03d", i)
			p := rapid.IntRange(0, partitions-1).Draw(t, "partition")
			keys[p] = append(keys[p], key)
			all = append(all, key)
		}
		limit := rapid.IntRange(1, 10).Draw(t, "limit")
		var got [][]byte
		var after []byte
		for pages := 0; ; pages++ {
			require.LessOrEqual(t, pages, len(all)+1)
			parts := make([]kv.Response, partitions)
			for p := range parts {
				// A part may hold back more than it must, but not everything.
				most := rapid.IntRange(1, limit).Draw(t, "most")
				for _, key := range keys[p] {
					if bytes.Compare(key, after) <= 0 {
						continue
					}
					if len(parts[p].Listed) == most {
						parts[p].More = true
						break
					}
					parts[p].Listed = append(parts[p].Listed, kv.ListItem{Key: key})
				}
			}
			page, more := mergeLists(parts, limit)
			require.LessOrEqual(t, len(page), limit)
			for _, item := range page {
				got = append(got, item.Key)
			}
			if !more {
				break
			}
			require.NotEmpty(t, page)
			after = page[len(page)-1].Key
		}
		require.True(t, slices.EqualFunc(all, got, bytes.Equal), "%q\n%q", all, got)
	})
}

// A part without keys counts as the last one, so that one which is empty because all that it looked at is gone must go on.
func TestPartOfAListingThatIsEmptyAndNotTheLastGoesOn(t *testing.T) {
	key := func(name string) []byte { return []byte(name) }
	listed := func(names ...string) (out []kv.ListItem) {
		for _, name := range names {
			out = append(out, kv.ListItem{Key: key(name)})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		beside besides
		page   kv.Response
		left   []kv.ListItem
		more   bool
		next   []byte
	}{
		{"only deleted keys up to the bound", besides{bound: key("c")}, kv.Response{Listed: listed("d")}, nil, true, key("c")},
		{"all of the page is gone", besides{gone: [][]byte{key("a"), key("b")}}, kv.Response{Listed: listed("a", "b"), More: true}, nil, true, key("b")},
		{"something is left", besides{bound: key("c")}, kv.Response{Listed: listed("a", "d")}, listed("a"), true, nil},
		{"nothing is left of the last page", besides{gone: [][]byte{key("a")}}, kv.Response{Listed: listed("a")}, nil, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			next := c.beside.into(&c.page, 2)
			require.Equal(t, c.next, next)
			require.Equal(t, c.more, c.page.More)
			require.Len(t, c.page.Listed, len(c.left))
		})
	}
}
