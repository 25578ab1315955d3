package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// binary is the program under test, built once by TestMain.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	if testing.Short() {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "caprock-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "caprock")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// needProcesses skips a test that starts real processes where those are not wanted.
func needProcesses(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
}

// Bounds of waiting. A test fails on them only when something is wrong: the machine may be busy.
const (
	e2eReady = 30 * time.Second
	e2ePoll  = 10 * time.Millisecond
)

// e2eCluster is some real processes on loopback.
type e2eCluster struct {
	t     *testing.T
	nodes []*e2eNode
}

// e2eNode is one node and the process that runs it now, if any.
type e2eNode struct {
	name, http, grpc string
	args             []string
	log              string
	cmd              *exec.Cmd
	exited           chan struct{}
	err              error // how the process ended; valid once exited is closed
}

// newCluster lays out three nodes and starts nothing. Whatever still runs when the test ends is killed.
func newCluster(t *testing.T) *e2eCluster {
	t.Helper()
	return newClusterOf(t, 3)
}

func newClusterOf(t *testing.T, size int) *e2eCluster {
	t.Helper()
	needProcesses(t)
	c := &e2eCluster{t: t}
	dir := t.TempDir()
	ports := freePorts(t, 3*size)
	var join, members []string
	for i := range size {
		join, members = append(join, loopback(ports[2*size+i])), append(members, nodeName(i+1))
	}
	for i := range size {
		n := &e2eNode{name: nodeName(i + 1), http: loopback(ports[i]), grpc: loopback(ports[size+i])}
		n.log = filepath.Join(dir, n.name+".log")
		n.args = []string{
			"start", "--name", n.name, "--data-dir", filepath.Join(dir, n.name), "--http", n.http, "--grpc", n.grpc,
			"--gossip", loopback(ports[2*size+i]), "--join", strings.Join(join, ","),
			"--initial-members", strings.Join(members, ","), "--partitions", "8", "--dev",
		}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			c.kill(n)
			if t.Failed() {
				content, _ := os.ReadFile(n.log)
				t.Logf("log of %s:\n%s", n.name, content[max(0, len(content)-16<<10):])
			}
		}
	})
	return c
}

// startCluster starts three nodes and waits until they serve every level.
func startCluster(t *testing.T) *e2eCluster {
	t.Helper()
	c := newCluster(t)
	c.start(c.nodes...)
	c.waitReady(c.nodes...)
	return c
}

// freePorts returns ports that are free for TCP and UDP now. They lie below the range from which the kernel takes the
// ports of outgoing connections, so that none of those takes one before the node does.
func freePorts(t *testing.T, count int) []int {
	t.Helper()
	var ports []int
	taken := map[int]bool{}
	for tries := 0; len(ports) < count; tries++ {
		require.Less(t, tries, 1000, "no free ports")
		port := 12000 + rand.IntN(20000)
		if !taken[port] && portIsFree(port) {
			taken[port] = true
			ports = append(ports, port)
		}
	}
	return ports
}

func portIsFree(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", loopback(port))
	if err != nil {
		return false
	}
	return u.Close() == nil
}

func (c *e2eCluster) start(nodes ...*e2eNode) {
	c.t.Helper()
	for _, n := range nodes {
		log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		require.NoError(c.t, err)
		n.cmd = exec.Command(binary, n.args...)
		n.cmd.Stdout, n.cmd.Stderr = log, log
		n.cmd.Env = withoutSettings(os.Environ())
		n.cmd.SysProcAttr = childAttributes(syscall.SIGTERM)
		require.NoError(c.t, n.cmd.Start())
		require.NoError(c.t, log.Close())
		n.exited = make(chan struct{})
		go func() {
			n.err = n.cmd.Wait()
			close(n.exited)
		}()
	}
}

// kill ends nodes as a power cut of the process would.
func (c *e2eCluster) kill(nodes ...*e2eNode) {
	for _, n := range nodes {
		if n.cmd != nil {
			_ = n.cmd.Process.Kill()
		}
	}
	for _, n := range nodes {
		if n.cmd != nil {
			<-n.exited
			n.cmd = nil
		}
	}
}

// terminate asks a node to stop and waits until it has.
func (c *e2eCluster) terminate(n *e2eNode) error {
	c.t.Helper()
	require.NoError(c.t, n.cmd.Process.Signal(syscall.SIGTERM))
	return c.awaitExit(n)
}

// awaitExit waits until the process has ended and returns how.
func (c *e2eCluster) awaitExit(n *e2eNode) error {
	c.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(e2eReady):
		c.t.Fatalf("%s did not stop", n.name)
	}
	n.cmd = nil
	return n.err
}

func (c *e2eCluster) waitReady(nodes ...*e2eNode) {
	c.t.Helper()
	deadline := time.Now().Add(e2eReady)
	for _, n := range nodes {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := checkReady(ctx, n.http, "")
			cancel()
			if err == nil {
				break
			}
			select {
			case <-n.exited:
				c.t.Fatalf("%s exited: %v", n.name, n.err)
			default:
			}
			require.True(c.t, time.Now().Before(deadline), "%s is not ready: %v", n.name, err)
			time.Sleep(e2ePoll)
		}
	}
}

func (c *e2eCluster) node(name string) *e2eNode {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	c.t.Fatalf("no node is called %q", name)
	return nil
}

func (c *e2eCluster) others(not *e2eNode) []*e2eNode {
	var out []*e2eNode
	for _, n := range c.nodes {
		if n != not {
			out = append(out, n)
		}
	}
	return out
}

// answer is what a node said to one request.
type answer struct {
	status int
	header http.Header
	body   map[string]any
}

// code is the error's code, "" for an answer that is none.
func (a answer) code() string {
	code, _ := a.body["code"].(string)
	return code
}

// e2eClient opens a connection a request: a connection that a stopping node closes while it is idle cannot be told from
// one that breaks under a request.
var e2eClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 15 * time.Second}

// try sends one request. value is the body's JSON value, nil for no body. An error means that no answer came.
func (n *e2eNode) try(method, target string, value any) (answer, error) {
	var body io.Reader
	if value != nil {
		raw, err := json.Marshal(map[string]any{"value": value})
		if err != nil {
			return answer{}, err
		}
		body = bytes.NewReader(raw)
	}
	r, err := http.NewRequest(method, "http://"+n.http+target, body)
	if err != nil {
		return answer{}, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := e2eClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, header: resp.Header}
	if len(raw) > 0 && strings.Contains(resp.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(raw, &a.body); err != nil {
			return answer{}, fmt.Errorf("%w in %s", err, raw)
		}
	}
	return a, nil
}

// do sends a request that must be answered with the status.
func (c *e2eCluster) do(n *e2eNode, status int, method, target string, value any) answer {
	c.t.Helper()
	a, err := n.try(method, target, value)
	require.NoError(c.t, err, "%s %s at %s", method, target, n.name)
	require.Equal(c.t, status, a.status, "%s %s at %s: %v", method, target, n.name, a.body)
	return a
}

// eventually asks until the key has the value.
func (c *e2eCluster) eventually(n *e2eNode, target string, want any) {
	c.t.Helper()
	var last answer
	require.Eventually(c.t, func() bool {
		a, err := n.try(http.MethodGet, target, nil)
		last = a
		return err == nil && a.status == http.StatusOK && a.body["value"] == want
	}, e2eReady, e2ePoll, "GET %s at %s never answered %v", target, n.name, want)
	_ = last
}

// versionOf reads the version of a write's or read's answer.
func versionOf(t *testing.T, a answer) int64 {
	t.Helper()
	v, ok := a.body["version"].(float64)
	require.True(t, ok, "%v has no version", a.body)
	return int64(v)
}

// command runs the binary and returns what it wrote and its exit code.
func command(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.Env = withoutSettings(os.Environ())
	done := make(chan error, 1)
	require.NoError(t, cmd.Start())
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(e2eReady):
		_ = cmd.Process.Kill()
		<-done
		t.Fatalf("caprock %v does not end; it wrote %s%s", args, out.String(), errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func itoa(i int) string { return strconv.Itoa(i) }
