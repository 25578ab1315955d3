package workload

import (
	"context"
	"fmt"
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

// clusterReady bounds the start of a cluster on a busy machine.
const clusterReady = 60 * time.Second

// processCluster is three nodes, each a process of its own, on loopback.
type processCluster struct {
	http, grpc []string
	processes  []*exec.Cmd
	logs       []string
	commands   [][]string // what each node is started with
}

// startProcesses builds the binary, unless CAPROCK_BIN names one, starts three nodes and waits until they serve every level.
func startProcesses(b *testing.B) *processCluster {
	b.Helper()
	dir := b.TempDir()
	binary := fromRoot(os.Getenv("CAPROCK_BIN"))
	if os.Getenv("CAPROCK_BIN") == "" {
		binary = filepath.Join(dir, "caprock")
		build := exec.Command("go", "build", "-o", binary, "../../cmd/caprock")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := build.CombinedOutput()
		require.NoError(b, err, "%s", out)
	}
	c := &processCluster{}
	b.Cleanup(func() { c.stop(b) })
	var gossip []string
	for range 3 {
		c.http, c.grpc, gossip = append(c.http, freeAddress(b)), append(c.grpc, freeAddress(b)), append(gossip, freeAddress(b))
	}
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		c.commands = append(c.commands, []string{
			binary, "start", "--name", name, "--data-dir", filepath.Join(dir, name), "--http", c.http[i], "--grpc", c.grpc[i],
			"--gossip", gossip[i], "--join", strings.Join(gossip, ","), "--initial-members", "n1,n2,n3", "--log-level", "warn",
		})
		c.processes, c.logs = append(c.processes, nil), append(c.logs, filepath.Join(dir, name+".log"))
		c.run(b, i)
	}
	ctx, cancel := context.WithTimeout(b.Context(), clusterReady)
	defer cancel()
	for _, address := range c.http {
		for !isReady(ctx, address) {
			require.NoError(b, ctx.Err(), "node %s is not ready", address)
			time.Sleep(50 * time.Millisecond)
		}
	}
	return c
}

// run starts a process of the node.
func (c *processCluster) run(b *testing.B, node int) {
	b.Helper()
	process := exec.Command(c.commands[node][0], c.commands[node][1:]...)
	file, err := os.OpenFile(c.logs[node], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(b, err)
	process.Stdout, process.Stderr = file, file
	process.Env = withoutSettings(os.Environ())
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(b, process.Start())
	require.NoError(b, file.Close()) // the process has its own handle
	c.processes[node] = process
}

// withoutSettings drops what would configure the nodes behind the benchmark's back.
func withoutSettings(environ []string) []string {
	var out []string
	for _, e := range environ {
		if !strings.HasPrefix(e, "CAPROCK_") {
			out = append(out, e)
		}
	}
	return out
}

func isReady(ctx context.Context, address string) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// freeAddress returns a loopback address that is free for TCP and UDP, below the ports of outgoing connections.
func freeAddress(b *testing.B) string {
	b.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp", address)
		_ = tcp.Close()
		if err == nil {
			_ = udp.Close()
			return address
		}
	}
	b.Fatal("no free port")
	return ""
}

// stop ends the processes that this cluster started, and shows their logs when something went wrong.
func (c *processCluster) stop(b *testing.B) {
	for _, process := range c.processes {
		_ = process.Process.Signal(syscall.SIGTERM)
	}
	for i, process := range c.processes {
		timer := time.AfterFunc(10*time.Second, func() { _ = process.Process.Kill() })
		err := process.Wait()
		timer.Stop()
		if b.Failed() || err != nil {
			log, _ := os.ReadFile(c.logs[i])
			b.Logf("node %d ended: %v\n%s", i+1, err, log[max(0, len(log)-4<<10):])
		}
	}
}

// cpu returns the processor time that the nodes have used.
func (c *processCluster) cpu(b *testing.B) time.Duration {
	b.Helper()
	var ticks uint64
	for _, process := range c.processes {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Process.Pid))
		require.NoError(b, err)
		// The program's name stands in parentheses and may hold anything; utime and stime are the 12th and 13th field after it.
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		for _, field := range fields[11:13] {
			n, err := strconv.ParseUint(field, 10, 64)
			require.NoError(b, err)
			ticks += n
		}
	}
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on
	return time.Duration(ticks) * time.Second / ticksPerSecond
}
