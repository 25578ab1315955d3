package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// portBase finds a run of free ports and returns the one before the first.
func portBase(t *testing.T, count int) int {
	t.Helper()
	for range 1000 {
		base := freePorts(t, 1)[0]
		free := true
		for i := 1; i < count && free; i++ {
			free = portIsFree(base + i)
		}
		if free {
			return base
		}
	}
	t.Fatal("no run of free ports")
	return 0
}

func TestDemoRunsInTheBackgroundUntilItIsStopped(t *testing.T) {
	needProcesses(t)
	dir := filepath.Join(t.TempDir(), "with 'quotes' in it")
	base := portBase(t, 4*4)
	args := []string{
		"demo", "--data-dir", dir, "--http-port", itoa(base), "--grpc-port", itoa(base + 4),
		"--gossip-port", itoa(base + 8), "--resp-port", itoa(base + 12),
	}
	stop := slices.Concat(args, []string{"--stop"})
	t.Cleanup(func() { _, _, _ = command(t, "", stop...) })
	stdout, stderr, code := command(t, "", slices.Concat(args, []string{"--detach"})...)
	require.Zero(t, code, "%s%s", stdout, stderr)
	require.Contains(t, stdout, "Caprock is ready: 3 nodes")
	gateway := &e2eNode{name: "gateway", http: loopback(base)}
	put := func() int {
		a, err := gateway.try(http.MethodPut, "/kv/a%2F%2Fb?consistency=strong", "kept")
		if err != nil {
			return 0
		}
		return a.status
	}
	require.Equal(t, 200, put())

	stdout, _, code = command(t, "", slices.Concat(args, []string{"--detach"})...)
	require.Zero(t, code)
	require.Contains(t, stdout, "already runs")
	require.Contains(t, stdout, "gateway  http://"+loopback(base))
	require.Contains(t, stdout, loopback(base+3))
	_, stderr, code = command(t, "", args...)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "already runs")

	// A node that is killed does not stop the others, and its script brings it back.
	pid, held := lockHolder(nodeLockPath(dir, "n2"))
	require.True(t, held)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	require.Eventually(t, func() bool { return put() == 200 }, e2eReady, e2ePoll)
	script := exec.Command(filepath.Join(dir, "n2", "start.sh"))
	script.SysProcAttr = childAttributes(syscall.SIGTERM)
	require.NoError(t, script.Start())
	ended := make(chan error, 1)
	go func() { ended <- script.Wait() }()
	require.Eventually(t, func() bool { _, held := lockHolder(nodeLockPath(dir, "n2")); return held }, e2eReady, e2ePoll)

	stdout, stderr, code = command(t, "", stop...)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "Stopped")
	require.NoError(t, <-ended, "the node that was started by hand was stopped too, gracefully")
	for i := range 16 {
		require.True(t, portIsFree(base+i), "port %d is still in use", base+i)
	}
	log, err := os.ReadFile(filepath.Join(dir, "demo.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "n2 (pid "+itoa(pid)+") died: signal: killed")
	stdout, _, code = command(t, "", stop...)
	require.Zero(t, code)
	require.Contains(t, stdout, "No demo cluster runs")

	// The data stays.
	stdout, stderr, code = command(t, "", slices.Concat(args, []string{"--detach"})...)
	require.Zero(t, code, "%s%s", stdout, stderr)
	a, err := gateway.try(http.MethodGet, "/kv/a%2F%2Fb", nil)
	require.NoError(t, err)
	require.Equal(t, "kept", a.body["value"])
	_, stderr, code = command(t, "", stop...)
	require.Zero(t, code, stderr)
}

func TestDemoSaysWhichPortIsInUse(t *testing.T) {
	needProcesses(t)
	base := portBase(t, 4*4)
	args := []string{
		"demo", "--http-port", itoa(base), "--grpc-port", itoa(base + 4),
		"--gossip-port", itoa(base + 8), "--resp-port", itoa(base + 12),
	}
	l, err := listen("test", loopback(base+2))
	require.NoError(t, err)
	defer l.Close()
	_, stderr, code := command(t, "", args...)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, loopback(base+2)+", which n2 needs, is in use")
}

func TestDemoRefusesNonsense(t *testing.T) {
	for _, cfg := range []demoConfig{
		{nodes: 0, httpPort: 8080, grpcPort: 9000, gossip: 7000, respPort: 6380},
		{nodes: 10, httpPort: 8080, grpcPort: 9000, gossip: 7000, respPort: 6380},
		{nodes: 3, httpPort: 8080, grpcPort: 8083, gossip: 7000, respPort: 6380},
		{nodes: 3, httpPort: 65533, grpcPort: 9000, gossip: 7000, respPort: 6380},
		{nodes: 3, httpPort: 0, grpcPort: 9000, gossip: 7000, respPort: 6380},
	} {
		require.Error(t, cfg.validate(), "%+v", cfg)
	}
	require.NoError(t, demoConfig{nodes: 9, httpPort: 8080, grpcPort: 9000, gossip: 7000, respPort: 6380}.validate())
}

func TestShellWordsSurviveTheShell(t *testing.T) {
	words := []string{"plain", "", "two words", "it's", `$HOME`, "`id`", "a\nb", `back\slash`, "*"}
	out, err := exec.Command("/bin/sh", "-c", "printf '%s\\0' "+shellLine(words)).Output()
	require.NoError(t, err)
	var want string
	for _, w := range words {
		want += w + "\x00"
	}
	require.Equal(t, want, string(out))
}
