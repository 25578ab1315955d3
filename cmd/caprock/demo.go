package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Bounds of the demo.
const (
	demoNodes        = 3
	demoNodesMax     = 9
	demoReadyTimeout = 30 * time.Second
	demoReadyPoll    = 50 * time.Millisecond
	// demoStopTimeout bounds how long a node may take to stop; then it is killed.
	demoStopTimeout = 15 * time.Second
	demoStopPoll    = 20 * time.Millisecond
)

// demoConfig says what `caprock demo` runs. Node i listens on each base port plus i; the gateway on the base itself.
type demoConfig struct {
	nodes                                int
	dataDir                              string
	httpPort, grpcPort, gossip, respPort int
}

func newDemoCommand(a *app) *cobra.Command {
	cfg := demoConfig{}
	var (
		detach, halt bool
		readyFD      int
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole cluster on this machine, one process a node, and a gateway",
		Long: `Run a whole cluster on this machine, one process a node, and a gateway in front of it.

Node i listens on HTTP 8080+i, gRPC 9000+i, gossip 7000+i and Redis 6380+i of the loopback interface, the gateway on
8080. Ctrl-C stops all of it. Without --data-dir the data is temporary and removed at the end; with it, it stays.
A node that dies stays dead until you start it again, with the script that is named when it dies.`,
		Example: `  caprock demo
  caprock demo --nodes 5 --data-dir /tmp/caprock --detach
  caprock demo --data-dir /tmp/caprock --stop`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.validate(); err != nil {
				return usageError{err}
			}
			if (detach || halt) && cfg.dataDir == "" {
				return usageError{errors.New("--detach and --stop need --data-dir: the directory is how the cluster is found again")}
			}
			switch {
			case halt:
				return stopDemo(a, cfg)
			case detach:
				return detachDemo(a, cfg)
			}
			return runDemo(cmd.Context(), a, cfg, readyFD)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.IntVar(&cfg.nodes, "nodes", demoNodes, "number of nodes")
	fs.StringVar(&cfg.dataDir, "data-dir", "", "`directory` that keeps the data and the logs (default a temporary one, removed at the end)")
	fs.BoolVar(&detach, "detach", false, "run in the background: return when the cluster is ready, or at once if it already runs")
	fs.BoolVar(&halt, "stop", false, "stop the cluster that runs in the background; its data stays")
	fs.IntVar(&cfg.httpPort, "http-port", 8080, "HTTP `port` of the gateway; node i takes the i-th after it")
	fs.IntVar(&cfg.grpcPort, "grpc-port", 9000, "`port` before the first node's gRPC port")
	fs.IntVar(&cfg.gossip, "gossip-port", 7000, "`port` before the first node's gossip port")
	fs.IntVar(&cfg.respPort, "resp-port", 6380, "`port` before the first node's Redis port")
	fs.IntVar(&readyFD, "ready-fd", 0, "file descriptor that is told how the start went")
	_ = fs.MarkHidden("ready-fd") // fails only for a flag that does not exist
	return cmd
}

func (c demoConfig) validate() error {
	if c.nodes < 1 || c.nodes > demoNodesMax {
		return fmt.Errorf("--nodes is %d: choose 1 to %d", c.nodes, demoNodesMax)
	}
	used := map[int]string{}
	for _, base := range []struct {
		flag string
		port int
	}{{"http", c.httpPort}, {"grpc", c.grpcPort}, {"gossip", c.gossip}, {"resp", c.respPort}} {
		if base.port < 1 || base.port+c.nodes > 65535 {
			return fmt.Errorf("--%s-port is %d: choose 1 to %d", base.flag, base.port, 65535-c.nodes)
		}
		for i := range c.nodes + 1 {
			if other, taken := used[base.port+i]; taken {
				return fmt.Errorf("--%s-port and --%s-port overlap at %d: move one of them", other, base.flag, base.port+i)
			}
			used[base.port+i] = base.flag
		}
	}
	return nil
}

// runDemo runs the cluster in the foreground until a signal comes.
func runDemo(parent context.Context, a *app, cfg demoConfig, readyFD int) (err error) {
	tell := readyPipe(readyFD)
	defer func() { tell(err, "") }()
	ctx, stop := untilSignal(parent)
	defer stop()
	if cfg.dataDir == "" {
		cfg.dataDir, err = os.MkdirTemp("", "caprock-demo-")
		if err != nil {
			return fmt.Errorf("temporary data: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(cfg.dataDir)) }()
	}
	if cfg.dataDir, err = filepath.Abs(cfg.dataDir); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.dataDir, 0o750); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	lock, err := lockFile(demoLockPath(cfg.dataDir))
	if err != nil {
		return err
	}
	defer lock.Close()

	d, err := newDemo(a, cfg)
	if err != nil {
		return err
	}
	// Whoever asks for the same cluster again is told where it listens.
	if err := os.WriteFile(demoAddressPath(cfg.dataDir), []byte(d.addresses()), 0o640); err != nil {
		return fmt.Errorf("--data-dir: %w", errors.Join(err, d.listener.Close()))
	}
	return d.run(ctx, func() {
		text := d.describe()
		fmt.Fprint(a.stdout, text)
		tell(nil, text)
	})
}

func demoLockPath(dataDir string) string { return filepath.Join(dataDir, "demo.lock") }

func demoAddressPath(dataDir string) string { return filepath.Join(dataDir, "demo.addresses") }

// demoReadyLine starts what a detached demo tells its parent when it is ready; anything else is why it is not.
const demoReadyLine = "ready\n"

// readyPipe returns a function that tells the parent of a detached demo, once, how the start went.
func readyPipe(fd int) func(err error, text string) {
	if fd <= 0 {
		return func(error, string) {}
	}
	// The nodes must not inherit it: the parent reads until the last copy is closed.
	syscall.CloseOnExec(fd)
	pipe := os.NewFile(uintptr(fd), "ready")
	return func(err error, text string) {
		if pipe == nil {
			return
		}
		message := demoReadyLine + text
		if err != nil {
			message = err.Error()
		}
		// A parent that is gone does not want to know.
		_, _ = pipe.WriteString(message)
		_ = pipe.Close()
		pipe = nil
	}
}

// shellQuote writes a word so that a POSIX shell reads it as it is.
func shellQuote(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=@+"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func shellLine(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = shellQuote(w)
	}
	return strings.Join(quoted, " ")
}
