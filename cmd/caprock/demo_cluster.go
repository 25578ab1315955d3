package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/config"
	"github.com/caprockdb/caprock/pkg/verify/live"
)

// demo is a running demo cluster: its nodes are child processes, the gateway runs here.
type demo struct {
	app      *app
	cfg      demoConfig
	binary   string
	nodes    []*demoNode
	gateway  *gateway
	listener net.Listener
	// started is set once the cluster was ready for the first time; before that, changes are not news.
	started  atomic.Bool
	stopping atomic.Bool
	// out serialises lines that several goroutines print.
	out sync.Mutex
}

// demoNode is one node and the process that runs it.
type demoNode struct {
	name                     string
	dir                      string
	http, grpc, gossip, resp string
	args                     []string
	cmd                      *exec.Cmd
	// exited is closed when the process that the demo started has ended.
	exited chan struct{}
	// lost is set from when the node is known not to serve until it serves again.
	lost atomic.Bool
}

func nodeName(i int) string { return "n" + strconv.Itoa(i) }

// nodeLockPath is the lock of a node's storage engine: whoever holds it runs the node.
func nodeLockPath(dataDir, name string) string { return filepath.Join(dataDir, name, "data", "LOCK") }

// newDemo lays out the cluster and checks that it can start. The listener of the gateway is open when it returns.
func newDemo(a *app, cfg demoConfig) (*demo, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	d := &demo{app: a, cfg: cfg, binary: binary}
	var members, gossip, http []string
	for i := range cfg.nodes {
		n := &demoNode{
			name: nodeName(i + 1), dir: filepath.Join(cfg.dataDir, nodeName(i+1)),
			http: loopback(cfg.httpPort + i + 1), grpc: loopback(cfg.grpcPort + i + 1),
			gossip: loopback(cfg.gossip + i + 1), resp: loopback(cfg.respPort + i + 1),
			exited: make(chan struct{}),
		}
		d.nodes = append(d.nodes, n)
		members, gossip, http = append(members, n.name), append(gossip, n.gossip), append(http, n.http)
	}
	for _, n := range d.nodes {
		n.args = startArgs(live.Spec{
			Name: n.name, Dir: filepath.Join(n.dir, "data"), HTTP: n.http, GRPC: n.grpc, Gossip: n.gossip, Join: gossip, Members: members,
		}, "--resp", n.resp)
	}
	if err := d.checkPorts(); err != nil {
		return nil, err
	}
	if d.gateway, err = newGateway(http, slog.New(slog.DiscardHandler), d.nodeChanged); err != nil {
		return nil, err
	}
	d.listener, err = listen("http-port", loopback(cfg.httpPort))
	return d, err
}

// startArgs returns the command line of a node of a cluster on this machine. Its fault injector is on. more are further flags.
func startArgs(s live.Spec, more ...string) []string {
	return slices.Concat(
		[]string{"start", "--name", s.Name, "--data-dir", s.Dir, "--http", s.HTTP, "--grpc", s.GRPC, "--gossip", s.Gossip},
		more,
		[]string{"--join", strings.Join(s.Join, ","), "--initial-members", strings.Join(s.Members, ","), "--dev"})
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// checkPorts finds a taken port before anything is started: a node that finds one only says so in its log.
func (d *demo) checkPorts() error {
	for _, n := range d.nodes {
		for _, p := range []struct{ flag, address string }{
			{"http-port", n.http}, {"grpc-port", n.grpc}, {"gossip-port", n.gossip}, {"resp-port", n.resp},
		} {
			l, err := net.Listen("tcp", p.address)
			if err != nil {
				return fmt.Errorf("%s, which %s needs, is in use: stop what listens there (an older demo?) or move the cluster with --%s",
					p.address, n.name, p.flag)
			}
			_ = l.Close()
		}
	}
	return nil
}

// run starts the nodes and the gateway, calls ready once the cluster serves strong requests, and goes on until ctx is
// done or the start failed. All processes have ended when it returns.
func (d *demo) run(ctx context.Context, ready func()) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	group, inner := errgroup.WithContext(inner)
	group.Go(func() error { return runGateway(inner, d.listener, d.gateway) })
	err := d.startAll(group)
	if err == nil {
		err = d.waitReady(inner)
	}
	if err == nil {
		d.started.Store(true)
		ready()
		<-inner.Done()
	}
	d.stopping.Store(true)
	if err == nil {
		d.say("stopping the cluster")
	}
	cancel()
	d.stopAll()
	// A failed gateway cancels everything else; it is the cause then, and not the cancellation.
	if groupErr := group.Wait(); groupErr != nil {
		return groupErr
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (d *demo) startAll(group *errgroup.Group) error {
	for _, n := range d.nodes {
		if err := d.start(n); err != nil {
			return fmt.Errorf("start %s: %w", n.name, err)
		}
		group.Go(func() error {
			d.watch(n)
			return nil
		})
	}
	return nil
}

// start writes the script that starts the node again, and starts it.
func (d *demo) start(n *demoNode) error {
	if err := os.MkdirAll(n.dir, 0o750); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\n# Starts %s of this demo cluster again. Its log goes on in %s.\nexec %s >>%s 2>&1\n",
		n.name, n.logPath(), shellLine(append([]string{d.binary}, n.args...)), shellQuote(n.logPath()))
	if err := os.WriteFile(n.scriptPath(), []byte(script), 0o750); err != nil {
		return err
	}
	log, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd = exec.Command(d.binary, n.args...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.Env = withoutSettings(d.app.environ)
	n.cmd.SysProcAttr = childAttributes(syscall.SIGTERM)
	if err := n.cmd.Start(); err != nil {
		n.cmd = nil
		return err
	}
	return nil
}

func (n *demoNode) logPath() string    { return filepath.Join(n.dir, "caprock.log") }
func (n *demoNode) scriptPath() string { return filepath.Join(n.dir, "start.sh") }

// withoutSettings removes the settings of a node from the environment: the demo's own flags decide alone.
func withoutSettings(environ []string) []string {
	var out []string
	for _, pair := range environ {
		if !strings.HasPrefix(pair, config.EnvPrefix) {
			out = append(out, pair)
		}
	}
	return out
}

// watch waits for the end of the node's process and reports it, unless it was asked for.
func (d *demo) watch(n *demoNode) {
	err := n.cmd.Wait()
	close(n.exited)
	n.lost.Store(true)
	if d.stopping.Load() || !d.started.Load() {
		return
	}
	how := "it exited"
	if err != nil {
		how = err.Error()
	}
	d.say("%s (pid %d) died: %s; its log: %s\n  start it again with: %s &\n  which runs: %s", n.name, n.cmd.Process.Pid, how,
		n.logPath(), shellQuote(n.scriptPath()), shellLine(append([]string{d.binary}, n.args...)))
}

// nodeChanged is told by the gateway.
func (d *demo) nodeChanged(address string, ready bool) {
	if !d.started.Load() || d.stopping.Load() {
		return
	}
	for _, n := range d.nodes {
		if n.http != address {
			continue
		}
		if !ready {
			n.lost.Store(true)
		} else if n.lost.Swap(false) {
			d.say("%s is ready again", n.name)
		}
	}
}

// waitReady waits until every node serves every level, and the gateway has found that out.
func (d *demo) waitReady(ctx context.Context) error {
	deadline, cancel := context.WithTimeout(ctx, demoReadyTimeout)
	defer cancel()
	for _, n := range d.nodes {
		why := waitUntilReady(deadline, n.http, n.exited)
		switch {
		case why == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case n.hasExited():
			return fmt.Errorf("%s did not start: %s", n.name, lastLine(n.logPath()))
		default:
			return fmt.Errorf("%s is not ready after %v: %w; its log: %s", n.name, demoReadyTimeout, why, n.logPath())
		}
	}
	if err := waitUntilReady(deadline, loopback(d.cfg.httpPort), nil); err != nil && ctx.Err() == nil {
		return fmt.Errorf("the gateway finds no node that is ready: %w", err)
	}
	return ctx.Err()
}

// waitUntilReady asks until the address serves every level, ctx is done or exited is closed. It returns the last answer.
func waitUntilReady(ctx context.Context, address string, exited <-chan struct{}) error {
	for {
		why := checkReady(ctx, address, "")
		if why == nil {
			return nil
		}
		select {
		case <-exited:
			return why
		case <-ctx.Done():
			return why
		case <-time.After(demoReadyPoll):
		}
	}
}

func (n *demoNode) hasExited() bool {
	select {
	case <-n.exited:
		return true
	default:
		return false
	}
}

// lastLine returns the last line of a node's log, which says why it stopped.
func lastLine(path string) string {
	const tail = 64 << 10
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	content = bytes.TrimSpace(content[max(0, len(content)-tail):])
	line := content[bytes.LastIndexByte(content, '\n')+1:]
	return strings.TrimPrefix(string(line), "caprock: ") + " (" + path + ")"
}

// stopAll stops every node: all at once, so that none waits for leaders to come from another that stops too.
func (d *demo) stopAll() {
	var group sync.WaitGroup
	for _, n := range d.nodes {
		group.Go(func() { d.stop(n) })
	}
	group.Wait()
}

// stop ends the node's process, whether the demo or the user started it.
func (d *demo) stop(n *demoNode) {
	if n.cmd == nil {
		return
	}
	if n.hasExited() {
		path := nodeLockPath(d.cfg.dataDir, n.name)
		if pid, held := lockHolder(path); held {
			if err := stopHolder(path, pid, demoStopTimeout); err != nil {
				d.say("%s: %v", n.name, err)
			}
		}
		return
	}
	// An error means that it has just ended by itself.
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(demoStopTimeout):
		d.say("%s did not stop within %v and is killed; its log: %s", n.name, demoStopTimeout, n.logPath())
		_ = n.cmd.Process.Kill()
		<-n.exited
	}
}

func (d *demo) say(format string, args ...any) {
	d.out.Lock()
	defer d.out.Unlock()
	fmt.Fprintf(d.app.stderr, format+"\n", args...)
}
