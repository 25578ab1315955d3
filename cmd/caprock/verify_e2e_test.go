package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/verify/live"
)

// verified runs a verification that must end with the code, and returns its report.
func verified(t *testing.T, code int, args ...string) live.Report {
	t.Helper()
	stdout, stderr, got := command(t, "", append([]string{"verify", "-o", "json"}, args...)...)
	require.Equal(t, code, got, "%s%s", stdout, stderr)
	var r live.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &r))
	return r
}

// processesWith returns the processes of this machine whose command line has the text.
func processesWith(t *testing.T, text string) []int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	var out []int
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.Contains(line, []byte(text)) || !bytes.Contains(line, []byte("--initial-members")) {
			continue // gone meanwhile, or not a node
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		require.NoError(t, err)
		out = append(out, pid)
	}
	return out
}

func TestAClusterUnderKillAndPartitionIsFoundValid(t *testing.T) {
	needProcesses(t)
	out, data := t.TempDir(), t.TempDir()
	r := verified(t, 0, "--nodes", "3", "--workload", "register", "--nemesis", "partition,kill", "--duration", "6s",
		"--seed", "7", "--out", out, "--data-dir", data)
	require.True(t, r.Valid)
	require.Empty(t, r.Anomalies)
	require.Greater(t, r.Operations, 300)
	require.Positive(t, r.Faults)
	require.Len(t, r.Timeline, r.Faults)
	require.Positive(t, r.ByFault[live.Kill])
	require.Positive(t, r.LeaderChanges)
	require.EqualValues(t, 7, r.Seed)
	for _, e := range r.Timeline {
		require.NotEmpty(t, e.Effect)
		require.Less(t, e.From, e.To)
	}
	for _, name := range []string{"history.jsonl", "report.json", "timeline.txt", "linearizability.html", "n1.log", "n2.log", "n3.log"} {
		info, err := os.Stat(filepath.Join(out, name))
		require.NoError(t, err)
		require.Positive(t, info.Size(), name)
	}
	require.Empty(t, processesWith(t, data), "no node is left behind")
}

func TestARunningClusterIsVerifiedAndLeftAsItWas(t *testing.T) {
	c := startCluster(t)
	var endpoints []string
	for _, n := range c.nodes {
		endpoints = append(endpoints, "http://"+n.http)
	}
	r := verified(t, 0, "--endpoints", strings.Join(endpoints, ","), "--workload", "causal", "--nemesis", "partition,slow",
		"--duration", "4s", "--seed", "3")
	require.True(t, r.Valid)
	require.Positive(t, r.Faults)
	for _, n := range c.nodes {
		a := c.do(n, 200, http.MethodGet, "/admin/policies", nil)
		require.Empty(t, a.body["policies"])
		resp, err := http.Get("http://" + n.http + "/admin/faults")
		require.NoError(t, err)
		var rules []any
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&rules))
		require.NoError(t, resp.Body.Close())
		require.Empty(t, rules)
		require.NoError(t, n.cmd.Process.Signal(syscall.Signal(0)), "its processes live")
	}
	_, stderr, code := command(t, "", "verify", "--endpoints", endpoints[0]+","+endpoints[1], "--duration", "1s")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "the cluster has 3 nodes and 2 endpoints are given")
}

func TestNoProcessOutlivesAVerificationThatIsEnded(t *testing.T) {
	needProcesses(t)
	for name, end := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			cmd := exec.Command(binary, "verify", "--nemesis", "pause", "--duration", "1m", "--data-dir", data, "--out", t.TempDir(), "-v")
			cmd.Env = withoutSettings(os.Environ())
			var stderr lockedBuffer
			cmd.Stderr = &stderr
			require.NoError(t, cmd.Start())
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			// Once a fault is over the cluster runs under load, and soon a process is stopped again.
			require.Eventually(t, func() bool { return strings.Contains(stderr.String(), "fault=pause") }, e2eReady, e2ePoll)
			require.Len(t, processesWith(t, data), 3)
			require.NoError(t, cmd.Process.Signal(end))
			select {
			case <-ended:
			case <-time.After(e2eReady):
				_ = cmd.Process.Kill()
				t.Fatal("it does not end")
			}
			require.Eventually(t, func() bool { return len(processesWith(t, data)) == 0 }, 5*time.Second, e2ePoll)
			if end == syscall.SIGINT {
				require.Equal(t, 1, cmd.ProcessState.ExitCode())
				require.Contains(t, stderr.String(), "interrupted before there was a verdict")
			}
		})
	}
}

func TestNodesInNetworkNamespacesAreCutByIptablesAndLeaveNothingBehind(t *testing.T) {
	needProcesses(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if out, err := exec.Command("ip", "netns", "add", "caprock-e2e").CombinedOutput(); err != nil {
		t.Skipf("cannot make a namespace: %s", out)
	}
	require.NoError(t, exec.Command("ip", "netns", "del", "caprock-e2e").Run())

	cmd := exec.Command(binary, "verify", "-o", "json", "--network", "netns", "--nemesis", "partition-halves", "--duration", "4s", "--seed", "1")
	cmd.Env = withoutSettings(os.Environ())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s%s", &stdout, &stderr)
	var r live.Report
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &r))
	require.True(t, r.Valid)
	require.Positive(t, r.Faults)
	require.Contains(t, r.Timeline[0].Effect, "packets dropped")
	for _, args := range [][]string{{"netns", "list"}, {"link"}} {
		out, err := exec.Command("ip", args...).Output()
		require.NoError(t, err)
		require.NotContains(t, string(out), "caprock-verify-"+strconv.Itoa(cmd.Process.Pid))
		require.NotContains(t, string(out), "cv"+strconv.Itoa(cmd.Process.Pid)+"@")
	}
}

// lockedBuffer is written by a process that runs while a test reads it.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
