package quorum

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Deps is what a coordinator needs from its node.
type Deps struct {
	Self     kv.NodeID
	Store    *Store
	Replicas Replica
	// Scanner lists what other replicas hold. Nil: they cannot be listed.
	Scanner Scanner
	Clock   *causal.Clock
	// Alive says what gossip believes of a node. It is cheap, and it is only a hint: a request that could still succeed
	// is tried.
	Alive func(kv.NodeID) bool
	// Distance says how far a node is, 0 being nearest; nil: all are equally far. It is cheap.
	Distance func(kv.NodeID) int
	// Seed tells the samples of different coordinators apart.
	Seed uint64
	// Hints keeps what replicas did not take. Nil: nothing is kept.
	Hints *Hints
	// Leader returns who leads the group of a partition, as far as this node knows, and Forward hands a request to another
	// replica. An error whose outcome is "not applied" says that the other one did nothing. Both are nil where writes that are
	// refused again and again are not to be handed on.
	Leader  func(kv.PartitionID) kv.NodeID
	Forward func(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error)
	// Applied returns how far this node has applied the log of a partition, and Barrier returns once it has applied all that was
	// committed. Level causal needs both.
	Applied    func(kv.PartitionID) uint64
	Barrier    func(context.Context, kv.PartitionID) error
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Call is one request with what the router knows about it.
type Call struct {
	Request   *kv.Request
	Partition kv.PartitionID
	Epoch     kv.Epoch
	// Owners are the partition's replicas in preference order, the coordinator among them.
	Owners []kv.NodeID
	// Quorum is resolved: 1 <= R, W <= N <= len(Owners). At level local it is not used.
	Quorum   kv.Quorum
	Resolver Resolver
	Repair   RepairMode
	// ResolverOf returns the resolver of a listed key, nil for one that this node does not know. For listings only.
	ResolverOf func(key []byte) Resolver
	// Fallbacks returns the nodes that may keep hints for owners, in the order of the ring. It is asked for sloppy writes
	// only. Nil: there are none.
	Fallbacks func() []kv.NodeID
	// after is set for writes of level causal.
	after *afterSession
}

// Coordinator serves requests of the levels eventual and local on behalf of a partition that this node replicates. It
// starts no goroutine; what goes on after an answer are calls whose replies it counts.
type Coordinator struct {
	cfg     Config
	deps    Deps
	calls   *calls
	rides   rides
	metrics *coordinatorMetrics
	// reads and writes pick what is measured.
	reads, writes *sampler
	latencies     *latencies
	hot           hotKeys
	// repairing counts the read repairs under way.
	repairing atomic.Int64
	// life is done once Run has been told to stop; it ends the calls that are still out.
	life context.Context
	end  context.CancelFunc
}

// NewCoordinator returns a coordinator. It serves at once; Run stops it.
func NewCoordinator(cfg Config, deps Deps) (*Coordinator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Self == kv.NoNode || deps.Store == nil || deps.Replicas == nil || deps.Clock == nil || deps.Alive == nil ||
		deps.Logger == nil || deps.Registerer == nil {
		return nil, errors.New("quorum: a coordinator needs Self, Store, Replicas, Clock, Alive, Logger and Registerer")
	}
	if deps.Distance == nil {
		deps.Distance = func(kv.NodeID) int { return 0 }
	}
	c := &Coordinator{cfg: cfg, deps: deps, calls: newCalls(cfg.CallsPerReplicaMax), latencies: newLatencies()}
	c.rides.latest = make(map[entryKey]*writeOp)
	c.reads, c.writes = newSampler(cfg.ReadSample, deps.Seed), newSampler(cfg.ReadSample, ^deps.Seed)
	c.life, c.end = context.WithCancel(context.Background())
	c.metrics = newCoordinatorMetrics(deps.Registerer, func() float64 { return float64(c.calls.outstanding()) })
	return c, nil
}

// Run waits until ctx is done, then refuses new requests, ends the calls that are still out and waits until all of them
// have answered, at most for the stop timeout.
func (c *Coordinator) Run(ctx context.Context) error {
	<-ctx.Done()
	idle := c.calls.stop()
	c.end()
	timer := time.NewTimer(c.cfg.StopTimeout)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
		return fmt.Errorf("quorum: %d calls to replicas were not answered within %v of the stop",
			c.calls.outstanding(), c.cfg.StopTimeout)
	}
}

// Do serves the request. ctx carries its deadline. The error is a *kv.Error.
func (c *Coordinator) Do(ctx context.Context, call Call) (kv.Response, error) {
	res, err := c.do(ctx, &call)
	if err != nil {
		return kv.Response{}, c.failure(call.Request, err)
	}
	return res, nil
}

// failure is what a request ends with that failed, which it counts. One of level bounded may be answered by another replica yet.
func (c *Coordinator) failure(r *kv.Request, err error) *kv.Error {
	e := kv.AsError(err)
	if r.Level != kv.LevelBounded && (e.Code == kv.CodeQuorumUnavailable || e.Code == kv.CodeDeadlineExceeded) {
		c.metrics.failures[r.Op].Inc()
	}
	return e
}

func (c *Coordinator) do(ctx context.Context, call *Call) (kv.Response, error) {
	if err := c.check(ctx, call); err != nil {
		return kv.Response{}, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.RequestTimeout)
		defer cancel()
	}
	return c.serve(ctx, call)
}

// check refuses what cannot be served.
func (c *Coordinator) check(ctx context.Context, call *Call) error {
	invariant.Check(slices.Contains(call.Owners, c.deps.Self), "node %d coordinates for partition %d, which it does not replicate",
		c.deps.Self, call.Partition)
	if call.Request.Level == kv.LevelLocal {
		call.Quorum = kv.Quorum{N: len(call.Owners), R: 1, W: 1}
	}
	if _, err := call.Quorum.Resolve(call.Quorum, len(call.Owners)); err != nil {
		return err
	}
	if call.Resolver == nil && call.ResolverOf == nil {
		return kv.Errorf(kv.CodeInternal, "the key's policy names a resolver that this node does not know")
	}
	if c.calls.isStopped() {
		return kv.Errorf(kv.CodeNotReady, "the node is stopping")
	}
	if ctx.Err() != nil {
		return kv.Errorf(kv.CodeDeadlineExceeded, "the deadline passed before anything was sent")
	}
	return nil
}

func (c *Coordinator) serve(ctx context.Context, call *Call) (kv.Response, error) {
	switch r := call.Request; {
	case r.Level == kv.LevelCausal:
		return c.causal(ctx, call)
	case r.Op.IsWrite():
		return c.write(ctx, call)
	case r.Op == kv.OpList:
		return c.list(ctx, call)
	default:
		return c.read(ctx, call)
	}
}

// participants returns the n replicas that take part in the call, and how many of them are believed alive: this node
// first, then those alive, the nearest first, then the others. Who takes part is decided by preference alone, never by
// who is alive. Among those equally near the order goes round from this node's own place, so that coordinators do not
// all read from the same one.
func (c *Coordinator) participants(call *Call) (nodes []kv.NodeID, alive int) {
	n := call.Quorum.N
	own := slices.Index(call.Owners, c.deps.Self)
	last := n // the first owners, up to here, take part; this node does in any case
	if own >= n {
		last = n - 1
	}
	nodes = make([]kv.NodeID, 0, n)
	nodes = append(nodes, c.deps.Self)
	for _, wantAlive := range [...]bool{true, false} {
		begin := len(nodes)
		for i := range len(call.Owners) {
			at := (own + 1 + i) % len(call.Owners)
			if at < last && at != own && c.deps.Alive(call.Owners[at]) == wantAlive {
				nodes = append(nodes, call.Owners[at])
			}
		}
		if wantAlive {
			alive = len(nodes)
			if !call.Request.Op.IsWrite() && alive-begin > 1 {
				slices.SortStableFunc(nodes[begin:], c.nearer)
			}
		}
	}
	return nodes, alive
}

// nearer orders nodes by distance, and those at the same distance by how long they took to answer lately.
func (c *Coordinator) nearer(a, b kv.NodeID) int {
	return cmp.Or(cmp.Compare(c.deps.Distance(a), c.deps.Distance(b)), cmp.Compare(c.latencies.class(a), c.latencies.class(b)))
}

// callGrace is how much longer than the request a call lives at least, so that a request whose time is up says so
// instead of naming the calls that ended with it.
const callGrace = 100 * time.Millisecond

// callContext returns the context of the calls made for a request: they have at least ReplicaTimeout, because a replica
// that is late is brought up to date all the same.
func (c *Coordinator) callContext(ctx context.Context) callContext {
	now := time.Now()
	until := now.Add(c.cfg.ReplicaTimeout)
	if d, ok := ctx.Deadline(); ok && d.Add(callGrace).After(until) {
		until = d.Add(callGrace)
	}
	return callContext{Context: c.life, deadline: until, made: now}
}

// errNotCalled is the failure of a call that was not made.
func (c *Coordinator) errNotCalled(node kv.NodeID) error {
	c.metrics.callsDropped.Inc()
	return kv.Errorf(kv.CodeOverloaded, "too many calls to node %d are outstanding", node)
}

// tooFewAlive refuses a request that cannot succeed, before anything was sent.
func tooFewAlive(required, alive, n int) error {
	e := kv.Errorf(kv.CodeQuorumUnavailable, "%d of %d replicas are alive; %d are needed", alive, n, required)
	e.Required, e.Alive = required, alive
	return e
}
