package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/redcon"
	"go.uber.org/goleak"

	"github.com/caprockdb/caprock/pkg/kv"
)

// startRESP serves the Redis protocol on loopback until the test ends.
func startRESP(t *testing.T, cfg RESPConfig, node *fakeNode) (s *RESP, addr string) {
	t.Helper()
	s, err := NewRESP(cfg, testDeps(node))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, s.Shutdown(ctx))
		require.NoError(t, <-served)
		goleak.VerifyNone(t)
	})
	return s, l.Addr().String()
}

// respClient is a raw client: it sends bytes and reads replies as they are.
type respClient struct {
	tb testing.TB
	c  net.Conn
	in *bufio.Reader
}

func dialRESP(tb testing.TB, addr string) *respClient {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &respClient{tb, c, bufio.NewReader(c)}
}

func encodeCommand(args ...string) []byte {
	dst := redcon.AppendArray(nil, len(args))
	for _, arg := range args {
		dst = redcon.AppendBulkString(dst, arg)
	}
	return dst
}

func (c *respClient) send(b []byte) {
	c.tb.Helper()
	_, err := c.c.Write(b)
	require.NoError(c.tb, err)
}

// reply reads one reply and returns it in a readable form: +OK, -ERR …, :1, "bulk", nil, [a b].
func (c *respClient) reply() string {
	c.tb.Helper()
	line, err := c.in.ReadString('\n')
	require.NoError(c.tb, err)
	require.True(c.tb, strings.HasSuffix(line, "\r\n"), "%q", line)
	line = strings.TrimSuffix(line, "\r\n")
	n, _ := strconv.Atoi(line[1:])
	switch {
	case (line[0] == '$' || line[0] == '*') && n < 0:
		return "nil"
	case line[0] == '$':
		bulk := make([]byte, n+2)
		_, err := io.ReadFull(c.in, bulk)
		require.NoError(c.tb, err)
		require.Equal(c.tb, "\r\n", string(bulk[n:]))
		return strconv.Quote(string(bulk[:n]))
	case line[0] == '*':
		items := make([]string, n)
		for i := range items {
			items[i] = c.reply()
		}
		return "[" + strings.Join(items, " ") + "]"
	default:
		return line
	}
}

func (c *respClient) do(args ...string) string {
	c.tb.Helper()
	c.send(encodeCommand(args...))
	return c.reply()
}

func TestSetCanExpire(t *testing.T) {
	node := newFakeNode()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	c := dialRESP(t, addr)
	require.Equal(t, "+OK", c.do("SET", "a", "1", "EX", "5"))
	require.Equal(t, "+OK", c.do("SET", "a", "1", "px", "1500"))
	require.Equal(t, 5*time.Second, node.requests[0].TTL)
	require.Equal(t, 1500*time.Millisecond, node.requests[1].TTL)
	require.Equal(t, "+OK", c.do("CONSISTENCY", "eventual"))
	require.Equal(t, "+OK", c.do("SET", "a", "1", "EX", "5"))
	require.Equal(t, kv.LevelEventual, node.requests[2].Level)
	require.Equal(t, 5*time.Second, node.requests[2].TTL)
}

func TestRedisCommands(t *testing.T) {
	node := newFakeNode()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	c := dialRESP(t, addr)
	for _, step := range []struct{ command, reply string }{
		{"PING", "+PONG"},
		{"ping hello", `"hello"`},
		{"PING a b", "-ERR wrong number of arguments for 'ping' command"},
		{"ECHO hi", `"hi"`},
		{"SELECT 0", "+OK"},
		{"SELECT 1", "-ERR DB index is out of range"},
		{"SELECT x", "-ERR value is not an integer or out of range"},
		{"GET a", "nil"},
		{"STRLEN a", ":0"},
		{"SET a 1", "+OK"},
		{"Get a", `"1"`},
		{"STRLEN a", ":1"},
		{"EXISTS a b a", ":2"},
		{"MSET a 1 b 2 a 3", "+OK"},
		{"MGET a nope b", `["3" nil "2"]`},
		{"DEL a a b nope", ":2"},
		{"MGET a b", `[nil nil]`},
		{"MSET a", "-ERR wrong number of arguments for 'mset' command"},
		{"MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"},
		{"GET", "-ERR wrong number of arguments for 'get' command"},
		{"GET a b", "-ERR wrong number of arguments for 'get' command"},
		{"SET a", "-ERR wrong number of arguments for 'set' command"},
		{"SET a 1 EX", "-ERR syntax error"},
		{"SET a 1 EX 0", "-ERR invalid expire time in 'set' command"},
		{"SET a 1 EX soon", "-ERR invalid expire time in 'set' command"},
		{"SET a 1 PX 9223372036854775807", "-ERR invalid expire time in 'set' command"},
		{"SET a 1 sideways", "-ERR syntax error"},
		{"EXISTS a", ":0"},
		{"LPUSH a", "-ERR unknown command 'LPUSH'"},
		{"CONSISTENCY", `"default"`},
		{"CONSISTENCY eventual", "+OK"},
		{"CONSISTENCY", `"eventual"`},
		{"SET a 1", "+OK"},
		{"CONSISTENCY EVENTUAL x", "-ERR wrong number of arguments for 'consistency' command"},
		{"CONSISTENCY sometimes", `-UNKNOWN_CONSISTENCY unknown consistency level "sometimes"; the levels are strong, eventual, local, causal, bounded`},
		{"CONSISTENCY bounded", "+OK"},
		{"CONSISTENCY", `"bounded 5s"`},
		{"CONSISTENCY bounded 500ms", "+OK"},
		{"CONSISTENCY", `"bounded 500ms"`},
		{"CONSISTENCY bounded 0", "-BAD_REQUEST max-staleness=0 is out of range: it is 1ms to 1h0m0s; an answer that is not stale at all is level strong's"},
		{"CONSISTENCY", `"bounded 500ms"`},
		{"SET a 1", "-BAD_REQUEST level bounded is for reads: a put goes with strong, eventual, local or causal"},
		{"CONSISTENCY Default", "+OK"},
		{"CONSISTENCY", `"default"`},
		{"CONFIG GET save", `["save" ""]`},
		{"CONFIG GET nope", `[]`},
		{"CONFIG GET d* time*", `["databases" "1" "timeout" "600"]`},
		{"CONFIG SET save x", "-ERR CONFIG SET is not supported"},
		{"CONFIG GET", "-ERR wrong number of arguments for 'config|get' command"},
		{"COMMAND COUNT", ":36"},
		{"COMMAND DOCS", "[]"},
		{"COMMAND INFO get nope", `[["get" :2 [+readonly +fast] :1 :1 :1] nil]`},
		{"COMMAND NOPE", "-ERR unknown subcommand 'NOPE' of COMMAND"},
		{"HELLO 3", "-NOPROTO unsupported protocol version"},
		{"HELLO x", "-ERR Protocol version is not an integer or out of range"},
		{"HELLO 2 AUTH u p", "-ERR HELLO option 'AUTH' is not supported"},
		{"HELLO 2", `["server" "caprock" "version" "7.0.0" "node" "n1" "mode" "standalone" "role" "master" "proto" :2 "modules" []]`},
	} {
		require.Equal(t, step.reply, c.do(strings.Fields(step.command)...), step.command)
	}
	require.Contains(t, c.do("INFO"), "redis_version:7.0.0")
	require.Contains(t, c.do("INFO", "clients"), "connected_clients:1")
	require.NotContains(t, c.do("INFO", "clients"), "redis_version")
	require.Contains(t, c.do("COMMAND"), `["set" :-3 [+write] :1 :1 :1]`)
	require.Equal(t, `-ERR unknown command '?a???b'`, c.do("\x00a\r\n'b"))
	require.Equal(t, "+OK", c.do("QUIT"))
	_, err := c.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)

	require.Equal(t, []string{"a", "a", "b", "a", "b", "nope", "a"}, sortedRuns(node.writes), "MSET writes a key once, DEL deletes it once")
	var eventual int
	for _, r := range node.requests {
		if r.Level == kv.LevelEventual {
			eventual++
		}
	}
	require.Equal(t, 1, eventual, "the level is the connection's, until it is changed back")
}

// sortedRuns sorts the keys that one MSET and one DEL wrote, which they do in any order.
func sortedRuns(writes []string) []string {
	slices.Sort(writes[1:3]) // MSET, after a SET
	slices.Sort(writes[3:6]) // DEL
	return writes
}

func TestRedisIsBinarySafe(t *testing.T) {
	node := newFakeNode()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	c := dialRESP(t, addr)
	value := make([]byte, kv.ValueBytesMax)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range value {
		value[i] = byte(rnd.Uint32())
	}
	for key, value := range map[string]string{
		"\x00\r\n\xff": "\r\n$-1\r\n", "k": "", "big": string(value), strings.Repeat("k", kv.KeyBytesMax): "x",
	} {
		require.Equal(t, "+OK", c.do("SET", key, value))
		require.Equal(t, strconv.Quote(value), c.do("GET", key))
	}
	require.Equal(t, "-KEY_TOO_LARGE the key has 4097 bytes; the limit is 4096", c.do("GET", strings.Repeat("k", kv.KeyBytesMax+1)))
	require.Equal(t, "-VALUE_TOO_LARGE the value has 1048577 bytes; the limit is 1048576", c.do("SET", "k", string(value)+"x"))
	require.Equal(t, "-BAD_REQUEST the key is empty; a key has 1 to 4096 bytes", c.do("SET", "", "x"))
	require.Equal(t, "+PONG", c.do("PING"), "the connection goes on")
}

// TestRedisPipelines sends many commands in pieces of random size and expects the replies in order.
func TestRedisPipelines(t *testing.T) {
	_, addr := startRESP(t, DefaultRESPConfig(), newFakeNode())
	c := dialRESP(t, addr)
	const commands = 2_000
	var sent []byte
	for i := range commands {
		sent = append(sent, encodeCommand("SET", "k"+strconv.Itoa(i%7), strconv.Itoa(i))...)
		sent = append(sent, encodeCommand("GET", "k"+strconv.Itoa(i%7))...)
		sent = append(sent, "PING\r\n\r\n"...)
	}
	go func() {
		rnd := rand.New(rand.NewPCG(2, 2))
		for len(sent) > 0 {
			n := min(len(sent), 1+rnd.IntN(5_000))
			if _, err := c.c.Write(sent[:n]); err != nil {
				return
			}
			sent = sent[n:]
		}
	}()
	for i := range commands {
		require.Equal(t, "+OK", c.reply())
		require.Equal(t, strconv.Quote(strconv.Itoa(i)), c.reply())
		require.Equal(t, "+PONG", c.reply())
	}
}

func TestRedisInlineCommands(t *testing.T) {
	_, addr := startRESP(t, DefaultRESPConfig(), newFakeNode())
	c := dialRESP(t, addr)
	c.send([]byte("SET \"a b\" 'c\\'d'\n  GET \"a b\"\r\nPING\n*0\r\n*-1\r\n\nPING\n"))
	for _, reply := range []string{"+OK", `"c'd"`, "+PONG", "+PONG"} {
		require.Equal(t, reply, c.reply())
	}
}

func TestRedisProtocolViolationsEndTheConnection(t *testing.T) {
	cfg := DefaultRESPConfig()
	cfg.CommandBytesMax = cfg.BulkBytesMax
	_, addr := startRESP(t, cfg, newFakeNode())
	for sent, reply := range map[string]string{
		"*1\r\n$9223372036854775807\r\n": "invalid bulk length",
		"*9223372036854775807\r\n":       "invalid multibulk length",
		"*99999999\r\n":                  "invalid multibulk length",
		"*x\r\n":                         "invalid multibulk length",
		"*1\r\n$-1\r\n":                  "invalid bulk length",
		"*1\r\n$4194305\r\n":             "invalid bulk length",
		"*1\r\n:1\r\n":                   "expected '$'",
		"*1\r\n\r\n":                     "expected '$'",
		"*1\r\n$4\r\nPINGxx":             "ends with CR LF",
		"$4\r\nPING\r\n":                 "inline command",
		"GET \"a\r\n":                    "unbalanced quotes",
		strings.Repeat("x", respBufferBytes+1) + "\r\n": "too big inline request",
		"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4194302\r\n":    "invalid bulk length (the limit is 4194300 bytes)",
	} {
		c := dialRESP(t, addr)
		c.send(append(encodeCommand("PING"), sent...))
		require.Equal(t, "+PONG", c.reply(), "what came before is answered")
		require.Contains(t, c.reply(), reply, "%.40q", sent)
		_, err := c.in.ReadByte()
		require.Error(t, err)
	}
}

func TestRedisLimits(t *testing.T) {
	cfg := DefaultRESPConfig()
	cfg.KeysMax, cfg.ConnectionsMax, cfg.IdleTimeout, cfg.ReplyBytesMax = 3, 2, 200*time.Millisecond, 10
	_, addr := startRESP(t, cfg, newFakeNode())
	first, second := dialRESP(t, addr), dialRESP(t, addr)
	require.Equal(t, "+PONG", first.do("PING"))
	require.Equal(t, "+PONG", second.do("PING"))
	require.Equal(t, "-ERR max number of clients reached", dialRESP(t, addr).reply())

	for _, command := range []string{"MGET a b c d", "DEL a b c d", "EXISTS a b c d", "MSET a 1 b 2 c 3 d 4"} {
		require.Equal(t, "-ERR too many keys: 4 in one command, the limit is 3", first.do(strings.Fields(command)...))
	}
	require.Equal(t, "+OK", first.do("MSET", "a", "123456", "b", "123456", "c", "1"))
	require.Contains(t, first.do("MGET", "a", "b", "c"), "exceed 10 bytes")

	start := time.Now()
	_, err := second.in.ReadByte()
	require.ErrorIs(t, err, io.EOF, "an idle client is disconnected")
	require.Less(t, time.Since(start), 10*time.Second)
}

func TestRedisErrorsSayTheirCodeAndOutcome(t *testing.T) {
	node := newFakeNode()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	c := dialRESP(t, addr)
	failure := error(kv.Errorf(kv.CodeQuorumUnavailable, "1 of 2\r\nacks").WithOutcome(kv.OutcomeUnknown))
	node.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		if string(r.Key) == "good" {
			return kv.Response{Found: true, Level: kv.LevelStrong, Value: []byte("v")}, nil
		}
		return kv.Response{}, failure
	}
	for _, step := range []struct{ command, reply string }{
		{"SET k v", "-QUORUM_UNAVAILABLE 1 of 2  acks (outcome unknown)"},
		{"GET k", "-QUORUM_UNAVAILABLE 1 of 2  acks"},
		{"STRLEN k", "-QUORUM_UNAVAILABLE 1 of 2  acks"},
		{"MGET good k", "-QUORUM_UNAVAILABLE 1 of 2  acks"},
		{"EXISTS good k", "-QUORUM_UNAVAILABLE 1 of 2  acks"},
		{"DEL k", "-QUORUM_UNAVAILABLE 1 of 2  acks (outcome unknown)"},
		{"DEL good k", "-QUORUM_UNAVAILABLE 1 of 2  acks (outcome unknown) (DEL was applied to 1 of 2 keys)"},
		{"MSET good 1 k 2 j 3", "-QUORUM_UNAVAILABLE 1 of 2  acks (outcome unknown) (MSET was applied to 1 of 3 keys)"},
	} {
		require.Equal(t, step.reply, c.do(strings.Fields(step.command)...), step.command)
	}
	failure = errors.New("disk on fire")
	require.Equal(t, "-INTERNAL disk on fire (outcome unknown)", c.do("SET", "k", "v"))
}

func TestRedisPanicEndsOnlyItsConnection(t *testing.T) {
	node := newFakeNode()
	_, addr := startRESP(t, DefaultRESPConfig(), node)
	c, other := dialRESP(t, addr), dialRESP(t, addr)
	node.execute = func(context.Context, *kv.Request) (kv.Response, error) { panic("a bug") }
	c.send(encodeCommand("MGET", "a", "b"))
	_, err := c.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, "+PONG", other.do("PING"))
}

func TestRedisShutdownFinishesWhatArrived(t *testing.T) {
	node := newFakeNode()
	s, addr := startRESP(t, DefaultRESPConfig(), node)
	entered, release := make(chan struct{}, 10), make(chan struct{})
	node.execute = func(_ context.Context, r *kv.Request) (kv.Response, error) {
		entered <- struct{}{}
		<-release
		return kv.Response{Level: kv.LevelStrong, Outcome: kv.OutcomeApplied}, nil
	}
	busy, idle, half := dialRESP(t, addr), dialRESP(t, addr), dialRESP(t, addr)
	require.Equal(t, "+PONG", idle.do("PING"))
	half.send(append(encodeCommand("PING"), "*2\r\n$3\r\nGET\r\n$1"...))
	require.Equal(t, "+PONG", half.reply())
	busy.send(append(encodeCommand("SET", "a", "1"), encodeCommand("SET", "b", "2")...))
	<-entered
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	for _, c := range []*respClient{idle, half} {
		_, err := c.in.ReadByte()
		require.ErrorIs(t, err, io.EOF)
	}
	_, err := net.DialTimeout("tcp", addr, time.Second)
	require.Error(t, err, "nobody new is let in")
	close(release)
	require.Equal(t, "+OK", busy.reply())
	require.Equal(t, "+OK", busy.reply(), "a pipelined command that had arrived is finished too")
	require.NoError(t, <-down)
}

func TestRedisShutdownCutsWhatDoesNotFinishInTime(t *testing.T) {
	node := newFakeNode()
	s, addr := startRESP(t, DefaultRESPConfig(), node)
	entered := make(chan struct{})
	node.execute = func(ctx context.Context, _ *kv.Request) (kv.Response, error) {
		close(entered)
		<-ctx.Done()
		return kv.Response{}, ctx.Err()
	}
	c := dialRESP(t, addr)
	c.send(encodeCommand("GET", "a"))
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
}
