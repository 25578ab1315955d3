package quorum

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// cluster is a few replicas of one partition over a scripted network. It runs inside a synctest bubble, so that its
// delays cost no real time, and outside of one for races.
type cluster struct {
	t   testing.TB
	cfg storage.Config
	// mu guards links and the entries of nodes, which powerCut replaces.
	mu    sync.Mutex
	nodes map[kv.NodeID]*testNode
	links map[[2]kv.NodeID]link
	// past holds the nodes that lost power.
	past  []*testNode
	keeps bool
	// repair is the mode of all requests.
	repair RepairMode
	// resolves is the resolver of all keys; nil: as keeps says.
	resolves Resolver
	// hinting is the configuration of the nodes' stores of hints, standing what the map says of a hint's target.
	hinting  HintConfig
	standing atomic.Uint32 // a Standing
	// spare nodes are no owners of the partition.
	spare int
	// leads leads the partition; NoNode: nobody is known to.
	leads kv.NodeID
	// carried counts the messages under way.
	carried sync.WaitGroup
}

// link says what becomes of a call from one node to another, and of its reply.
type link struct {
	delay time.Duration
	// refuse fails the call before it is sent: a definite failure.
	refuse error
	// swallow drops the call, dropReply its answer: the caller hears nothing before the deadline.
	swallow, dropReply bool
	// twice delivers the call again after this delay, and drops the second answer.
	twice time.Duration
}

type testNode struct {
	id     kv.NodeID
	c      *cluster
	fs     storage.FS
	crash  func() storage.FS // what a power cut would leave
	engine *storage.Engine
	disk   *testDisk
	clock  *causal.Clock
	skew   time.Duration
	store  *Store
	coord  *Coordinator
	hints  *Hints
	reg    *prometheus.Registry
	dead   atomic.Bool
	// groups counts the messages with many requests that the node sent, singles those with one.
	groups, singles atomic.Int64
	// fenced is set when the power goes: nothing leaves the node any more.
	fenced atomic.Bool
	// position is what Positions returns.
	position atomic.Pointer[causal.Position]
	// applied is how far the node has applied the log.
	applied atomic.Uint64
	// ceiling survives a crash.
	ceiling atomic.Uint64
	stop    func()
	// stopCoordinator is the first half of stop.
	stopCoordinator func()
}

func testStorageConfig() storage.Config {
	cfg := storage.DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
	return cfg
}

func newCluster(t testing.TB, n int) *cluster {
	return newClusterOn(t, n, testStorageConfig(), func() (storage.FS, func() storage.FS) {
		fs := storage.NewCrashableMemFS()
		return fs, func() storage.FS { return withZero(fs.CrashClone) }
	})
}

// newClusterOn makes a cluster whose nodes have the storage configuration, and disks made by fs with what a power cut
// would leave of them.
func newClusterOn(t testing.TB, n int, cfg storage.Config, disk func() (storage.FS, func() storage.FS)) *cluster {
	c := &cluster{t: t, cfg: cfg, hinting: DefaultHintConfig(), nodes: map[kv.NodeID]*testNode{}, links: map[[2]kv.NodeID]link{}}
	c.standing.Store(uint32(StandingOwner))
	for id := kv.NodeID(1); id <= kv.NodeID(n); id++ {
		node := &testNode{id: id, c: c}
		node.fs, node.crash = disk()
		node.position.Store(&causal.Position{Term: 1, Index: 1})
		c.nodes[id] = node
		node.start()
	}
	t.Cleanup(func() {
		all := append(slices.Collect(maps.Values(c.nodes)), c.past...)
		for _, n := range all {
			n.stopCoordinator()
		}
		c.carried.Wait()
		for _, n := range all {
			n.shutdown()
		}
	})
	return c
}

// node returns the node in its present life.
func (c *cluster) node(id kv.NodeID) *testNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// powerCut takes a node's power and starts it again with what its disk had synced. Once is enough for a test: the disk
// of its second life is not a crashable one.
func (c *cluster) powerCut(id kv.NodeID) {
	old := c.node(id)
	old.fenced.Store(true)
	next := &testNode{id: id, c: c, fs: old.crash(), skew: old.skew}
	next.crash = func() storage.FS { return next.fs }
	next.position.Store(old.position.Load())
	next.ceiling.Store(old.ceiling.Load())
	next.start()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[id] = next
	c.past = append(c.past, old)
}

// withZero calls f with the zero value of its parameter, whose type only storage may name.
func withZero[P, R any](f func(P) R) R {
	var zero P
	return f(zero)
}

// start opens the node on its filesystem.
func (n *testNode) start() {
	t := n.c.t
	var err error
	n.engine, err = storage.Open("db", n.c.cfg, storage.Deps{FS: n.fs})
	require.NoError(t, err)
	n.disk = newTestDisk(n.engine)
	n.clock, err = causal.NewClock(causal.DefaultClockConfig(), causal.ClockDeps{
		WallNow: func() time.Time { return time.Now().Add(n.skew) },
		Persist: func(c causal.HLC) error { n.ceiling.Store(uint64(c)); return nil },
		Ceiling: causal.HLC(n.ceiling.Load()),
	})
	require.NoError(t, err)
	n.reg = prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	n.store, err = NewStore(DefaultConfig(), StoreDeps{
		State: n.engine.State(), Committer: n.disk, Clock: n.clock, Logger: log, Registerer: n.reg,
		Base:          func(kv.GroupID) causal.Position { return *n.position.Load() },
		KeepsSiblings: func([]byte) bool { return n.c.resolver().KeepsSiblings() },
		Async:         func(key []byte) bool { return bytes.HasPrefix(key, []byte("async:")) },
	})
	require.NoError(t, err)
	alive := func(id kv.NodeID) bool { return !n.c.node(id).dead.Load() }
	n.hints, err = NewHints(n.c.hinting, HintDeps{
		Self: n.id, State: n.engine.State(), Committer: n.disk, Clock: n.clock, Replicas: wires{n.c, n}, Alive: alive,
		Target: func(kv.PartitionID, kv.NodeID) (kv.Epoch, Standing) { return 1, Standing(n.c.standing.Load()) },
		Name:   func(id kv.NodeID) string { return fmt.Sprintf("n%d", id) }, Logger: log, Registerer: n.reg,
	})
	require.NoError(t, err)
	cfg := DefaultConfig()
	cfg.ReadSample = 0 // a test that wants samples says so
	n.coord, err = NewCoordinator(cfg, Deps{
		Self: n.id, Store: n.store, Replicas: wires{n.c, n}, Scanner: wires{n.c, n}, Clock: n.clock, Logger: log, Registerer: n.reg,
		Alive: alive, Hints: n.hints,
		Applied: func(kv.PartitionID) uint64 { return n.applied.Load() },
		Barrier: func(context.Context, kv.PartitionID) error {
			return kv.Errorf(kv.CodeQuorumUnavailable, "there is no log")
		},
		Leader: func(kv.PartitionID) kv.NodeID { return n.c.leads },
		Forward: func(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error) {
			if n.c.link(n.id, to).swallow {
				<-ctx.Done()
				return kv.Response{}, kv.Errorf(kv.CodeDeadlineExceeded, "no answer in time").WithOutcome(kv.OutcomeUnknown)
			}
			return n.c.node(to).coord.Do(ctx, n.c.call(r, kv.Quorum{}))
		},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.disk.run(ctx) })
	ended := make(chan error, 1)
	coordCtx, stopCoord := context.WithCancel(context.Background())
	hinting := make(chan error, 1)
	go func() { hinting <- n.hints.Run(coordCtx) }()
	go func() { ended <- n.coord.Run(coordCtx) }()
	n.stopCoordinator = sync.OnceFunc(func() {
		stopCoord()
		require.NoError(t, <-ended)
		require.NoError(t, <-hinting)
	})
	n.stop = func() {
		n.stopCoordinator()
		cancel()
		wg.Wait()
		_ = n.engine.Close() // a test may have closed it
	}
}

func (n *testNode) shutdown() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

func (c *cluster) setLink(from, to kv.NodeID, l link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links[[2]kv.NodeID{from, to}] = l
}

func (c *cluster) link(from, to kv.NodeID) link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.links[[2]kv.NodeID{from, to}]
}

// kill makes a node unreachable in the way of a process that is gone: every call to it fails before it is sent.
func (c *cluster) kill(id kv.NodeID) {
	for from := range c.nodes {
		c.setLink(from, id, link{refuse: kv.Errorf(kv.CodeNotReady, "no connection to node %d", id)})
	}
}

func (c *cluster) owners() []kv.NodeID {
	out := make([]kv.NodeID, len(c.nodes)-c.spare)
	for i := range out {
		out[i] = kv.NodeID(i + 1)
	}
	return out
}

func (c *cluster) resolver() Resolver {
	if c.resolves != nil {
		return c.resolves
	}
	if c.keeps {
		return Siblings{}
	}
	return LWW{}
}

// do runs a request at a node with r and w, which may be 0.
func (c *cluster) do(at kv.NodeID, timeout time.Duration, r *kv.Request, q kv.Quorum) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if r.Level == kv.LevelUnset {
		r.Level = kv.LevelEventual
	}
	return c.node(at).coord.Do(ctx, c.call(r, q))
}

// call is a request as the router hands it to a coordinator.
func (c *cluster) call(r *kv.Request, q kv.Quorum) Call {
	owners := c.owners()
	q, err := q.Resolve(kv.Quorum{N: len(owners), R: 2, W: 2}, len(owners))
	require.NoError(c.t, err)
	return Call{
		Request: r, Partition: 3, Epoch: 1, Owners: owners, Quorum: q, Resolver: c.resolver(), ResolverOf: func([]byte) Resolver { return c.resolver() }, Repair: c.repair,
		Fallbacks: func() []kv.NodeID {
			var out []kv.NodeID
			for i := range c.nodes {
				out = append(out, i)
			}
			slices.Sort(out)
			return out
		},
	}
}

func (c *cluster) put(at kv.NodeID, key, value string, context []byte, w int) (kv.Response, error) {
	return c.do(at, time.Second, &kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value), Context: context}, kv.Quorum{W: w})
}

func (c *cluster) get(at kv.NodeID, key string, r int) (kv.Response, error) {
	return c.do(at, time.Second, &kv.Request{Op: kv.OpGet, Key: []byte(key)}, kv.Quorum{R: r})
}

func (c *cluster) del(at kv.NodeID, key string, context []byte, w int) (kv.Response, error) {
	return c.do(at, time.Second, &kv.Request{Op: kv.OpDelete, Key: []byte(key), Context: context}, kv.Quorum{W: w})
}

// held returns what a node's storage holds in E.
func (n *testNode) held(key string) causal.SiblingSet {
	set, _, err := n.engine.State().Siblings(3, []byte(key))
	require.NoError(n.c.t, err)
	return set
}

// strong writes the strong lane's state of a key on a node, as its apply would.
func (n *testNode) strong(key string, s storage.Strong) {
	b := n.engine.NewBatch()
	defer b.Close()
	b.SetStrong(kv.PartitionID(3).Group(), []byte(key), s)
	require.NoError(n.c.t, n.engine.ApplySync(b))
	n.applied.Store(max(n.applied.Load(), s.Revision))
}

// values returns the values of a set's siblings.
func values(set causal.SiblingSet) []string {
	out := make([]string, len(set.Siblings))
	for i, s := range set.Siblings {
		out[i] = string(s.Value)
		if s.Deleted {
			out[i] = "<deleted>"
		}
	}
	return out
}

// wires is how one node reaches the others.
type wires struct {
	c    *cluster
	from *testNode
}

func (w wires) Write(ctx context.Context, to kv.NodeID, r WriteRequest, done func(WriteReply, error)) {
	w.from.singles.Add(1)
	carry(w, ctx, to, done, func(n *testNode, reply func(WriteReply, error)) {
		if r.HintFor != kv.NoNode {
			n.hints.Take(r, reply)
			return
		}
		n.store.Write(r, reply)
	})
}

func (w wires) Read(ctx context.Context, to kv.NodeID, r ReadRequest, done func(ReadReply, error)) {
	w.from.singles.Add(1)
	carry(w, ctx, to, done, func(n *testNode, reply func(ReadReply, error)) { reply(n.store.Read(r)) })
}

// WriteEach counts as one message.
func (w wires) WriteEach(ctx context.Context, to kv.NodeID, rs []WriteRequest, done func(int, []WriteResult)) {
	w.from.groups.Add(1)
	carry(w, ctx, to, func(results []WriteResult, err error) {
		if err != nil {
			results = make([]WriteResult, len(rs))
			for i := range results {
				results[i].Err = err
			}
		}
		done(0, results)
	}, func(n *testNode, reply func([]WriteResult, error)) {
		n.store.WriteEach(rs, func(results []WriteResult) { reply(results, nil) })
	})
}

// ReadEach answers in two halves, as a reply that became too large would.
func (w wires) ReadEach(ctx context.Context, to kv.NodeID, rs []ReadRequest, done func(int, []ReadResult)) {
	w.from.groups.Add(1)
	carry(w, ctx, to, func(results []ReadResult, err error) {
		if err != nil {
			results = make([]ReadResult, len(rs))
			for i := range results {
				results[i].Err = err
			}
		}
		half := len(results) / 2
		if half > 0 {
			done(0, results[:half])
		}
		done(half, results[half:])
	}, func(n *testNode, reply func([]ReadResult, error)) { reply(readEach(n.store, rs), nil) })
}

func readEach(s *Store, rs []ReadRequest) []ReadResult {
	results := make([]ReadResult, len(rs))
	for i := range rs {
		results[i].Reply, results[i].Err = s.Read(rs[i])
	}
	return results
}

func (w wires) Scan(ctx context.Context, to kv.NodeID, r ScanRequest) (ScanReply, error) {
	type answer struct {
		reply ScanReply
		err   error
	}
	answers := make(chan answer, 1)
	if _, ok := ctx.Deadline(); !ok {
		return ScanReply{}, fmt.Errorf("a scan without a deadline")
	}
	carry(w, ctx, to, func(reply ScanReply, err error) { answers <- answer{reply, err} },
		func(n *testNode, reply func(ScanReply, error)) { reply(n.store.Scan(r)) })
	a := <-answers
	return a.reply, a.err
}

// carry delivers a call and its reply as the link between the nodes says, and fails it at its deadline.
func carry[R any](w wires, ctx context.Context, to kv.NodeID, done func(R, error), deliver func(*testNode, func(R, error))) {
	var none R
	l := w.c.link(w.from.id, to)
	if l.refuse != nil {
		done(none, l.refuse)
		return
	}
	until, _ := ctx.Deadline()
	type answer struct {
		reply R
		err   error
	}
	w.c.carried.Go(func() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		answers := make(chan answer, 1) // stays empty when the answer gets lost
		time.Sleep(l.delay)
		if !l.swallow && !w.from.fenced.Load() {
			w.c.carried.Go(func() {
				target := w.c.node(to)
				deliver(target, func(r R, err error) {
					if !l.dropReply && !target.fenced.Load() {
						answers <- answer{r, err}
					}
				})
			})
		}
		if l.twice > 0 {
			w.c.carried.Go(func() {
				time.Sleep(l.twice)
				deliver(w.c.node(to), func(R, error) {})
			})
		}
		select {
		case a := <-answers:
			time.Sleep(w.c.link(to, w.from.id).delay)
			if !w.from.fenced.Load() {
				done(a.reply, a.err)
				return
			}
		case <-timer.C:
		case <-ctx.Done():
		}
		done(none, fmt.Errorf("no answer from node %d", to))
	})
}
