package quorum

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// list reads a whole listing page by page, as key=value.
func (c *cluster) list(t *testing.T, at kv.NodeID, level kv.Level, prefix string, limit, r int) []string {
	var out []string
	var after []byte
	for range 1000 {
		res, err := c.do(at, time.Second, &kv.Request{
			Op: kv.OpList, Level: level, List: &kv.ListQuery{Prefix: []byte(prefix), After: after, Limit: limit},
		}, kv.Quorum{R: r})
		require.NoError(t, err)
		require.LessOrEqual(t, len(res.Listed), limit)
		for _, item := range res.Listed {
			value := string(item.Value)
			if len(item.Siblings) > 0 {
				var all []string
				for _, s := range item.Siblings {
					all = append(all, string(s.Value))
				}
				slices.Sort(all)
				value = strings.Join(all, "|")
			}
			out = append(out, string(item.Key)+"="+value)
			after = item.Key
		}
		if !res.More {
			return out
		}
		require.NotEmpty(t, res.Listed, "a page that is not the last has a key to go on from")
	}
	t.Fatal("the listing does not end")
	return nil
}

func TestListingShowsWhatReadsOfTheKeysWould(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.keeps = keeps
			rnd := rand.New(rand.NewPCG(1, 2))
			for range 60 {
				// Each write misses one replica at most, and each replica some write.
				at := kv.NodeID(1 + rnd.IntN(3))
				missing := kv.NodeID(1 + rnd.IntN(3))
				c.slowLinks(0)
				if missing != at {
					c.setLink(at, missing, link{swallow: true})
				}
				key := fmt.Sprintf("k%02d", rnd.IntN(25))
				var err error
				if rnd.IntN(4) == 0 {
					_, err = c.del(at, key, nil, 2)
				} else {
					_, err = c.put(at, key, fmt.Sprint(rnd.IntN(1000)), nil, 2)
				}
				require.NoError(t, err)
				time.Sleep(10 * time.Millisecond)
			}
			c.slowLinks(time.Millisecond)
			_, err := c.put(1, "other", "x", nil, 2)
			require.NoError(t, err)
			for id := kv.NodeID(1); id <= 3; id++ {
				now, err := c.nodes[1].clock.Now()
				require.NoError(t, err)
				top := causal.Stamp{Base: causal.Position{Term: 9, Index: 9}}
				c.nodes[id].strong("k03", storage.Strong{Deleted: true, Revision: 3, Stamp: top})
				c.nodes[id].strong("k10s", storage.Strong{Value: []byte("strong"), Revision: 4, Stamp: top})
				c.nodes[id].strong("k11s", storage.Strong{Value: []byte("gone"), Revision: 5, Stamp: top, Expiry: now})
			}
			c.repair = RepairOff
			for at := kv.NodeID(1); at <= 3; at++ {
				var want []string
				keys := []string{"k10s", "k11s"}
				for i := range 25 {
					keys = append(keys, fmt.Sprintf("k%02d", i))
				}
				slices.Sort(keys)
				for _, key := range keys {
					got, err := c.get(at, key, 2)
					require.NoError(t, err)
					if len(got.Siblings) > 0 {
						var all []string
						for _, s := range got.Siblings {
							all = append(all, string(s.Value))
						}
						slices.Sort(all)
						want = append(want, key+"="+strings.Join(all, "|"))
					} else if got.Found {
						want = append(want, key+"="+string(got.Value))
					}
				}
				require.NotEmpty(t, want)
				for _, limit := range []int{1, 2, 3, 7, 100} {
					require.Equal(t, want, c.list(t, at, kv.LevelEventual, "k", limit, 2), "limit %d", limit)
				}
			}
		})
	}
}

func TestLocalListingShowsWhatOneReplicaHolds(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.setLink(1, 3, link{swallow: true})
		for i := range 5 {
			_, err := c.put(1, fmt.Sprint("k", i), "v", nil, 2)
			require.NoError(t, err)
		}
		require.Len(t, c.list(t, 2, kv.LevelLocal, "", 2, 0), 5)
		require.Empty(t, c.list(t, 3, kv.LevelLocal, "", 2, 0))
		require.Len(t, c.list(t, 3, kv.LevelEventual, "", 2, 2), 5)
	})
}

func TestListingEndsThoughItsKeysAreDeleted(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for i := range 3 * scanRowsMin {
			key := fmt.Sprintf("k%04d", i)
			_, err := c.put(1, key, "v", nil, 3)
			require.NoError(t, err)
			if i > 0 && i < 3*scanRowsMin-1 {
				_, err = c.del(1, key, nil, 3)
				require.NoError(t, err)
			}
		}
		require.Equal(t, []string{"k0000=v", fmt.Sprintf("k%04d=v", 3*scanRowsMin-1)}, c.list(t, 2, kv.LevelEventual, "k", 1, 2))
	})
}

func TestListingAsksAnotherReplicaWhenOneIsDeadOrLate(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		_, err := c.put(1, "k", "v", nil, 3)
		require.NoError(t, err)
		c.kill(2)
		within(t, time.Millisecond, func() { require.Len(t, c.list(t, 1, kv.LevelEventual, "", 10, 2), 1) })
		c.setLink(1, 2, link{swallow: true})
		within(t, scanHedge*DefaultConfig().HedgeDelay+5*time.Millisecond, func() {
			require.Len(t, c.list(t, 1, kv.LevelEventual, "", 10, 2), 1)
		})
		c.setLink(1, 3, link{swallow: true})
		_, err = c.do(1, time.Second, &kv.Request{Op: kv.OpList, List: &kv.ListQuery{Limit: 10}}, kv.Quorum{R: 2})
		require.Equal(t, kv.CodeDeadlineExceeded, kv.CodeOf(err))
		c.kill(2)
		c.kill(3)
		_, err = c.do(1, time.Second, &kv.Request{Op: kv.OpList, List: &kv.ListQuery{Limit: 10}}, kv.Quorum{R: 2})
		require.Equal(t, kv.CodeQuorumUnavailable, kv.CodeOf(err))
	})
}

// mergeNaively is the dumb twin of mergeScans: a map of everything, cut where some part says nothing any more.
func mergeNaively(parts []ScanReply, limit int) (keys []string, more bool) {
	seen := map[string]bool{}
	bound := ""
	for _, p := range parts {
		for _, r := range p.Rows {
			seen[string(r.Key)] = true
		}
		if p.More {
			more = true
			if last := string(p.Rows[len(p.Rows)-1].Key); bound == "" || last < bound {
				bound = last
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(seen)) {
		if bound != "" && key > bound || len(keys) == limit {
			return keys, true
		}
		keys = append(keys, key)
	}
	return keys, more
}

func TestPagesOfMergedPartsShowEachKeyOnceAndInOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		// Replicas that hold some of the keys each, and parts of them from some key on.
		held := make([][]string, 1+rnd.IntN(4))
		all := map[string]bool{}
		for i := range held {
			for k := range 12 {
				if rnd.IntN(2) == 0 {
					key := string(rune('a' + k))
					held[i] = append(held[i], key)
					all[key] = true
				}
			}
		}
		limit := 1 + rnd.IntN(5)
		var got []string
		after := ""
		for {
			parts := make([]ScanReply, len(held))
			for i, keys := range held {
				part := scanPart{limit: 1 + rnd.IntN(4)}
				for _, key := range keys {
					if key > after && !part.take([]byte(key), ReadReply{}) {
						break
					}
				}
				parts[i] = part.ScanReply
			}
			page, more := mergeScans(parts, limit)
			keys := make([]string, len(page))
			for i := range page {
				keys[i] = string(page[i].key)
			}
			twin, twinMore := mergeNaively(parts, limit)
			require.ElementsMatch(t, twin, keys)
			require.Equal(t, twinMore, more)
			got = append(got, keys...)
			if !more {
				break
			}
			require.NotEmpty(t, page)
			after = string(page[len(page)-1].key)
		}
		require.ElementsMatch(t, slices.Sorted(maps.Keys(all)), got)
		require.True(t, slices.IsSorted(got))
	}
}

func TestScanEndsItsPartAtTheByteLimit(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		for i := range 6 {
			_, err := c.put(1, fmt.Sprint("k", i), string(bytes.Repeat([]byte{'x'}, 400<<10)), nil, 1)
			require.NoError(t, err)
		}
		part, err := c.nodes[1].store.Scan(ScanRequest{Partition: 3, Prefix: []byte("k"), Limit: 100})
		require.NoError(t, err)
		require.True(t, part.More)
		require.Less(t, len(part.Rows), 5)
		require.Len(t, c.list(t, 1, kv.LevelLocal, "k", 100, 0), 6)
	})
}
