package quorum

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func TestSiblingsNeverExceedTheWritersThatWereConcurrent(t *testing.T) {
	// Two clients put a key in turns a thousand times each, every one with the context of what it last read, which by
	// then the other has replaced.
	for _, at := range [][2]kv.NodeID{{1, 1}, {1, 2}} {
		t.Run(fmt.Sprintf("through nodes %d and %d", at[0], at[1]), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				c.keeps = true
				var contexts [2][]byte
				for i := range 1000 {
					for client := range contexts {
						res, err := c.get(at[client], "k", 2)
						require.NoError(t, err)
						require.LessOrEqual(t, len(res.Siblings), 2, "round %d", i)
						contexts[client] = res.Context
					}
					for client, context := range contexts {
						_, err := c.put(at[client], "k", fmt.Sprintf("%d of client %d", i, client), context, 3)
						require.NoError(t, err)
					}
				}
				res, err := c.get(3, "k", 3)
				require.NoError(t, err)
				require.Len(t, res.Siblings, 2, "both last writes are there")
			})
		})
	}
}

func TestBlindWritersOfAResolverThatDecidesLeaveFewSiblings(t *testing.T) {
	expr, err := NewExpr("a.value >= b.value")
	require.NoError(t, err)
	for _, r := range []Resolver{Extreme{}, Extreme{Least: true}, Union{}, Counter{}, expr} {
		t.Run(r.Name(), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				c.resolves = r
				for i := range 300 {
					value := strconv.Itoa(i)
					if r.Name() == kv.ResolverUnion {
						value = "[" + value + "]"
					}
					_, err := c.put(kv.NodeID(1+i%3), "k", value, nil, 1)
					require.NoError(t, err)
					require.LessOrEqual(t, len(c.nodes[1].held("k").Siblings), 3)
				}
			})
		})
	}
}

func TestSiblingsBeyondTheLimitAreRefusedAndAReadHelps(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		for i := range 64 {
			_, err := c.put(1, "k", strconv.Itoa(i), nil, 2)
			require.NoError(t, err)
		}
		_, err := c.put(1, "k", "one more", nil, 2)
		require.Equal(t, kv.CodeSiblings, kv.CodeOf(err))
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		require.ErrorContains(t, err, "64 concurrent versions")
		res, err := c.get(1, "k", 2)
		require.NoError(t, err)
		require.Len(t, res.Siblings, 64)
		_, err = c.put(1, "k", "all of them", res.Context, 2)
		require.NoError(t, err)
		res, err = c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "all of them", string(res.Value))
	})
}

// TestCountersCountEachIncrementOnceUnderFaults adds through all nodes while links lose messages and replies, and the power of
// each node goes once.
func TestCountersCountEachIncrementOnceUnderFaults(t *testing.T) {
	for seed := range uint64(20) {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			c.resolves = Counter{}
			least, most := 0, 0
			cut := map[kv.NodeID]bool{}
			for range 150 {
				at := kv.NodeID(1 + rnd.IntN(3))
				switch rnd.IntN(12) {
				case 0:
					c.setLink(at, 1+at%3, link{swallow: rnd.IntN(2) == 0, dropReply: true})
				case 1, 2:
					c.setLink(at, 1+at%3, link{twice: time.Duration(rnd.IntN(50)) * time.Millisecond})
				case 3:
					if !cut[at] && rnd.IntN(3) == 0 {
						cut[at] = true
						c.powerCut(at)
					}
				}
				by := 1 + rnd.IntN(9)
				_, err := c.do(at, 50*time.Millisecond, &kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte(strconv.Itoa(by))}, kv.Quorum{W: 1 + rnd.IntN(3)})
				switch {
				case err == nil:
					least, most = least+by, most+by
				case kv.AsError(err).Outcome == kv.OutcomeUnknown:
					most += by
				}
			}
			for id := range c.nodes {
				c.setLink(id, 1+id%3, link{})
			}
			time.Sleep(10 * time.Second)
			for round := range 2 {
				for id := kv.NodeID(1); id <= 3; id++ {
					res, err := c.get(id, "k", 3)
					require.NoError(t, err)
					got, err := strconv.Atoi(string(res.Value))
					require.NoError(t, err)
					require.GreaterOrEqual(t, got, least, "seed %d: an acknowledged increment was lost", seed)
					require.LessOrEqual(t, got, most, "seed %d: an increment was counted twice", seed)
				}
				if round == 0 {
					synctest.Wait()
				}
			}
			set := c.node(1).held("k")
			require.LessOrEqual(t, len(talliesOf(new(Counter{}.Resolve(set.Siblings)))), 6, "tallies do not grow with writes")
		})
	}
}

func TestEventualValueIsGoneTheMomentItExpires(t *testing.T) {
	for _, r := range []Resolver{LWW{}, Siblings{}, Extreme{}} {
		t.Run(r.Name(), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				c.resolves = r
				c.kill(3) // it learns of the value, with its expiry, from a repair
				start := time.Now()
				_, err := c.do(1, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte("v"), TTL: time.Minute}, kv.Quorum{W: 2})
				require.NoError(t, err)
				for from := range c.nodes {
					c.setLink(from, 3, link{})
				}
				read := func(at kv.NodeID, n int) kv.Response {
					res, err := c.get(at, "k", n)
					require.NoError(t, err)
					return res
				}
				res := read(2, 3)
				require.Equal(t, "v", string(res.Value))
				require.WithinDuration(t, start.Add(time.Minute), res.Expires, 10*time.Millisecond)
				time.Sleep(time.Second)
				require.Equal(t, c.nodes[1].held("k"), c.nodes[3].held("k"), "the repair brought it as it is")

				time.Sleep(time.Until(start.Add(time.Minute - 50*time.Millisecond)))
				require.True(t, read(3, 1).Found)
				time.Sleep(100 * time.Millisecond)
				for at := kv.NodeID(1); at <= 3; at++ {
					for n := 1; n <= 3; n++ {
						res := read(at, n)
						require.False(t, res.Found, "an expired value is read")
						require.Empty(t, res.Value)
						require.Empty(t, res.Siblings)
					}
				}
				del, err := c.del(1, "k", res.Context, 2)
				require.NoError(t, err)
				require.False(t, del.Found, "what has expired is not there to delete")
			})
		})
	}
}

func TestExpiredSiblingsAreDeletedOnes(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		for i, ttl := range []time.Duration{time.Second, 0, time.Hour} {
			_, err := c.do(1, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: fmt.Append(nil, i), TTL: ttl}, kv.Quorum{W: 3})
			require.NoError(t, err)
		}
		time.Sleep(2 * time.Second)
		res, err := c.get(2, "k", 2)
		require.NoError(t, err)
		require.Len(t, res.Siblings, 3)
		require.True(t, res.Siblings[0].Deleted)
		require.Empty(t, res.Siblings[0].Value)
		require.Equal(t, "1", string(res.Siblings[1].Value))
		time.Sleep(2 * time.Hour)
		res, err = c.get(2, "k", 2)
		require.NoError(t, err)
		require.Len(t, res.Siblings, 3)
		require.True(t, res.Siblings[2].Deleted)
	})
}

func TestLowerStampOfAnEarlierValueDoesNotComeBackWhenALaterOneExpires(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		_, err := c.put(1, "k", "old", nil, 3)
		require.NoError(t, err)
		_, err = c.do(2, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte("new"), TTL: time.Second}, kv.Quorum{W: 3})
		require.NoError(t, err)
		time.Sleep(2 * time.Second)
		res, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.False(t, res.Found)
	})
}

func TestFoldedValueLivesAsLongAsTheLongestLivedOfItsParts(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.resolves = Extreme{}
		put := func(value string, ttl time.Duration) {
			_, err := c.do(1, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte("k"), Value: []byte(value), TTL: ttl}, kv.Quorum{W: 3})
			require.NoError(t, err)
		}
		put("9", time.Minute)
		put("5", time.Second)
		time.Sleep(30 * time.Second)
		res, err := c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "9", string(res.Value))
		time.Sleep(31 * time.Second)
		put("3", 0)
		res, err = c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "3", string(res.Value), "what has expired is not taken in")
	})
}

func TestExpressionDecidesBetweenConcurrentVersionsOnly(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		expr, err := NewExpr(`a.value.size() >= b.value.size() ? a.value : b.value`)
		require.NoError(t, err)
		c.resolves = expr
		_, err = c.put(1, "k", "a long value", nil, 3)
		require.NoError(t, err)
		_, err = c.put(1, "k", "short", nil, 3)
		require.NoError(t, err)
		res, err := c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "short", string(res.Value), "a blind write covers what its coordinator holds")

		for i, value := range []string{"left", "right one", "up"} {
			_, err = c.put(kv.NodeID(i+1), "k", value, res.Context, 3)
			require.NoError(t, err)
		}
		res, err = c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "right one", string(res.Value))
		require.Len(t, c.nodes[1].held("k").Siblings, 3)
		require.Zero(t, res.Siblings, "the resolver has decided")
	})
}

func TestExpressionsThatCannotBeAreRefusedWhenSet(t *testing.T) {
	for source, complaint := range map[string]string{
		"a.value >":                       "Syntax error",
		"a.size":                          "undeclared",
		"c.value == a.value":              "undeclared",
		"a.value + 1":                     "no matching overload",
		"a.node":                          "int",
		"[a.value]":                       "list",
		"[1, 2].all(x, x > 0)":            "undeclared",
		strings.Repeat("(", 200) + "true": "",
		`a.value == "` + strings.Repeat("x", kv.ExprBytesMax) + `"`: "limit",
	} {
		_, err := NewExpr(source)
		require.Equal(t, kv.CodeBadRequest, kv.CodeOf(err), source)
		require.ErrorContains(t, err, complaint, source)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestExpressionThatFailsLeavesTheLaterVersion(t *testing.T) {
	version := func(node kv.NodeID, at causal.HLC, value string) causal.Sibling {
		d := causal.Dot{Node: node, Time: at}
		return causal.Sibling{ID: d, Dot: d, Stamp: causal.Stamp{Time: at, Node: node}, Value: []byte(value)}
	}
	number, err := NewExpr(`int(a.value) > int(b.value)`)
	require.NoError(t, err)
	require.Equal(t, "7", string(number.Resolve([]causal.Sibling{version(1, 1, "7"), version(2, 2, "5")}).Value))
	require.Equal(t, "x", string(number.Resolve([]causal.Sibling{version(1, 1, "7"), version(2, 2, "x")}).Value))

	big := strings.Repeat("a", kv.ValueBytesMax)
	costly, err := NewExpr(`(a.value + a.value + a.value + a.value + a.value).contains(b.value + b.value)`)
	require.NoError(t, err)
	require.Equal(t, kv.NodeID(2), costly.Resolve([]causal.Sibling{version(1, 1, big), version(2, 2, big)}).Dot.Node)
	both, err := NewExpr(`a.value + b.value`)
	require.NoError(t, err)
	require.Equal(t, "ab", string(both.Resolve([]causal.Sibling{version(2, 2, "b"), version(1, 1, "a")}).Value), "in the order of stamps")
	require.Equal(t, big, string(both.Resolve([]causal.Sibling{version(1, 1, "a"), version(2, 2, big)}).Value), "what is too large is no value")
}

func TestBlindFoldTakesInTheStrongValue(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.resolves = Counter{}
		stamp := causal.Stamp{Base: causal.Position{Term: 1, Index: 1}, Time: causal.MakeHLC(time.Now().UnixMilli(), 0), Node: 1}
		for _, n := range c.nodes {
			n.strong("k", storage.Strong{Value: []byte("40"), Revision: 1, Stamp: stamp})
		}
		for id := kv.NodeID(1); id <= 2; id++ {
			_, err := c.put(id, "k", "1", nil, 3)
			require.NoError(t, err)
		}
		res, err := c.get(3, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "42", string(res.Value))
	})
}
