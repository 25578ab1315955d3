package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/caprockdb/caprock/api"
	"github.com/caprockdb/caprock/config"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/transport"
)

const (
	// lameDuck is how long a node that is asked to stop still takes requests while /readyz already says no: as long as a
	// gateway needs to notice. A listener that closed at once would cut requests that were just on their way, and nobody
	// could tell whether they had been done.
	lameDuck = gatewayHealthInterval + 200*time.Millisecond
	// frontDrain bounds how long requests in flight may take to finish once the node is asked to stop. The node's own
	// drain, which hands the leaders over, comes after it.
	frontDrain = 5 * time.Second
	// gcPercent trades memory for CPU: what lives long is in the storage engine's cache, of fixed size, so that a heap
	// that grows fivefold between collections stays small. The memory limit catches the rest.
	gcPercent = 400
)

func newStartCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Run one node",
		Long: `Run one node.

Each setting below can also stand in the environment (--data-dir is CAPROCK_DATA_DIR) and in the YAML file that
--config names (data-dir: DIR). Flags win over the environment, the environment over the file.`,
		Example: `  caprock start --data-dir /var/lib/caprock
  caprock start --name n2 --initial-members n1,n2,n3 --join 10.0.0.1:7001 \
    --http 10.0.0.2:8081 --grpc 10.0.0.2:9001 --gossip 10.0.0.2:7001`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Flags(), a.environ)
			if err != nil {
				return usageError{err}
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			a.tuneMemory(cfg.Process)
			p, err := newProcess(cfg, newLogger(a.stderr, cfg.Log))
			if err != nil {
				return err
			}
			return p.run(ctx)
		},
	}
	config.AddFlags(cmd.Flags())
	return cmd
}

// tuneMemory sets how the garbage collector works, unless Go's own variables do.
func (a *app) tuneMemory(p config.Process) {
	if a.env("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if a.env("GOMEMLIMIT") == "" && p.MemoryLimit > 0 {
		debug.SetMemoryLimit(int64(p.MemoryLimit))
	}
}

func newLogger(w io.Writer, c config.Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// nodeConfig translates the process's configuration for the node.
func nodeConfig(c config.Config) node.Config {
	out := node.DefaultConfig()
	out.Name, out.DataDir, out.Zone, out.DC = c.Node.Name, c.Node.DataDir, c.Node.Zone, c.Node.DC
	out.Advertise = node.Addresses{
		HTTP:   c.Listen.Advertise(c.Listen.HTTP),
		GRPC:   c.Listen.Advertise(c.Listen.GRPC),
		Gossip: c.Listen.Advertise(c.Listen.Gossip),
		RESP:   c.Listen.Advertise(c.Listen.RESP),
	}
	out.GossipBind, out.Join = c.Listen.Gossip, c.Cluster.Join
	out.InitialMembers, out.Partitions, out.Quorum = c.Cluster.InitialMembers, c.Cluster.Partitions, c.Cluster.Quorum()
	out.RequestTimeout, out.Dev = c.Process.RequestTimeout, c.Process.Dev
	h, r := c.Process.Hints, c.Process.Repair
	out.Hints.BytesMax, out.Hints.AgeMax, out.Hints.RateBytes = int64(h.BytesMax), h.AgeMax, int(h.Rate)
	out.AntiEntropy.Interval, out.AntiEntropy.RateBytes, out.AntiEntropy.ScrubInterval = r.Interval, int(r.Rate), r.ScrubInterval
	out.AntiEntropy.WatermarkInterval, out.AntiEntropy.WatermarkLag = r.TombstoneInterval, r.TombstoneLag
	out.Coordinator.ReadSample = float64(c.Process.ReadSamplePercent) / 100
	out.Watermark = node.Watermark{FreeBytes: int64(c.Process.DiskFreeMin), FreePercent: c.Process.DiskFreePercent}
	out.Consensus.CheckTicks = int(c.Process.CheckInterval / out.Consensus.TickInterval)
	out.Storage.CacheBytes, out.Storage.MemtableBytes = int64(c.Process.CacheSize), int64(c.Process.MemtableSize())
	return out
}

// process is one node with its fronts and their listeners:
//
//	HTTP ─► api.Server ─┐
//	RESP ─► api.RESP ───┼─► node.Node ─► storage
//	gRPC ─► api.GRPC ───┘       ▲
//	     └► peers' frames ──────┘
type process struct {
	log  *slog.Logger
	node *node.Node

	http *api.Server
	resp *api.RESP // nil when it is off
	kv   *api.GRPC
	grpc *grpc.Server

	httpListener, grpcListener, respListener net.Listener
}

// newProcess opens the listeners and the data directory, and wires everything. Nothing is served until run.
func newProcess(cfg config.Config, log *slog.Logger) (*process, error) {
	p := &process{log: log}
	if err := p.compose(cfg); err != nil {
		p.closeListeners()
		return nil, err
	}
	return p, nil
}

func (p *process) compose(cfg config.Config) error {
	if err := p.listen(cfg.Listen); err != nil {
		return err
	}
	registry := newRegistry()
	wireConfig := transport.DefaultGRPCConfig()
	var err error
	p.node, err = node.New(nodeConfig(cfg), node.Deps{
		Logger: p.log, Registerer: registry,
		Wire: func(resolve node.Resolver) (transport.Wire, error) {
			return transport.NewGRPCWire(wireConfig, transport.GRPCDeps{Self: p.identity, Resolve: resolve})
		},
	})
	if err != nil {
		return err
	}
	// Peers and clients share the port. Where their options differ the clients' win: they allow larger messages, and a
	// peer's link watches itself from its other end.
	p.grpc = grpc.NewServer(append(wireConfig.ServerOptions(), api.GRPCServerOptions(api.DefaultGRPCConfig())...)...)
	transport.RegisterPeerServer(p.grpc, p.identity, p.node.Deliver)
	return p.composeFronts(cfg, api.Deps{
		Backend: backend{p.node}, Logger: p.log, Registerer: registry, Gatherer: registry, WallNow: time.Now,
	})
}

func (p *process) composeFronts(cfg config.Config, deps api.Deps) (err error) {
	httpConfig := api.DefaultConfig()
	httpConfig.RequestTimeout = cfg.Process.RequestTimeout
	if p.http, err = api.NewServer(httpConfig, deps); err != nil {
		return err
	}
	grpcConfig := api.DefaultGRPCConfig()
	grpcConfig.RequestTimeout = cfg.Process.RequestTimeout
	if p.kv, err = api.RegisterGRPC(p.grpc, grpcConfig, deps); err != nil {
		return err
	}
	if p.respListener == nil {
		return nil
	}
	respConfig := api.DefaultRESPConfig()
	respConfig.RequestTimeout = cfg.Process.RequestTimeout
	p.resp, err = api.NewRESP(respConfig, deps)
	return err
}

func (p *process) listen(c config.Listen) (err error) {
	if p.httpListener, err = listen("http", c.HTTP); err != nil {
		return err
	}
	if p.grpcListener, err = listen("grpc", c.GRPC); err != nil {
		return err
	}
	if c.RESP != "" {
		p.respListener, err = listen("resp", c.RESP)
	}
	return err
}

func (p *process) closeListeners() {
	for _, l := range []net.Listener{p.httpListener, p.grpcListener, p.respListener} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// identity is how this node introduces itself to its peers. It is asked for only once there is a node: links are made
// while it runs.
func (p *process) identity() transport.Identity {
	return transport.Identity{Node: p.node.ID(), Name: p.node.Self(), Cluster: p.node.ClusterID()}
}

// newRegistry returns a registry that also measures the process itself, under the prefix that all metrics share.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	prometheus.WrapRegistererWithPrefix("kvstore_", registry).MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// run serves until ctx is done or a part fails, then stops: the fronts first, which finish what is in flight while the
// node still serves it, then the node, which hands its leaders over, and the peers' links last, over which it does.
func (p *process) run(ctx context.Context) error {
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	nodeContext, stopNode := context.WithCancel(failed)
	defer stopNode()
	group.Go(func() error {
		defer p.grpc.Stop()
		return p.node.Run(nodeContext)
	})
	group.Go(func() error { return p.http.Serve(p.httpListener) })
	group.Go(func() error { return p.grpc.Serve(p.grpcListener) })
	if p.resp != nil {
		group.Go(func() error { return p.resp.Serve(p.respListener) })
	}
	p.log.Info("node listens", "http", p.httpListener.Addr().String(), "grpc", p.grpcListener.Addr().String())
	group.Go(func() error {
		select {
		case <-ctx.Done():
			p.log.Info("node stops: it is no longer ready, and soon takes no requests")
			p.http.Drain()
			select {
			case <-time.After(lameDuck):
			case <-failed.Done():
			}
		case <-failed.Done():
		}
		p.drainFronts()
		stopNode()
		return nil
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("node stopped: %w", err)
	}
	p.log.Info("node stopped")
	return nil
}

// drainFronts has every front finish what is in flight, all at once, and cuts what is left after frontDrain.
func (p *process) drainFronts() {
	ctx, cancel := context.WithTimeout(context.Background(), frontDrain)
	defer cancel()
	shutdowns := []func(context.Context) error{p.http.Shutdown, p.kv.Drain}
	if p.resp != nil {
		shutdowns = append(shutdowns, p.resp.Shutdown)
	}
	var group errgroup.Group
	for _, shutdown := range shutdowns {
		group.Go(func() error { return shutdown(ctx) })
	}
	if err := group.Wait(); err != nil {
		p.log.Warn("requests were cut off", "error", err)
	}
}
