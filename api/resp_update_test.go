package api

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// converse sends commands, words separated by spaces, and checks the replies.
func converse(t *testing.T, c *respClient, steps [][2]string) {
	t.Helper()
	for _, step := range steps {
		require.Equal(t, step[1], c.do(strings.Fields(step[0])...), step[0])
	}
}

// connect starts a front of the node and connects to it.
func connect(t *testing.T, node *fakeNode) *respClient {
	t.Helper()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	return dialRESP(t, addr)
}

func TestSetOptionsOfRedis(t *testing.T) {
	node := newFakeNode()
	c := connect(t, node)
	converse(t, c, [][2]string{
		{"SET a 1 XX", "nil"},
		{"SET a 1 NX", "+OK"},
		{"SET a 2 nx", "nil"},
		{"SET a 2 XX", "+OK"},
		{"SET a 3 GET", `"2"`},
		{"SET b 1 GET", "nil"},
		{"SET b 2 NX GET", `"1"`},
		{"GET b", `"1"`},
		{"SET c 1 GET XX", "nil"},
		{"EXISTS c", ":0"},
		{"SET c 1 GET NX", "nil"},
		{"GET c", `"1"`},
		{"SET a 4 EX 100 XX", "+OK"},
		{"TTL a", ":100"},
		{"SET a 5 KEEPTTL", "+OK"},
		{"TTL a", ":100"},
		{"GET a", `"5"`},
		{"SET a 6", "+OK"},
		{"TTL a", ":-1"},
		{"SET a 7 KEEPTTL GET", `"6"`},
		{"TTL a", ":-1"},
		{"SET new 1 KEEPTTL", "+OK"},
		{"SET a 8 EXAT 1", "+OK"},
		{"EXISTS a", ":0"},
		{"SET a 9 PXAT 33333333333000", "-ERR invalid expire time in 'set' command"},
		{"SET a 1 NX XX", "-ERR syntax error"},
		{"SET a 1 EX 5 PX 5", "-ERR syntax error"},
		{"SET a 1 EX 5 KEEPTTL", "-ERR syntax error"},
		{"SET a 1 EXAT", "-ERR syntax error"},
		{"SET a 1 EXAT -1", "-ERR invalid expire time in 'set' command"},
		{"SETNX a 1", ":1"},
		{"SETNX a 2", ":0"},
		{"GETSET a 3", `"1"`},
		{"GETSET nope 1", "nil"},
		{"GETDEL a", `"3"`},
		{"GETDEL a", "nil"},
		{"SETEX a 50 1", "+OK"},
		{"TTL a", ":50"},
		{"PSETEX a 50000 1", "+OK"},
		{"TTL a", ":50"},
		{"SETEX a 0 1", "-ERR invalid expire time in 'setex' command"},
	})
	at := strconv.FormatInt(fakeTime.Add(100*time.Second).Unix(), 10)
	require.Equal(t, "+OK", c.do("SET", "at", "1", "EXAT", at))
	require.Equal(t, ":"+at, c.do("EXPIRETIME", "at"))
}

func TestExpiryCommandsOfRedis(t *testing.T) {
	converse(t, connect(t, newFakeNode()), [][2]string{
		{"TTL a", ":-2"},
		{"PTTL a", ":-2"},
		{"EXPIRE a 10", ":0"},
		{"PERSIST a", ":0"},
		{"SET a 1", "+OK"},
		{"TTL a", ":-1"},
		{"EXPIRETIME a", ":-1"},
		{"PERSIST a", ":0"},
		{"EXPIRE a 100", ":1"},
		{"TTL a", ":100"},
		{"GET a", `"1"`},
		{"EXPIRE a 50 NX", ":0"},
		{"EXPIRE a 50 GT", ":0"},
		{"EXPIRE a 200 LT", ":0"},
		{"EXPIRE a 200 GT", ":1"},
		{"EXPIRE a 80 lt", ":1"},
		{"EXPIRE a 90 XX", ":1"},
		{"TTL a", ":90"},
		{"PERSIST a", ":1"},
		{"TTL a", ":-1"},
		{"EXPIRE a 9 XX", ":0"},
		{"EXPIRE a 9 GT", ":0"},
		{"PEXPIRE a 70000", ":1"},
		{"TTL a", ":70"},
		{"EXPIREAT a 1", ":1"},
		{"EXISTS a", ":0"},
		{"SET a 1", "+OK"},
		{"EXPIRE a 0", ":1"},
		{"EXISTS a", ":0"},
		{"SET a 1", "+OK"},
		{"PEXPIREAT a -5", ":1"},
		{"GET a", "nil"},
		{"EXPIRE a soon", "-ERR value is not an integer or out of range"},
		{"EXPIRE a 1 SIDEWAYS", "-ERR unsupported option SIDEWAYS"},
		{"EXPIRE a 9223372036854775807", "-ERR invalid expire time in 'expire' command"},
	})
}

func TestCountersOfRedis(t *testing.T) {
	converse(t, connect(t, newFakeNode()), [][2]string{
		{"INCR n", ":1"},
		{"INCRBY n 41", ":42"},
		{"DECR n", ":41"},
		{"DECRBY n 50", ":-9"},
		{"GET n", `"-9"`},
		{"INCRBY n 9223372036854775807", ":9223372036854775798"},
		{"INCRBY n 10", "-ERR increment or decrement would overflow"},
		{"INCRBY n x", "-ERR value is not an integer or out of range"},
		{"DECRBY n -9223372036854775808", "-ERR decrement would overflow"},
		{"SET n 01", "+OK"},
		{"INCR n", "-ERR value is not an integer or out of range"},
		{"SET n 1 EX 100", "+OK"},
		{"INCR n", ":2"},
		{"TTL n", ":100"},
		{"APPEND n 5", ":2"},
		{"TTL n", ":100"},
		{"GET n", `"25"`},
		{"APPEND m ab", ":2"},
		{"APPEND m c", ":3"},
		{"GET m", `"abc"`},
	})
}

func TestIncrementsOfManyConnectionsAreAllCounted(t *testing.T) {
	node := newFakeNode()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	const clients, each = 8, 50
	var wg sync.WaitGroup
	for range clients {
		c := dialRESP(t, addr)
		wg.Go(func() {
			for range each {
				if r := c.do("INCR", "n"); r[0] != ':' {
					t.Error(r)
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, fmt.Sprintf("%q", strconv.Itoa(clients*each)), dialRESP(t, addr).do("GET", "n"))
}

func TestCommandsThatDependOnWhatIsThereNeedLevelStrong(t *testing.T) {
	node := newFakeNode()
	c := connect(t, node)
	require.Equal(t, "+OK", c.do("SET", "a", "1"))
	require.Equal(t, "+OK", c.do("CONSISTENCY", "eventual"))
	for _, command := range []string{"INCR a", "APPEND a 1", "SET a 1 NX", "SET a 1 GET", "SETNX a 1", "EXPIRE a 5", "PERSIST a", "GETDEL a"} {
		require.Contains(t, c.do(strings.Fields(command)...), "-CONDITION_NEEDS_STRONG", command)
	}
	require.Equal(t, `"1"`, c.do("GET", "a"))
}

func TestUpdatesStartAnewUntilNobodyIsQuickerAndSayWhatIsNotKnown(t *testing.T) {
	node := newFakeNode()
	writes, known := 0, true
	node.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		if r.Op == kv.OpGet {
			return kv.Response{Found: true, Level: kv.LevelStrong, Value: []byte("1"), Version: uint64(writes + 1)}, nil
		}
		writes++
		switch {
		case !known:
			return kv.Response{}, kv.Errorf(kv.CodeDeadlineExceeded, "too late").WithOutcome(kv.OutcomeUnknown)
		case writes < 5:
			return kv.Response{}, kv.Errorf(kv.CodeVersionMismatch, "too slow")
		}
		return kv.Response{Level: kv.LevelStrong, Outcome: kv.OutcomeApplied}, nil
	}
	c := connect(t, node)
	require.Equal(t, ":2", c.do("INCR", "a"))
	require.Equal(t, 5, writes)

	known = false
	require.Equal(t, "-DEADLINE_EXCEEDED too late (outcome unknown)", c.do("INCR", "a"))
	require.Equal(t, 6, writes, "what may have been applied is not tried again")

	writes, known = -1000, true
	require.Contains(t, c.do("INCR", "a"), "-VERSION_MISMATCH others wrote the key first")
}

func TestScanShowsEveryKeyOnce(t *testing.T) {
	node := newFakeNode()
	c := connect(t, node)
	var want []string
	for i := range 25 {
		key := fmt.Sprintf("k%02d", i)
		want = append(want, strconv.Quote(key))
		require.Equal(t, "+OK", c.do("SET", key, "1"))
	}
	require.Equal(t, "+OK", c.do("SET", "other", "1"))
	var got []string
	cursor := "0"
	for pages := 0; pages == 0 || cursor != "0"; pages++ {
		require.Less(t, pages, 5)
		reply := c.do("SCAN", cursor, "MATCH", "k*", "COUNT", "7")
		next, keys, ok := strings.Cut(strings.TrimPrefix(reply, `["`), `" [`)
		require.True(t, ok, reply)
		cursor = next
		got = append(got, strings.Fields(strings.TrimSuffix(keys, "]]"))...)
	}
	require.Equal(t, want, got)
	converse(t, c, [][2]string{
		{"SCAN 0 MATCH oth?r", `["0" ["other"]]`},
		{"SCAN 0 TYPE list", `["0" []]`},
		{"SCAN 0 TYPE string MATCH o*", `["0" ["other"]]`},
		{"SCAN 77777", "-ERR invalid cursor: this node does not know it (any more)"},
		{"SCAN x", "-ERR invalid cursor"},
		{"SCAN 0 COUNT", "-ERR syntax error"},
		{"SCAN 0 COUNT 0", "-ERR value is not an integer or out of range"},
		{"SCAN 0 UP 1", "-ERR syntax error"},
	})
}

func TestPatternsMatchAsInRedis(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"h?llo", "hello", true},
		{"h?llo", "hllo", false},
		{"h*llo", "heeello", true},
		{"h[ae]llo", "hallo", true},
		{"h[ae]llo", "hillo", false},
		{"h[^e]llo", "hallo", true},
		{"h[^e]llo", "hello", false},
		{"h[a-b]llo", "hbllo", true},
		{"h[b-a]llo", "hallo", true},
		{"h[a-b]llo", "hcllo", false},
		{`\*`, "*", true},
		{`\*`, "a", false},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "aXbY", false},
		{"a/*", "a/b/c", true},
		{"*a", "aaab", false},
		{"[", "a", false},
		{"[a", "a", true},
		{`[\]]`, "]", true},
		{"**", "x", true},
		{strings.Repeat("*a", 30) + "b", strings.Repeat("a", 3000), false},
	} {
		require.Equal(t, c.want, matches(c.pattern, c.text), "%q %q", c.pattern, c.text)
	}
	require.Equal(t, "user:", literalPrefix("user:*"))
	require.Equal(t, "a", literalPrefix(`a\*`))
}

func TestScanCursorsAreBounded(t *testing.T) {
	s := newScanCursors()
	for i := range 3 * scanCursorsMax {
		require.NotZero(t, s.keep([]byte(strconv.Itoa(i))))
	}
	require.Len(t, s.after, scanCursorsMax)
	after, ok := s.find(s.last)
	require.True(t, ok)
	require.Equal(t, strconv.Itoa(3*scanCursorsMax-1), string(after))
}
