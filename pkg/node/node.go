package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/antientropy"
	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/membership"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
	"github.com/caprockdb/caprock/quorum"
)

// ErrKilled as the cause of Run's cancelled context ends the node at once, without finishing or handing over anything. The
// simulator uses it for crashes: the disk that the node goes on writing to has already been replaced.
var ErrKilled = errors.New("node killed")

// Node is one Caprock node. Its parts are made by New, run by Run, and closed when Run returns.
type Node struct {
	cfg  Config
	log  *slog.Logger
	id   identity
	rand *lockedRand

	engine      *storage.Engine
	clock       *causal.Clock
	machine     *meta.Machine
	strong      *consensus.Store
	eventual    *quorum.Store
	coordinator *quorum.Coordinator
	hints       *quorum.Hints
	exchange    *antientropy.Service
	members     *membership.Membership
	mux         *transport.Mux
	injector    *Injector // nil unless the node runs with Dev
	metadata    *meta.Service
	metrics     *metrics
	lanes       lanes

	stand     ringOrder
	admission admission
	space     space
	draining  atomic.Bool
	// avoided are nodes that refused what was forwarded to them; forwardedAt is when something was forwarded here last, in
	// nanoseconds of Unix time.
	avoided     avoided
	reach       *reach
	proofs      *prover
	forwardedAt atomic.Int64
	// rowsDamaged counts the rows of the eventual lane that were found lost or damaged since the node started.
	rowsDamaged atomic.Uint64
	// bootstrapped is set once this disk may act under its node id and group 0 is open.
	bootstrapped atomic.Bool
	// fatal receives the first error of the storage engine that the node must not survive.
	fatal chan error
	// gate is passed by everything that users and peers ask for, so that a stop waits for it before it closes the storage.
	gate    *gate
	workers *workers
	// resolvers are what policies can name.
	resolvers *quorum.Registry
}

// New opens the data directory and composes the node. Nothing runs until Run, which also closes what New opened.
func New(cfg Config, deps Deps) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	deps = deps.withDefaults()
	n := &Node{cfg: cfg, log: deps.Logger, rand: newLockedRand(deps.Rand), fatal: make(chan error, 1), gate: newGate()}
	if n.resolvers = deps.Resolvers; n.resolvers == nil {
		n.resolvers = quorum.NewRegistry(cfg.Limits.ValueBytesMax)
	}
	n.reach = newReach(func(ctx context.Context, to kv.NodeID) error {
		_, err := n.mux.Meta(ctx, to, []byte{metaPing})
		return err
	})
	n.workers = newWorkers(n.gate.closing.Done())
	n.proofs = n.newProver()
	n.lanes.driver = newLaneDriver(n)
	n.metrics = newMetrics(deps.Registerer, n)
	n.admission.opsMax, n.admission.bytesMax = int64(cfg.OpsInFlightMax), cfg.BytesInFlightMax
	deps = n.withFaults(deps)
	if err := n.open(deps); err != nil {
		return nil, err
	}
	if err := n.compose(deps); err != nil {
		return nil, errors.Join(err, n.engine.Close())
	}
	return n, nil
}

// withDefaults fills the seams that were left at their zero values with the real thing.
func (d Deps) withDefaults() Deps {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Registerer == nil {
		d.Registerer = prometheus.NewRegistry()
	}
	if d.Rand == nil {
		d.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	if d.FS == nil {
		d.FS = storage.DiskFS()
	}
	if d.WallNow == nil {
		d.WallNow = time.Now
	}
	return d
}

// open opens what the disk holds: storage, identity, clock and the state of group 0.
func (n *Node) open(deps Deps) (err error) {
	n.engine, err = storage.Open(n.cfg.DataDir, n.cfg.Storage, storage.Deps{
		FS: deps.FS, Logger: n.log, Registerer: deps.Registerer, OnFatal: n.storageFailed,
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.engine.Close())
		}
	}()
	var disk uint64
	for disk == 0 {
		disk = n.rand.Uint64()
	}
	if n.id, err = loadIdentity(n.engine, n.cfg, disk); err != nil {
		return err
	}
	if n.clock, err = newClock(n.engine, n.cfg.Clock, deps.WallNow); err != nil {
		return err
	}
	if n.machine, err = meta.NewMachine(n.engine.State()); err != nil {
		return err
	}
	return n.keepPartitions(n.machine.State())
}

// storageFailed notes the error that stops the node. Later ones follow from the first.
func (n *Node) storageFailed(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}

// compose builds the parts above storage. The order is that of the layers; the transport comes first because the lanes
// send through it, and it delivers to the node, which by then is complete.
func (n *Node) compose(deps Deps) (err error) {
	wire, err := deps.Wire(n.resolve)
	if err != nil {
		return err
	}
	n.mux, err = transport.New(n.cfg.Transport, transport.Deps{
		Self: n.id.Node, Wire: wire, Clock: n.clock, Epoch: n.epoch, Cluster: n.ClusterID,
		Handler: handler{n}, Pull: handler{n}.HandlePull, Logger: n.log, Registerer: deps.Registerer, Faults: n.networkFaults(), Rand: n.rand.fork(),
	})
	if err != nil {
		return err
	}
	n.strong, err = consensus.New(n.cfg.Consensus, consensus.Deps{
		Self: n.id.Node, Engine: n.engine, Sender: n.mux, Puller: n.mux, Clock: n.clock, Meta: n.machine,
		Logger: n.log, Registerer: deps.Registerer, OnLeader: n.leaderChanged,
		MayLead: n.mayLead,
		Unsettled: func(g kv.GroupID, promise causal.HLC) (uint64, bool) {
			p, ok := g.Partition()
			if !ok {
				return 0, true
			}
			return n.eventual.Unsettled(p, promise)
		},
		Settled: func(g kv.GroupID, keys [][]byte) {
			if p, ok := g.Partition(); ok {
				n.eventual.Settled(p, keys)
			}
		},
	})
	if err != nil {
		return err
	}
	if err := n.composeEventual(deps); err != nil {
		return err
	}
	if err := n.composeMembership(deps); err != nil {
		return err
	}
	metaCfg := n.cfg.Meta
	metaCfg.Genesis = n.id.Genesis
	n.metadata, err = meta.New(metaCfg, meta.Deps{
		Self: n.self(), Machine: n.machine, Group: n.strong, Forward: metaForwarder{n.mux},
		Rand: n.rand.fork(), Logger: n.log,
	})
	return err
}

func (n *Node) composeEventual(deps Deps) (err error) {
	n.eventual, err = quorum.NewStore(n.cfg.Coordinator, quorum.StoreDeps{
		State: n.engine.State(), Committer: spaceCommitter{n}, Clock: n.clock, Logger: n.log,
		Registerer: deps.Registerer, Base: n.strong.Base, Fence: n.strong.Fence, Applied: n.strong.Applied, KeepsSiblings: n.keepsSiblings, Async: n.async, Damaged: n.damaged,
		Shut: n.shut, Floor: func() causal.HLC { return n.machine.State().Floor },
		Sound: n.strong.Sound, Distrust: n.strong.Distrust,
	})
	if err != nil {
		return err
	}
	if err := n.composeHints(deps.Registerer); err != nil {
		return err
	}
	n.coordinator, err = quorum.NewCoordinator(n.cfg.Coordinator, quorum.Deps{
		Self: n.id.Node, Store: n.eventual, Replicas: n.mux, Scanner: n.mux, Clock: n.clock, Logger: n.log,
		Registerer: deps.Registerer, Alive: n.alive, Distance: n.distance, Seed: n.rand.Uint64(),
		Hints: n.hints, Forward: n.forwardWrite,
		Applied: func(p kv.PartitionID) uint64 {
			st, _ := n.strong.Status(p.Group())
			return st.Applied
		},
		Barrier: func(ctx context.Context, p kv.PartitionID) error { return n.strong.ReadBarrier(ctx, p.Group()) },
		Leader:  func(p kv.PartitionID) kv.NodeID { return n.strong.Leader(p.Group()) },
	})
	if err != nil {
		return err
	}
	return n.composeExchange(deps)
}

func (n *Node) composeMembership(deps Deps) (err error) {
	cfg := n.cfg.Membership
	cfg.Name, cfg.BindAddr, cfg.Join = n.cfg.Name, n.cfg.GossipBind, n.cfg.Join
	n.members, err = membership.New(cfg, membership.Deps{
		Transport: deps.GossipTransport, Logger: n.log, Rand: n.rand.fork(),
		Epoch: n.epoch,
		HLC:   func() uint64 { return uint64(n.clock.Last()) },
		OnHLC: n.observeGossip,
		// Whoever is seen alive, perhaps elsewhere, is worth another try at once.
		OnAlive: func(m membership.Member) {
			if m.Meta.ID != n.id.Node {
				n.mux.Relocated(m.Meta.ID)
			}
		},
		KnownAddrs: func() []string {
			var out []string
			for _, m := range n.machine.State().Members {
				if m.Gossip != "" && m.ID != n.id.Node {
					out = append(out, m.Gossip)
				}
			}
			return out
		},
	})
	if err != nil {
		return err
	}
	return n.announce()
}

// announce tells the other members, by gossip, who this node is and where it listens.
func (n *Node) announce() error {
	return n.members.SetSelf(membership.Meta{
		ID: n.id.Node, HTTP: n.cfg.Advertise.HTTP, GRPC: n.cfg.Advertise.GRPC, Gossip: n.cfg.Advertise.Gossip,
		RESP: n.cfg.Advertise.RESP, Zone: n.cfg.Zone, DC: n.cfg.DC, Cluster: n.ClusterID(),
		Unfit: n.unfit(),
	})
}

// unfit reports whether this node should lead nothing: it stops, or takes no writes.
func (n *Node) unfit() bool {
	return n.draining.Load() || n.space.low.Load() || n.engine.Degraded() != nil || n.engine.Waiting() >= diskPatience
}

// mayLead reports whether the node should be handed leaderships, as far as gossip knows.
func (n *Node) mayLead(id kv.NodeID) bool {
	if id == n.id.Node {
		return !n.unfit()
	}
	m, known := n.members.Lookup(n.NodeName(id))
	return !known || !m.Meta.Unfit // whom gossip has not met yet may be as good as any: Raft knows who answers
}

// Run runs the node until ctx is done, then stops it gracefully: it refuses new requests, finishes those in flight,
// hands its leaders over and closes the storage, all within the drain timeout. It returns nil after a graceful stop and
// the cause otherwise.
func (n *Node) Run(ctx context.Context) error {
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(inner)
	g.Go(func() error { return n.mux.Run(gctx) })
	g.Go(func() error { return n.strong.Run(gctx) })
	g.Go(func() error { return n.members.Run(gctx) })
	g.Go(func() error { return n.coordinator.Run(gctx) })
	g.Go(func() error { n.eventual.Tend(gctx); return nil })
	g.Go(func() error { return n.keepClockAhead(gctx) })
	g.Go(func() error { return n.watchSpace(gctx) })
	g.Go(func() error { return n.removeExpired(gctx) })
	g.Go(func() error { return n.serve(gctx, g) })
	g.Go(func() error {
		select {
		case err := <-n.fatal:
			return fmt.Errorf("storage failed: %w", err)
		case <-gctx.Done():
			return nil
		}
	})
	select {
	case <-ctx.Done():
		if !errors.Is(context.Cause(ctx), ErrKilled) {
			n.drain()
		}
	case <-gctx.Done():
	}
	stop()
	err := g.Wait()
	n.gate.close()
	n.workers.all.Wait()
	if closeErr := n.engine.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// serve opens group 0 once this disk's identity is confirmed, and then keeps the replicas in step with the map.
func (n *Node) serve(ctx context.Context, g *errgroup.Group) error {
	if err := n.confirmIdentity(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	voters := make([]kv.NodeID, len(n.id.Genesis.InitialMembers))
	for i := range voters {
		voters[i] = kv.NodeID(i + 1)
	}
	if err := n.strong.Bootstrap(kv.MetaGroup, voters); err != nil {
		return fmt.Errorf("open group 0: %w", err)
	}
	n.bootstrapped.Store(true)
	g.Go(func() error { return n.metadata.Run(ctx) })
	g.Go(func() error { return n.hints.Run(ctx) })
	g.Go(func() error { n.lanes.driver.run(ctx); return nil })
	g.Go(func() error { return n.exchange.Run(ctx) })
	return n.followMap(ctx)
}

// followMap opens the Raft groups of the partitions that the map gives to this node.
func (n *Node) followMap(ctx context.Context) error {
	var seen kv.Epoch
	var cluster uint64
	for {
		st := n.machine.State()
		if cluster != st.Genesis.ClusterID {
			cluster = st.Genesis.ClusterID
			if err := n.announce(); err != nil {
				return err
			}
		}
		if st.Map.Epoch != seen {
			if err := n.keepPartitions(st); err != nil {
				return err
			}
			for p := range st.Map.Partitions {
				owners := st.Map.Partitions[p].Replicas
				if !st.Map.Owns(kv.PartitionID(p), n.id.Node) {
					continue
				}
				if err := n.strong.Bootstrap(kv.PartitionID(p).Group(), owners); err != nil {
					return fmt.Errorf("open partition %d: %w", p, err)
				}
			}
			seen = st.Map.Epoch
			n.log.Info("partition map in force", "epoch", uint64(seen), "partitions", len(st.Map.Partitions))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.machine.Changed():
		}
	}
}

// keepClockAhead extends the clock's durable ceiling before anyone has to wait for it.
func (n *Node) keepClockAhead(ctx context.Context) error {
	tick := time.NewTicker(n.cfg.Clock.CeilingAhead / 3)
	defer tick.Stop()
	for {
		if err := n.clock.ExtendAhead(); err != nil {
			return fmt.Errorf("persist the clock's ceiling: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// drain refuses new requests, waits for those in flight and hands the leaders over.
func (n *Node) drain() {
	n.draining.Store(true)
	if err := n.announce(); err != nil {
		n.log.Warn("the others will learn late that this node stops", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.DrainTimeout)
	defer cancel()
	n.log.Info("stopping: finishing requests in flight and handing leaders over")
	for n.admission.ops.Load() > 0 && ctx.Err() == nil {
		time.Sleep(drainPoll)
	}
	n.strong.TransferAll(ctx)
	// Peers that have not noticed yet still forward requests here. They are refused, and go elsewhere; one whose refusal
	// never arrived would have an unknown outcome. So the links stay until nothing has come for a while.
	begun := time.Now()
	n.forwardedAt.Store(begun.UnixNano())
	for ctx.Err() == nil && time.Since(begun) < drainLingerMax &&
		time.Since(time.Unix(0, n.forwardedAt.Load())) < drainQuiet {
		time.Sleep(drainPoll)
	}
}

const (
	drainPoll = 5 * time.Millisecond
	// drainQuiet is how long nothing must have been forwarded here before the links are closed, drainLingerMax for how
	// long that is waited for.
	drainQuiet, drainLingerMax = 100 * time.Millisecond, time.Second
)

// ID returns this node's id.
func (n *Node) ID() kv.NodeID { return n.id.Node }

// ClusterID returns the cluster's identity, 0 before this node has learnt it.
func (n *Node) ClusterID() uint64 { return n.machine.State().Genesis.ClusterID }

// Deliver takes a batch of frames that the wire received from a peer. The batch is not retained.
func (n *Node) Deliver(from kv.NodeID, batch []byte) error { return n.mux.Deliver(from, batch) }

func (n *Node) epoch() kv.Epoch { return n.machine.State().Map.Epoch }

// self is what this node registers in group 0.
func (n *Node) self() meta.Member {
	return meta.Member{
		ID: n.id.Node, Name: n.cfg.Name, Disk: n.id.Disk,
		HTTP: n.cfg.Advertise.HTTP, GRPC: n.cfg.Advertise.GRPC, Gossip: n.cfg.Advertise.Gossip, RESP: n.cfg.Advertise.RESP,
		Zone: n.cfg.Zone, DC: n.cfg.DC,
	}
}

// NodeName returns a member's name; a node that nobody knows is named by its id.
func (n *Node) NodeName(id kv.NodeID) string {
	if i := int(id) - 1; i >= 0 && i < len(n.id.Genesis.InitialMembers) {
		return n.id.Genesis.InitialMembers[i]
	}
	return fmt.Sprintf("node-%d", id)
}

// resolve finds a peer's gRPC address: by gossip where it is known, else as group 0 last recorded it.
func (n *Node) resolve(id kv.NodeID) (string, bool) {
	if m, ok := n.members.Lookup(n.NodeName(id)); ok && m.Meta.GRPC != "" {
		return m.Meta.GRPC, true
	}
	if m, ok := n.machine.State().Member(id); ok && m.GRPC != "" {
		return m.GRPC, true
	}
	return "", false
}

// alive reports what gossip says of a node. A node is always alive to itself.
func (n *Node) alive(id kv.NodeID) bool {
	return id == n.id.Node || n.members.Alive(n.NodeName(id))
}

// observeGossip feeds a peer's clock, seen by gossip, into this node's. A skewed one is refused there and counted.
func (n *Node) observeGossip(hlc uint64) {
	if err := n.clock.Observe(causal.HLC(hlc)); err != nil {
		n.metrics.clockSkew.Inc()
	}
}

func (n *Node) leaderChanged(g kv.GroupID, leader kv.NodeID) {
	name := "none"
	if leader != kv.NoNode {
		name = n.NodeName(leader)
	}
	n.log.Debug("leader changed", "group", uint32(g), "leader", name)
}

// keepsSiblings reports whether the policy in force on this node keeps concurrent versions of the key.
func (n *Node) keepsSiblings(key []byte) bool {
	p, _ := n.machine.State().PolicyFor(key)
	r, err := n.resolvers.Resolver(p.Resolver, p.Expr)
	// A resolver that this node does not have may keep them, and nothing may be lost meanwhile.
	return err != nil || r.KeepsSiblings()
}

// ownedPartitions lists what this node replicates, for anti-entropy.
func (n *Node) ownedPartitions() []antientropy.Owned {
	st := n.machine.State()
	var out []antientropy.Owned
	for p := range st.Map.Partitions {
		if id := kv.PartitionID(p); st.Map.Owns(id, n.id.Node) {
			out = append(out, antientropy.Owned{Partition: id, Owners: st.Map.Owners(id), Epoch: st.Map.Epoch})
		}
	}
	return out
}
