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
