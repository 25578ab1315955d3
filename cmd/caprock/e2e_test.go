package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEveryNodeServesEveryLevel(t *testing.T) {
	start := time.Now()
	c := startCluster(t)
	// The promise is 5 s on an idle machine; a shared one gets some room.
	require.Less(t, time.Since(start), 10*time.Second, "the cluster was not ready in time")

	for i, writer := range c.nodes {
		strong := fmt.Sprintf("/kv/strong-%d", i)
		a := c.do(writer, 200, http.MethodPut, strong+"?consistency=strong", "s"+itoa(i))
		require.Equal(t, "strong", a.body["consistency"])
		require.Equal(t, "applied", a.body["outcome"])
		require.Positive(t, versionOf(t, a))
		require.Equal(t, "strong", a.header.Get("Caprock-Consistency"))

		eventual := fmt.Sprintf("/kv/eventual-%d", i)
		a = c.do(writer, 200, http.MethodPut, eventual+"?consistency=eventual&w=2", "e"+itoa(i))
		require.Equal(t, "eventual", a.body["consistency"])
		require.GreaterOrEqual(t, a.body["acks"], 2.0)

		local := fmt.Sprintf("/kv/local-%d", i)
		a = c.do(writer, 200, http.MethodPut, local+"?consistency=local", "l"+itoa(i))
		require.Equal(t, "local", a.body["consistency"])

		for _, reader := range c.nodes {
			a = c.do(reader, 200, http.MethodGet, strong+"?consistency=strong", nil)
			require.Equal(t, "s"+itoa(i), a.body["value"])
			a = c.do(reader, 200, http.MethodGet, eventual+"?consistency=eventual&r=2", nil)
			require.Equal(t, "e"+itoa(i), a.body["value"], "r + w > n: the read meets the write")
			c.eventually(reader, local+"?consistency=local", "l"+itoa(i))
			// A weak read sees a strong write once its replica has applied it.
			c.eventually(reader, strong+"?consistency=local", "s"+itoa(i))
		}
		c.do(writer, 200, http.MethodDelete, strong+"?consistency=strong", nil)
		for _, reader := range c.nodes {
			c.do(reader, 404, http.MethodGet, strong+"?consistency=strong", nil)
		}
	}
	t.Run("conditions hold at every node", func(t *testing.T) { testConditions(t, c) })
	t.Run("mistakes are refused with their code", func(t *testing.T) { testMistakes(t, c) })
	t.Run("keys are the bytes that were spelled", func(t *testing.T) { testKeys(t, c) })
	t.Run("commands", func(t *testing.T) { testCommands(t, c) })
}

func testConditions(t *testing.T, c *e2eCluster) {
	n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
	created := c.do(n1, 200, http.MethodPut, "/kv/cas?if-version=0", "1")
	a := c.do(n2, 412, http.MethodPut, "/kv/cas?if-version=0", "2")
	require.Equal(t, "VERSION_MISMATCH", a.code())
	require.EqualValues(t, versionOf(t, created), a.body["current_version"])
	require.Equal(t, "not_applied", a.body["outcome"])
	a = c.do(n3, 200, http.MethodPut, fmt.Sprintf("/kv/cas?if-version=%d", versionOf(t, created)), "3")
	require.Greater(t, versionOf(t, a), versionOf(t, created))
	a = c.do(n1, 200, http.MethodGet, "/kv/cas", nil)
	require.Equal(t, "3", a.body["value"])

	// Of many who try to create one key through all nodes, one succeeds.
	var wins, misses int
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			a, err := c.nodes[i%3].try(http.MethodPut, "/kv/race?if-version=0", itoa(i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil && a.status == 200 {
				wins++
			}
			if err == nil && a.status == 412 {
				misses++
			}
		})
	}
	all.Wait()
	require.Equal(t, [2]int{1, 11}, [2]int{wins, misses})
}

func testMistakes(t *testing.T, c *e2eCluster) {
	for _, tc := range []struct {
		method, target, code string
		status               int
	}{
		{http.MethodGet, "/kv/absent", "KEY_NOT_FOUND", 404},
		{http.MethodGet, "/kv/absent?consistency=eventual", "KEY_NOT_FOUND", 404},
		{http.MethodPut, "/kv/a?consistency=maybe", "UNKNOWN_CONSISTENCY", 400},
		{http.MethodPut, "/kv/a?consistency=eventual&w=4", "BAD_QUORUM", 400},
		{http.MethodPut, "/kv/a?consistency=eventual&if-version=1", "CONDITION_NEEDS_STRONG", 400},
		{http.MethodPut, "/kv/a?consistency=strong&w=2", "BAD_REQUEST", 400},
		{http.MethodPut, "/kv/a?consistancy=strong", "BAD_REQUEST", 400},
	} {
		var value any
		if tc.method == http.MethodPut {
			value = "x"
		}
		for _, n := range c.nodes {
			a := c.do(n, tc.status, tc.method, tc.target, value)
			require.Equal(t, tc.code, a.code(), tc.target)
			require.Equal(t, "not_applied", a.body["outcome"])
		}
	}
	c.do(c.nodes[0], 404, http.MethodGet, "/kv/a", nil)
}

func testKeys(t *testing.T, c *e2eCluster) {
	keys := []string{"x/y", "x//y", "x/../y", "x/./y", "x?y", "x y", "x%2Fy", "\x00\xff", "é", "..", "x+y"}
	for i, key := range keys {
		c.do(c.nodes[i%3], 200, http.MethodPut, "/kv/"+url.PathEscape(key), itoa(i))
	}
	for i, key := range keys {
		a := c.do(c.nodes[(i+1)%3], 200, http.MethodGet, "/kv/"+url.PathEscape(key), nil)
		require.Equal(t, itoa(i), a.body["value"], "%q", key)
	}
}

// testCommands checks the tools and their exit codes against a real cluster.
func testCommands(t *testing.T, c *e2eCluster) {
	endpoints := "--endpoints=" + c.nodes[0].grpc + "," + c.nodes[1].grpc + "," + c.nodes[2].grpc
	for _, tc := range []struct {
		stdin, stdout string
		code          int
		args          []string
	}{
		{args: []string{"put", "tool", "1"}, stdout: "VERSION"},
		{args: []string{"get", "tool"}, stdout: "1"},
		{args: []string{"get", "tool", "-o", "json"}, stdout: `"value": "1"`},
		{args: []string{"get", "tool", "-o", "yaml"}, stdout: `value: "1"`},
		{args: []string{"get", "tool", "-o", "table"}, stdout: "KEY"},
		{args: []string{"put", "tool", "2", "--if-version", "0"}, code: 4},
		{args: []string{"put", "tool", "-"}, stdin: "from stdin\n", stdout: "VERSION"},
		{args: []string{"get", "tool"}, stdout: "from stdin\n"},
		{args: []string{"put", "weak", "3", "-c", "eventual", "--w", "3"}, stdout: "eventual"},
		{args: []string{"get", "weak", "-c", "eventual", "--r", "3"}, stdout: "3"},
		{args: []string{"put", "weak", "3", "-c", "eventual", "--w", "4"}, code: 2},
		{args: []string{"get", "weak", "-c", "soon"}, code: 2},
		{args: []string{"get", "no-such-key"}, code: 3},
		{args: []string{"delete", "tool"}, stdout: "true"},
		{args: []string{"delete", "tool"}, stdout: "false"},
		{args: []string{"get", "tool"}, code: 3},
		{args: []string{"get"}, code: 2},
		{args: []string{"status"}, stdout: "n3"},
		{args: []string{"status", "-o", "json"}, stdout: `"nodes"`},
	} {
		stdout, stderr, code := command(t, tc.stdin, append(tc.args, endpoints)...)
		require.Equal(t, tc.code, code, "%v: %s%s", tc.args, stdout, stderr)
		require.Contains(t, stdout, tc.stdout, "%v", tc.args)
		if code != 0 {
			require.Empty(t, stdout, "%v: what failed is no data", tc.args)
			require.Regexp(t, `^caprock: [^\n]+\n$`, stderr, "%v: one line", tc.args)
		}
	}
	_, _, code := command(t, "", "get", "tool", "--timeout=300ms", "--endpoints="+loopback(freePorts(t, 1)[0]))
	require.Equal(t, 5, code, "nobody listens")
	_, _, code = command(t, "", "put", "tool", "1", "--timeout=300ms", "--endpoints="+loopback(freePorts(t, 1)[0]))
	require.Equal(t, 5, code, "nothing was sent, so nothing is unknown")
}

// leaderOf finds the node that leads the key's partition: it is the one that coordinates a strong write.
func (c *e2eCluster) leaderOf(key string) *e2eNode {
	c.t.Helper()
	a := c.do(c.nodes[0], 200, http.MethodPut, "/kv/"+key+"?consistency=strong", "probe")
	return c.node(a.header.Get("Caprock-Coordinator"))
}

func TestBothLanesGoOnWhenALeaderIsKilled(t *testing.T) {
	c := startCluster(t)
	leader := c.leaderOf("{seat}")
	rest := c.others(leader)
	strong := startLoad(t, rest[0], func(i int) string { return "/kv/%7Bseat%7Ds" + itoa(i) + "?consistency=strong" })
	eventual := startLoad(t, rest[1], func(i int) string { return "/kv/%7Bseat%7De" + itoa(i) + "?consistency=eventual&w=2" })
	strong.waitFor(10)
	eventual.waitFor(10)

	killed := time.Now()
	c.kill(leader)
	strong.waitFor(10)
	eventual.waitFor(10)
	require.Less(t, strong.longestGap(killed), 3*time.Second, "strong writes resume within 3 s of the leader's death")
	require.Less(t, eventual.longestGap(killed), time.Second, "eventual writes at w=2 see no gap")
	require.NotEqual(t, leader, c.leaderOfAt(rest[0], "{seat}"))

	c.start(leader)
	c.waitReady(leader)
	strong.waitFor(5)
	eventual.waitFor(5)
	strong.finish()
	eventual.finish()
	require.Empty(t, eventual.failures, "no eventual write failed")
	strong.requireAll(c, leader, "strong")
	eventual.requireAll(c, leader, "eventual")
	// The one that was away catches up by the log.
	last := strong.acked[len(strong.acked)-1]
	c.eventually(leader, "/kv/%7Bseat%7Ds"+itoa(last)+"?consistency=local", itoa(last))
}

// leaderOfAt is leaderOf, asked at a node that lives.
func (c *e2eCluster) leaderOfAt(n *e2eNode, key string) *e2eNode {
	c.t.Helper()
	a := c.do(n, 200, http.MethodPut, "/kv/"+key+"?consistency=strong", "probe")
	return c.node(a.header.Get("Caprock-Coordinator"))
}

func TestNothingAcknowledgedIsLostWhenAllNodesAreKilled(t *testing.T) {
	c := startCluster(t)
	for round := range 2 {
		killAllUnderLoad(t, c, "r"+itoa(round))
	}
}

func TestANodeThatIsAskedToStopFinishesWhatItBegan(t *testing.T) {
	c := startCluster(t)
	leaving := c.leaderOf("seat")
	rest := c.others(leaving)
	here := startLoad(t, leaving, func(i int) string { return "/kv/here" + itoa(i) + "?consistency=strong" })
	elsewhere := startLoad(t, rest[0], func(i int) string { return "/kv/elsewhere" + itoa(i) + "?consistency=strong" })
	here.waitFor(10)
	elsewhere.waitFor(10)

	// Half a request has arrived when the node is asked to stop, and the other half comes later.
	conn, err := net.Dial("tcp", leaving.http)
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "PUT /kv/begun HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\nhalf")
	require.NoError(t, err)
	here.waitFor(1)
	asked := time.Now()
	require.NoError(t, leaving.cmd.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool {
		a, err := leaving.try(http.MethodGet, "/readyz", nil)
		return err != nil || a.status == 503
	}, e2eReady, time.Millisecond, "a node that stops says that it is not ready")
	here.waitFor(1)
	require.Eventually(t, func() bool {
		_, err := leaving.try(http.MethodGet, "/livez", nil)
		return err != nil
	}, e2eReady, e2ePoll, "a node that stops takes no new requests")
	_, err = conn.Write([]byte("half"))
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err, "a request that has begun is finished")
	require.Equal(t, 200, resp.StatusCode)
	require.NoError(t, resp.Body.Close())

	require.NoError(t, c.awaitExit(leaving), "a graceful stop exits with 0")
	elsewhere.waitFor(10)
	// Leaders are handed over, so that nobody waits for an election.
	require.Less(t, elsewhere.longestGap(asked), 3*time.Second)
	here.finish()
	elsewhere.finish()
	require.Equal(t, "halfhalf", c.do(rest[0], 200, http.MethodGet, "/kv/begun", nil).body["value"])
	here.requireAll(c, rest[1], "strong")
	elsewhere.requireAll(c, rest[1], "strong")
	c.start(leaving)
	c.waitReady(leaving)
	here.requireAll(c, leaving, "strong")
}

// Each mistake at the start is one line that says what to do, and an exit code that is not 0.
func TestNodeThatCannotStartSaysWhyInOneLine(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.nodes[0], c.nodes[1]
	fails := func(want string, code int, args ...string) {
		t.Helper()
		_, stderr, got := command(t, "", args...)
		require.Equal(t, code, got, stderr)
		require.Regexp(t, `(?m)^caprock: [^\n]*`+want+`[^\n]*\n\z`, stderr)
	}
	fails("r is 4: choose 1 to n", 2, slices.Concat(n1.args, []string{"--r", "4"})...)
	fails("unknown flag: --partitons", 2, "start", "--partitons", "3")
	fails("joining a cluster that has already formed is not supported", 2, slices.Concat(n1.args, []string{"--name", "n4"})...)

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for _, flag := range []string{"--http", "--grpc"} {
		fails("in use: stop what listens there", 1, slices.Concat(n1.args, []string{flag, taken.Addr().String()})...)
	}
	fails("in use", 1, slices.Concat(n1.args, []string{"--gossip", taken.Addr().String()})...)

	c.start(c.nodes...)
	c.waitReady(c.nodes...)
	ports := freePorts(t, 3)
	elsewhere := []string{"--http", loopback(ports[0]), "--grpc", loopback(ports[1]), "--gossip", loopback(ports[2])}
	fails("the data directory is in use", 1, slices.Concat(n1.args, elsewhere)...)
	require.NoError(t, c.terminate(n1))
	dirOf := func(n *e2eNode) string { return n.args[4] }
	require.Equal(t, "--data-dir", n1.args[3])
	fails(`holds the data of node "n1"`, 1, slices.Concat(n2.args, elsewhere, []string{"--data-dir", dirOf(n1)})...)
	fails("was created with --partitions 8, not 16", 1, slices.Concat(n1.args, []string{"--partitions", "16"})...)
	four := slices.Clone(n1.args)
	four[slices.Index(four, "n1,n2,n3")] = "n1,n2,n3,n4"
	fails("was created with --initial-members", 1, four...)
	c.start(n1)
	c.waitReady(n1)
}

// A process that is told to stop before it is ready stops all the same.
func TestANodeAloneStopsBeforeItsClusterFormed(t *testing.T) {
	c := newCluster(t)
	c.start(c.nodes[0])
	require.Eventually(t, func() bool {
		a, err := c.nodes[0].try(http.MethodGet, "/livez", nil)
		return err == nil && a.status == 200
	}, e2eReady, e2ePoll)
	a := c.do(c.nodes[0], 503, http.MethodGet, "/kv/a", nil)
	require.Equal(t, "NOT_READY", a.code())
	require.NoError(t, c.terminate(c.nodes[0]))
	_, err := c.nodes[0].try(http.MethodGet, "/livez", nil)
	var refused *net.OpError
	require.True(t, errors.As(err, &refused))
}
