package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/verify"
)

// node is one node of the cluster.
type node struct {
	name  string
	id    kv.NodeID // as rules of the injector name it; known once the node has served
	admin admin
	grpc  string
	spec  Spec     // of a node that this run starts
	log   string   // path
	proc  *process // the present life, nil in an attached cluster
	// gone is set when the node has lost its disk: it has refused to serve, and does not come back.
	gone bool
}

// fleet is the nodes of the cluster. Its methods are for one goroutine, the nemesis's, except admin routes, which anybody
// may ask.
type fleet struct {
	nodes []*node
	deps  Deps
	net   network
	// deaths describes processes that ended although nobody meant them to.
	deaths []string
}

// startFleet starts the nodes of a new cluster and waits until all serve every level. What was started is stopped by
// stop, also after an error.
func startFleet(ctx context.Context, cfg Config, deps Deps) (*fleet, error) {
	f := &fleet{deps: deps}
	if old, err := os.ReadDir(cfg.DataDir); err != nil || len(old) > 0 {
		return f, errors.Join(err, fmt.Errorf("the data directory %s must be empty: a run starts with a new cluster", cfg.DataDir))
	}
	specs, err := f.layOut(ctx, cfg)
	if err != nil {
		return f, err
	}
	if err := f.net.open(ctx); err != nil {
		return f, err
	}
	for _, s := range specs {
		f.nodes = append(f.nodes, &node{
			name: s.Name, admin: newAdmin("http://" + s.HTTP), grpc: s.GRPC, spec: s,
			log: filepath.Join(cfg.OutDir, s.Name+".log"),
		})
	}
	for i, n := range f.nodes {
		// Each life of a node goes on in its log; the first one begins it.
		if err := os.Remove(n.log); err != nil && !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		if err := f.start(i); err != nil {
			return f, err
		}
	}
	if err := f.waitReady(ctx, all(len(f.nodes))); err != nil {
		return f, err
	}
	for _, n := range f.nodes {
		s, err := n.admin.status(ctx)
		if err != nil {
			return f, fmt.Errorf("%s: %w", n.name, err)
		}
		n.id = s.NodeID
	}
	return f, nil
}

// attachFleet finds the nodes of a running cluster.
func attachFleet(ctx context.Context, cfg Config, deps Deps) (*fleet, error) {
	f := &fleet{deps: deps}
	f.net = &injector{fleet: f}
	for _, endpoint := range cfg.Endpoints {
		n := &node{admin: newAdmin(endpoint)}
		s, err := n.admin.status(ctx)
		if err != nil {
			return f, fmt.Errorf("%s: %w", endpoint, err)
		}
		if len(s.Nodes) != len(cfg.Endpoints) {
			return f, fmt.Errorf("the cluster has %d nodes and %d endpoints are given: give the HTTP address of each node",
				len(s.Nodes), len(cfg.Endpoints))
		}
		n.name, n.id = s.Node, s.NodeID
		for _, other := range f.nodes {
			if other.name == n.name {
				return f, fmt.Errorf("%s and %s are the same node, %s", other.admin.base, endpoint, n.name)
			}
		}
		for _, m := range s.Nodes {
			if m.Name == s.Node {
				n.grpc = m.GRPC
			}
		}
		if err := n.admin.clearFaults(ctx); err != nil && len(mustDecks(cfg)) > 0 {
			return f, fmt.Errorf("%s: the node must have been started with --dev: %w", endpoint, err)
		}
		f.nodes = append(f.nodes, n)
	}
	return f, f.waitReady(ctx, all(len(f.nodes)))
}

// mustDecks returns the decks of a configuration that was validated.
func mustDecks(cfg Config) [][]string {
	decks, err := cfg.decks()
	if err != nil {
		panic(err)
	}
	return decks
}

// present returns the numbers of the nodes that are not gone.
func (f *fleet) present() []int {
	return slices.DeleteFunc(all(len(f.nodes)), func(i int) bool { return f.nodes[i].gone })
}

// all returns the numbers of count nodes.
func all(count int) []int {
	out := make([]int, count)
	for i := range out {
		out[i] = i
	}
	return out
}

// start begins a new life of the node.
func (f *fleet) start(i int) error {
	n := f.nodes[i]
	cmd := f.deps.Command(n.spec)
	f.net.wrap(i, cmd)
	p, err := launch(cmd, n.log)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	n.proc = p
	f.deps.Logger.Debug("node starts", "node", n.name, "pid", p.pid())
	return nil
}

// restart begins a new life of those whose process has ended, and waits until they serve every level.
func (f *fleet) restart(ctx context.Context, nodes []int) (time.Duration, error) {
	began := time.Now()
	for _, i := range nodes {
		if f.nodes[i].proc.hasExited() {
			if err := f.start(i); err != nil {
				return 0, err
			}
		}
	}
	err := f.waitReady(ctx, nodes)
	return time.Since(began), err
}

// waitReady waits until the nodes serve every level.
func (f *fleet) waitReady(ctx context.Context, nodes []int) error {
	// The first node that cannot become ready ends the wait for all: without it others may never be.
	group, first := errgroup.WithContext(ctx)
	for _, i := range nodes {
		n := f.nodes[i]
		group.Go(func() error {
			var died error
			inner, cancel := context.WithCancel(first)
			defer cancel()
			err := await(inner, readyTimeout, func(ctx context.Context) error {
				if n.proc != nil && n.proc.hasExited() {
					died = fmt.Errorf("%s stopped (%s): %s", n.name, n.proc.how(), lastLine(n.log))
					cancel()
					return died
				}
				return n.admin.ready(ctx)
			})
			switch {
			case died != nil:
				return died
			case err != nil:
				return fmt.Errorf("%s is not ready after %v: %w", n.name, readyTimeout, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// lastLine returns the line of a node's log that says why it stopped: the last one, or where it panicked, the panic.
func lastLine(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return finalWords(string(content))
}

// panicked returns the panic that the node's process, which has ended, ended with, "" when it ended otherwise.
func (n *node) panicked() string {
	words := lastLine(n.log)
	if n.proc.cmd.ProcessState.ExitCode() != panicExitCode || !isPanic(words) {
		return ""
	}
	return words
}

// panicExitCode is what the runtime ends a process with that panicked.
const panicExitCode = 2

func isPanic(line string) bool {
	return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
}

func finalWords(log string) string {
	last, panicked := "", false
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		switch {
		case isPanic(line):
			last, panicked = line, true
		// A new life of the node begins with lines of its log, which a panic's stack never has.
		case strings.HasPrefix(line, "time=") || strings.HasPrefix(line, "caprock: "):
			last, panicked = line, false
		case line != "" && !panicked:
			last = line
		}
	}
	return last
}

// mend takes back everything that faults may have left: rules, paused processes, dead processes. It notes processes that
// died by themselves, and waits until every node serves.
func (f *fleet) mend(ctx context.Context) error {
	var errs []error
	for i, n := range f.nodes {
		if n.proc == nil || n.gone {
			continue
		}
		if n.proc.hasExited() {
			f.noteDeath(n)
			errs = append(errs, f.start(i))
			continue
		}
		// A process that is not paused ignores it.
		errs = append(errs, ignoreDone(n.proc.signal(sigContinue)))
	}
	errs = append(errs, f.net.heal(ctx), f.waitReady(ctx, f.present()), f.clearFaults(ctx))
	return errors.Join(errs...)
}

// noteDeath records the end of a process that nobody meant to end.
func (f *fleet) noteDeath(n *node) {
	if !n.proc.expected.Swap(true) {
		f.deaths = append(f.deaths, fmt.Sprintf("%s (pid %d) stopped by itself: %s: %s", n.name, n.proc.pid(), n.proc.how(), lastLine(n.log)))
	}
}

// noteDeaths records all of them.
func (f *fleet) noteDeaths() {
	for _, n := range f.nodes {
		if n.proc != nil && n.proc.hasExited() {
			f.noteDeath(n)
		}
	}
}

// clearFaults removes the faults of all nodes.
func (f *fleet) clearFaults(ctx context.Context) error {
	var errs []error
	for _, n := range f.nodes {
		if n.gone {
			continue
		}
		if err := n.admin.clearFaults(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
		}
	}
	return errors.Join(errs...)
}

// stop ends every process that was started, and takes the network down. What it ends has nothing left to lose: the run is
// over, and so is the data.
func (f *fleet) stop() error {
	var ending sync.WaitGroup
	for _, n := range f.nodes {
		if n.proc != nil && !n.proc.hasExited() {
			ending.Go(n.proc.end)
		}
	}
	ending.Wait()
	var errs []error
	for _, n := range f.nodes {
		if n.proc != nil && !n.proc.hasExited() {
			errs = append(errs, fmt.Errorf("%s (pid %d) cannot be ended", n.name, n.proc.pid()))
		}
	}
	if f.net != nil {
		errs = append(errs, f.net.close())
	}
	return errors.Join(errs...)
}

// names returns the names of the nodes.
func (f *fleet) names(nodes []int) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = f.nodes[n].name
	}
	return out
}

// setPolicies sets the policies and waits until every node lists them.
func (f *fleet) setPolicies(ctx context.Context, policies []kv.Policy) error {
	for _, p := range policies {
		if err := await(ctx, readyTimeout, func(ctx context.Context) error { return f.nodes[0].admin.putPolicy(ctx, p) }); err != nil {
			return fmt.Errorf("set the policy of %q: %w", p.Prefix, err)
		}
		for _, n := range f.nodes {
			err := await(ctx, readyTimeout, func(ctx context.Context) error {
				prefixes, err := n.admin.policies(ctx)
				if err != nil {
					return err
				}
				for _, prefix := range prefixes {
					if prefix == string(p.Prefix) {
						return nil
					}
				}
				return errors.New("it does not list it")
			})
			if err != nil {
				return fmt.Errorf("the policy of %q is not in force on %s: %w", p.Prefix, n.name, err)
			}
		}
	}
	return nil
}

// anomaly is something that the harness itself found wrong.
func anomaly(kind, text string) verify.Anomaly {
	return verify.Anomaly{Checker: "harness", Kind: kind, Text: text}
}
