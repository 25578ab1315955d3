package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
	"github.com/caprockdb/caprock/ring"
)

// ErrDown is in the chain of what Execute returns when the asked node does not run. Nothing was sent then.
var ErrDown = errors.New("sim: the node is down")

// Options describe a simulated cluster.
type Options struct {
	Nodes      int
	Partitions int
	Seed       uint64
	Logger     *slog.Logger
	// Tune may change the configuration of a node before each of its starts; nil leaves it.
	Tune func(*node.Config)
}

// dataDir is where each node keeps its data on its own disk.
const dataDir = "data"

// checkTicks is how often replicas compare their states: far more often than any real cluster would.
const checkTicks = 40

// storageConfig is small enough to have many of.
func storageConfig() storage.Config {
	cfg := storage.DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 8<<20, 512<<10
	return cfg
}

// Cluster is a number of whole nodes in one process: simulated network, gossip and disks, real everything else. It is
// meant to live in a synctest bubble and to be driven by one goroutine; Execute may be called by any.
type Cluster struct {
	opts   Options
	rand   *rand.Rand
	net    *Network
	gossip *GossipNetwork
	nodes  []*instance
	names  []string
	watch  *watcher
	trap   trap
	// counters are those of all lives of all nodes.
	counters counters
	// stopWatching ends the comparison of states, which has ended once watching is closed.
	stopWatching, watching chan struct{}
}

// instance is one node's place in the cluster, whether it runs or not.
type instance struct {
	name string
	id   kv.NodeID
	disk *vfs.MemFS
	// life is the running node, nil while it is down. Written by the driving goroutine, read by clients.
	life atomic.Pointer[life]
	skew atomic.Int64 // nanoseconds
	// misread counts readings of the wall clock that were wrong.
	misread atomic.Uint64
	// rotten counts rows that were damaged on the disk.
	rotten atomic.Uint64
	pace   diskPace
}

// life is one run of a node, from start to crash or stop.
type life struct {
	node   *node.Node
	cancel context.CancelCauseFunc
	// fenced is closed when the node's replies stop counting: before its disk is cloned.
	fenced chan struct{}
	once   sync.Once
	// left is the disk as a crash left it.
	left *vfs.MemFS
	done chan error
	// faults stands between the node and its disk.
	faults *storage.FaultFS
}

// fence makes the life's replies stop counting. It reports whether they counted until now.
func (l *life) fence() (first bool) {
	l.once.Do(func() {
		close(l.fenced)
		first = true
	})
	return first
}

// NewCluster makes the cluster; no node runs yet.
func NewCluster(opts Options) (*Cluster, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{
		opts: opts, rand: rand.New(rand.NewPCG(opts.Seed, 0)),
		net: NewNetwork(opts.Seed), gossip: NewGossipNetwork(rand.New(rand.NewPCG(opts.Seed, 1))),
		watch: newWatcher(), stopWatching: make(chan struct{}), watching: make(chan struct{}),
	}
	c.net.Watch(c.watch.sent)
	c.watch.onPromise = c.promised
	for i := range opts.Nodes {
		name := fmt.Sprintf("n%d", i+1)
		c.names = append(c.names, name)
		c.nodes = append(c.nodes, &instance{name: name, id: kv.NodeID(i + 1), disk: vfs.NewCrashableMem()})
	}
	go func() {
		defer close(c.watching)
		c.compareStates(c.stopWatching)
	}()
	return c, nil
}

// Size returns the number of nodes.
func (c *Cluster) Size() int { return len(c.nodes) }

// Node returns the running node i, from 0, or nil.
func (c *Cluster) Node(i int) *node.Node {
	if l := c.nodes[i].life.Load(); l != nil {
		return l.node
	}
	return nil
}

// SetSkew sets how far node i's wall clock is off, from now on.
func (c *Cluster) SetSkew(i int, skew time.Duration) { c.nodes[i].skew.Store(int64(skew)) }

// wallNow is what the node's wall clock shows.
func (in *instance) wallNow() time.Time {
	skew := in.skew.Load()
	if skew != 0 {
		in.misread.Add(1)
	}
	return time.Now().Add(time.Duration(skew))
}

func gossipAddr(i int) string { return fmt.Sprintf("10.0.0.%d:7946", i+1) }

// Start starts node i on the disk that its last life left.
func (c *Cluster) Start(ctx context.Context, i int) error {
	in := c.nodes[i]
	if in.life.Load() != nil {
		return fmt.Errorf("sim: %s runs already", in.name)
	}
	cfg := node.DefaultConfig()
	cfg.Name, cfg.DataDir, cfg.InitialMembers = in.name, dataDir, c.names
	cfg.Partitions = c.opts.Partitions
	cfg.GossipBind = gossipAddr(i)
	cfg.Advertise = node.Addresses{HTTP: in.name + ":http", GRPC: in.name + ":grpc", Gossip: gossipAddr(i)}
	cfg.Storage = storageConfig()
	cfg.Consensus.CheckTicks = checkTicks
	for j := range c.nodes {
		cfg.Join = append(cfg.Join, gossipAddr(j))
	}
	if c.opts.Tune != nil {
		c.opts.Tune(&cfg)
	}
	gossip, err := c.gossip.Transport(gossipAddr(i))
	if err != nil {
		return err
	}
	late := newLateFS(in.disk, &in.pace)
	faults := storage.NewFaultFS(late)
	n, err := node.New(cfg, node.Deps{
		Logger: c.opts.Logger.With("node", in.name), Registerer: c.counters.register(),
		Rand: rand.New(rand.NewPCG(c.rand.Uint64(), c.rand.Uint64())), FS: faults,
		WallNow:         in.wallNow,
		Wire:            func(node.Resolver) (transport.Wire, error) { return c.net.Wire(in.id), nil },
		GossipTransport: gossip,
	})
	if err != nil {
		return errors.Join(err, gossip.Shutdown())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l := &life{node: n, cancel: cancel, fenced: make(chan struct{}), done: make(chan error, 1), faults: faults}
	c.net.Attach(in.id, n.Deliver)
	in.life.Store(l)
	go func() { l.done <- n.Run(ctx) }()
	return nil
}

// StartAll starts every node.
func (c *Cluster) StartAll(ctx context.Context) error {
	for i := range c.nodes {
		if err := c.Start(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// Stop stops node i as SIGTERM does.
func (c *Cluster) Stop(i int) error {
	in := c.nodes[i]
	l := in.life.Load()
	if l == nil {
		return ErrDown
	}
	l.cancel(nil)
	err := <-l.done
	l.fence()
	c.net.Detach(in.id)
	in.life.Store(nil)
	return err
}

// Crash ends the lives of the given nodes at one instant. Of what was not synced, unsyncedPercent survives of each disk:
// 100 is kill -9, less is a power cut. First each node's messages and replies are fenced: nothing that it says after its
// disk was cloned may reach anyone, or the simulation would report losses that no real crash can cause.
func (c *Cluster) Crash(unsyncedPercent int, which ...int) error {
	c.sever(which, unsyncedPercent, rand.New(rand.NewPCG(c.rand.Uint64(), c.rand.Uint64())))
	return c.bury(which...)
}

// sever takes the given nodes off the networks and sets their disks to what a crash at this instant leaves. It waits for
// nobody, so that it can be called from within a node's own sending.
func (c *Cluster) sever(which []int, unsyncedPercent int, r *rand.Rand) {
	for _, i := range which {
		if l := c.nodes[i].life.Load(); l != nil && l.fence() {
			c.net.Sever(c.nodes[i].id)
			c.gossip.Remove(gossipAddr(i))
		}
	}
	for _, i := range which {
		if l := c.nodes[i].life.Load(); l != nil && l.left == nil {
			l.left = c.nodes[i].disk.CrashClone(vfs.CrashCloneCfg{
				UnsyncedDataPercent: unsyncedPercent, RNG: rand.New(rand.NewPCG(r.Uint64(), r.Uint64())),
			})
		}
	}
}

// bury ends what still runs of severed nodes, and checks what they left behind.
func (c *Cluster) bury(which ...int) error {
	var errs []error
	left := map[kv.NodeID]*vfs.MemFS{}
	for _, i := range which {
		in := c.nodes[i]
		l := in.life.Load()
		if l == nil {
			continue
		}
		c.net.Detach(in.id)
		l.cancel(node.ErrKilled)
		if err := <-l.done; err != nil && !errors.Is(err, node.ErrKilled) {
			errs = append(errs, fmt.Errorf("%s: %w", in.name, err))
		}
		in.disk = l.left
		in.life.Store(nil)
		left[in.id] = in.disk
	}
	return errors.Join(append(errs, c.watch.crashed(left, len(which) == len(c.nodes)))...)
}

// Cut cuts both directions, of peer traffic and gossip, between every node of a and every node of b.
func (c *Cluster) Cut(a, b []int) { c.setCut(a, b, true) }

// Heal mends every cut.
func (c *Cluster) Heal() {
	all := make([]int, len(c.nodes))
	for i := range all {
		all[i] = i
	}
	c.setCut(all, all, false)
}

func (c *Cluster) setCut(a, b []int, cut bool) {
	for _, i := range a {
		for _, j := range b {
			if i == j {
				continue
			}
			for _, d := range [][2]int{{i, j}, {j, i}} {
				c.net.SetCut(c.nodes[d[0]].id, c.nodes[d[1]].id, cut)
				c.gossip.SetCut(gossipAddr(d[0]), gossipAddr(d[1]), cut)
			}
		}
	}
}

// Execute offers a request to node i as a client of it would. An answer that a crash fenced off is none: the outcome of
// a write is then unknown.
func (c *Cluster) Execute(ctx context.Context, i int, r *kv.Request) (kv.Response, error) {
	l := c.nodes[i].life.Load()
	if l == nil {
		return kv.Response{}, kv.Errorf(kv.CodeNotReady, "%w", ErrDown)
	}
	if !c.paused(ctx, i) {
		return kv.Response{}, errUnheard()
	}
	res, err := l.node.Execute(ctx, r)
	heard := c.paused(ctx, i)
	select {
	case <-l.fenced:
		return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "the node crashed").WithOutcome(kv.OutcomeUnknown)
	default:
	}
	if !heard {
		return kv.Response{}, errUnheard()
	}
	if err == nil && r.Op.IsWrite() {
		c.watch.answered(ring.PartitionOf(r.Key, c.opts.Partitions), r.Key, &res)
		c.answered()
	}
	return res, err
}

// ExecuteEach is Execute for requests that a client sends together.
func (c *Cluster) ExecuteEach(ctx context.Context, i int, rs []kv.Request) []kv.Answer {
	all := func(err error) []kv.Answer {
		out := make([]kv.Answer, len(rs))
		for i := range out {
			out[i].Err = kv.AsError(err)
		}
		return out
	}
	l := c.nodes[i].life.Load()
	if l == nil {
		return all(kv.Errorf(kv.CodeNotReady, "%w", ErrDown))
	}
	if !c.paused(ctx, i) {
		return all(errUnheard())
	}
	out := l.node.ExecuteEach(ctx, rs)
	heard := c.paused(ctx, i)
	select {
	case <-l.fenced:
		return all(kv.Errorf(kv.CodeQuorumUnavailable, "the node crashed").WithOutcome(kv.OutcomeUnknown))
	default:
	}
	if !heard {
		return all(errUnheard())
	}
	for i := range out {
		if key := rs[i].Key; out[i].Err == nil && rs[i].Op.IsWrite() {
			c.watch.answered(ring.PartitionOf(key, c.opts.Partitions), key, &out[i].Response)
			c.answered()
		}
	}
	return out
}

// WaitReady waits until every running node can serve the level.
func (c *Cluster) WaitReady(ctx context.Context, level kv.Level) error {
	for {
		var err error
		for i := range c.nodes {
			if n := c.Node(i); n != nil && err == nil {
				err = n.Ready(level)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sim: not ready for %s: %w", level, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Close stops what still runs, releases the networks and waits until nothing of them is left in the bubble.
func (c *Cluster) Close() error {
	var errs []error
	for i := range c.nodes {
		if c.nodes[i].life.Load() != nil {
			errs = append(errs, c.Stop(i))
		}
	}
	close(c.stopWatching)
	<-c.watching
	c.net.Close()
	time.Sleep(gossipLinger)
	return errors.Join(errs...)
}

// SetSyncDelay makes the log of node i take so long to become durable, in this life and later ones, until it is set anew.
func (c *Cluster) SetSyncDelay(i int, d time.Duration) {
	c.nodes[i].pace.extra.Store(int64(d - syncDelay))
}

// SetDisk makes the disk of node i misbehave until its life ends or the fault is taken back; a node that is down is left
// alone. It returns what counts how often a fault took effect, nil for such a node.
func (c *Cluster) SetDisk(i int, fault storage.DiskFault) *storage.FaultFS {
	l := c.nodes[i].life.Load()
	if l == nil {
		return nil
	}
	l.faults.Set(fault)
	return l.faults
}

// Wipe empties the disk of node i, which must be down. What the node had promised went with it.
func (c *Cluster) Wipe(i int) {
	c.nodes[i].disk = vfs.NewCrashableMem()
	c.watch.forget(c.nodes[i].id)
}

// Violations returns what the invariants that are checked in every run found broken.
func (c *Cluster) Violations() []string {
	broken, _ := c.watch.result()
	return broken
}

// forget notes that node i's life ended by itself.
func (c *Cluster) forget(i int) {
	c.net.Detach(c.nodes[i].id)
	c.nodes[i].life.Store(nil)
}
