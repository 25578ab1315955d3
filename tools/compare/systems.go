package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/workload"
)

// ready bounds the start of a cluster.
const ready = 30 * time.Second

// nodes is the size of each cluster.
const nodes = 3

// system is a cluster that runs, and the ways to it.
type system struct {
	name, version string
	client, http  workload.Target
	processes     []*exec.Cmd
	closers       []func()
}

// stop ends the processes that were started for it.
func (s *system) stop() {
	for _, c := range s.closers {
		c()
	}
	for _, p := range s.processes {
		_ = p.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	}
	for _, p := range s.processes {
		timer := time.AfterFunc(10*time.Second, func() { _ = p.Process.Kill() })
		_ = p.Wait() // however it ended
		timer.Stop()
	}
}

// start runs one node with its output in a file.
func (s *system) start(dir, name, binary string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, s.name+"-"+name+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own handle
	p := exec.Command(binary, args...)
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.processes = append(s.processes, p)
	return nil
}

// await returns once all URLs answer 200.
func await(ctx context.Context, name string, urls []string) error {
	ctx, cancel := context.WithTimeout(ctx, ready)
	defer cancel()
	for _, url := range urls {
		for !answers(ctx, url) {
			if ctx.Err() != nil {
				return fmt.Errorf("%s is not ready: no good answer of %s", name, url)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

func answers(ctx context.Context, url string) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// addresses returns loopback addresses that are free now.
func addresses(count int) (out []string, err error) {
	for range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// version returns the first line of what a binary says of itself.
func version(ctx context.Context, binary, argument string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, argument).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", binary, argument, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

func startCaprock(ctx context.Context, binary, dir string) (s *system, err error) {
	s = &system{name: "caprock"}
	defer stopUnless(&err, s)
	if s.version, err = version(ctx, binary, "version"); err != nil {
		return s, err
	}
	free, err := addresses(3 * nodes)
	if err != nil {
		return s, err
	}
	https, grpcs, gossips := free[:nodes], free[nodes:2*nodes], free[2*nodes:]
	var urls []string
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		if err := s.start(dir, name, binary, "start", "--name", name, "--data-dir", filepath.Join(dir, "caprock-data", name), "--http", https[i],
			"--grpc", grpcs[i], "--gossip", gossips[i], "--join", strings.Join(gossips, ","), "--initial-members", "n1,n2,n3",
			"--log-level", "warn"); err != nil {
			return s, err
		}
		urls = append(urls, "http://"+https[i]+"/readyz")
	}
	if err := await(ctx, s.name, urls); err != nil {
		return s, err
	}
	c, err := client.NewClient(grpcs)
	if err != nil {
		return s, err
	}
	overHTTP, err := workload.NewHTTPTarget(https, 64)
	if err != nil {
		c.Close()
		return s, err
	}
	s.closers = append(s.closers, func() { c.Close() }, overHTTP.Close)
	s.client, s.http = workload.NewClientTarget(c), overHTTP
	return s, nil
}

func stopUnless(err *error, s *system) {
	if *err != nil {
		s.stop()
	}
}

func startEtcd(ctx context.Context, binary, dir string) (s *system, err error) {
	s = &system{name: "etcd"}
	defer stopUnless(&err, s)
	if s.version, err = version(ctx, binary, "--version"); err != nil {
		return s, err
	}
	free, err := addresses(2 * nodes)
	if err != nil {
		return s, err
	}
	clients, peers := free[:nodes], free[nodes:]
	var cluster, urls []string
	for i := range nodes {
		cluster = append(cluster, fmt.Sprintf("n%d=http://%s", i+1, peers[i]))
	}
	for i := range nodes {
		name, mine, peer := fmt.Sprintf("n%d", i+1), "http://"+clients[i], "http://"+peers[i]
		if err := s.start(dir, name, binary, "--name", name, "--data-dir", filepath.Join(dir, "etcd-data", name), "--listen-client-urls", mine,
			"--advertise-client-urls", mine, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new", "--log-level", "error"); err != nil {
			return s, err
		}
		urls = append(urls, mine+"/health")
	}
	if err := await(ctx, s.name, urls); err != nil {
		return s, err
	}
	own, err := newEtcdTarget(clients)
	if err != nil {
		return s, err
	}
	overHTTP := newEtcdHTTPTarget(clients, 64)
	s.closers = append(s.closers, own.close, overHTTP.client.CloseIdleConnections)
	s.client, s.http = own, overHTTP
	return s, nil
}
