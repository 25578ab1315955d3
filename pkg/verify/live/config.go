package live

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/verify"
)

// How links are cut.
const (
	// NetworkInjector: by the nodes' own fault injector, which drops the frames that nodes exchange. Gossip goes on.
	NetworkInjector = "injector"
	// NetworkNetns: by iptables, each node in a network namespace of its own. Drops everything between two nodes. Root on
	// Linux only.
	NetworkNetns = "netns"
)

// Limits of a run.
const (
	nodesMax   = 9
	clientsMax = 256
	// operationTimeout bounds each operation: short, so that a client whose node is cut off soon asks another.
	operationTimeout = time.Second
	// readyTimeout bounds how long the nodes may take to serve every level, at the start and after the last fault.
	readyTimeout = 60 * time.Second
	// convergeTimeout bounds how long replicas may differ once everything is mended, and every stamp of a clock that was
	// ahead has passed.
	convergeTimeout = 60 * time.Second
	// finishTimeout bounds the final reads.
	finishTimeout = 2 * time.Minute
	// checkTimeout bounds the search for an order. A search that is cut off is not valid.
	checkTimeout = 5 * time.Minute
)

// Config says what to run.
type Config struct {
	// Nodes is the number of nodes to start, 1 to 9. Ignored with Endpoints.
	Nodes int
	// Workload is one of verify.Workloads().
	Workload string
	// Nemeses are names out of Nemeses().
	Nemeses []string
	// Duration is how long the workload runs. What follows, mending, converging and checking, comes on top.
	Duration time.Duration
	// Rate bounds the operations a second of all clients together; 0: as fast as the clients go.
	Rate int
	// Clients is the number of concurrent clients, 1 to 256.
	Clients int
	// Keys is the number of keys in use at one time; for the set and session workloads that of each client, for batch that of
	// tags, and expiry has sixteen times as many.
	Keys int
	// Seed decides what faults come when, and what the clients do. The same seed gives the same plan; what the cluster makes
	// of it also depends on time.
	Seed uint64
	// ClockAhead bounds how far ahead clocks are set where there are eventual writes, 1 s to 10 min: replicas converge only
	// once all clocks have come there, and the run waits for that.
	ClockAhead time.Duration
	// Network is NetworkInjector or NetworkNetns.
	Network string
	// Endpoints are the HTTP addresses of all nodes of a running cluster, as http://host:port; none: start one.
	Endpoints []string
	// DataDir holds the data of the nodes that are started. It must exist and be empty.
	DataDir string
	// OutDir is where the artefacts go: it must exist.
	OutDir string
}

// DefaultConfig returns 3 nodes under the register workload and no faults, for 20 s.
func DefaultConfig() Config {
	return Config{
		Nodes: 3, Workload: verify.WorkloadRegister, Nemeses: []string{nemesisNone}, Duration: 20 * time.Second,
		Clients: 8, Keys: 4, Seed: 1, ClockAhead: aheadDefault, Network: NetworkInjector,
	}
}

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Nodes >= 1 && c.Nodes <= nodesMax, "%d nodes: choose 1 to %d", c.Nodes, nodesMax)
	check(slices.Contains(verify.Workloads(), c.Workload), "%q is not a workload; the workloads are %s",
		c.Workload, strings.Join(verify.Workloads(), ", "))
	check(c.Duration >= time.Second, "a duration of %s: at least 1s", c.Duration)
	check(c.Rate >= 0, "a rate of %d: it must not be negative", c.Rate)
	check(c.Clients >= 1 && c.Clients <= clientsMax, "%d clients: choose 1 to %d", c.Clients, clientsMax)
	check(c.Keys >= 1, "%d keys: at least 1", c.Keys)
	check(c.ClockAhead >= skewMin && c.ClockAhead <= skewMax, "clocks that are ahead by up to %s: choose %s to %s", c.ClockAhead, skewMin, skewMax)
	check(c.Network == NetworkInjector || c.Network == NetworkNetns, "%q is not a network; choose %s or %s",
		c.Network, NetworkInjector, NetworkNetns)
	check(!c.attached() || c.Network == NetworkInjector, "the network %s needs nodes that are started by this command", NetworkNetns)
	for _, endpoint := range c.Endpoints {
		u, err := url.Parse(endpoint)
		check(err == nil && u.Scheme == "http" && u.Host != "", "the endpoint %q is not of the form http://host:port", endpoint)
	}
	check(c.Workload != verify.WorkloadExpiry || !slices.Contains(c.Nemeses, Clock),
		"the workload %s says when values expire, which needs right clocks: leave out the nemesis %s", c.Workload, Clock)
	_, err := c.decks()
	errs = append(errs, err)
	return errors.Join(errs...)
}

func (c Config) attached() bool { return len(c.Endpoints) > 0 }

func (c Config) size() int {
	if c.attached() {
		return len(c.Endpoints)
	}
	return c.Nodes
}

// eventual reports whether the workload writes at level eventual.
func (c Config) eventual() bool {
	switch c.Workload {
	case verify.WorkloadRegister, verify.WorkloadCAS, verify.WorkloadAppend, verify.WorkloadBatch, verify.WorkloadExpiry:
		return false
	}
	return true
}

// ahead is how far ahead clocks are set.
func (c Config) ahead() time.Duration {
	if c.eventual() {
		return c.ClockAhead
	}
	return skewMax
}

func (c Config) decks() ([][]string, error) {
	decks, err := choose(c.Nemeses, c.size(), c.attached())
	if c.Workload == verify.WorkloadExpiry {
		decks = slices.DeleteFunc(decks, func(faults []string) bool { return slices.Contains(faults, Clock) })
	}
	return decks, err
}

// workload translates what of the configuration concerns the workload. The prefix keeps runs apart that share a cluster.
func (c Config) workload(prefix string, overlap bool) verify.Config {
	out := verify.DefaultConfig(c.Workload)
	out.Clients, out.Keys, out.Timeout, out.Prefix, out.Overlap = c.Clients, c.Keys, operationTimeout, prefix, overlap
	out.Interval = 0
	if c.Rate > 0 {
		out.Interval = time.Duration(c.Clients) * time.Second / time.Duration(c.Rate)
	}
	return out
}

// Spec is a node to be started.
type Spec struct {
	Name string
	// Dir is the node's data directory.
	Dir string
	// HTTP, GRPC and Gossip are the addresses to listen on.
	HTTP, GRPC, Gossip string
	// Join are the gossip addresses and Members the names of all nodes.
	Join, Members []string
}

// Deps are what a run needs from outside.
type Deps struct {
	// Command returns the command that runs the node with the fault injector on. Needed unless Config.Endpoints is given.
	// Run sets its standard output and error.
	Command func(Spec) *exec.Cmd
	// Logger tells what happens; nil discards.
	Logger *slog.Logger
	// Progress is called several times a second while Run works; nil: nobody wants to know.
	Progress func(Progress)
}

func (d Deps) withDefaults() Deps {
	if d.Logger == nil {
		d.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return d
}

// Progress is how far a run is.
type Progress struct {
	// Phase says what it does, in a few words.
	Phase string
	// Elapsed is the time since the workload began; 0 before.
	Elapsed time.Duration
	// Operations and Faults count those that began.
	Operations, Faults int
}
