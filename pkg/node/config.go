package node

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

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

// Config is everything one node needs to know before it starts. Start from DefaultConfig.
type Config struct {
	// Name is this node's name; it must be one of InitialMembers.
	Name string
	// DataDir holds everything the node must not forget. One process at a time.
	DataDir string
	// Advertise is where other nodes and clients reach this one.
	Advertise Addresses
	// GossipBind is the address that the gossip listener binds, which may differ from the advertised one.
	GossipBind string
	// Join lists gossip addresses of any members; the node's own may be among them.
	Join []string
	// InitialMembers names the members that form the cluster, the same list on every one of them.
	InitialMembers []string
	// Partitions is Q. Fixed once the cluster has formed.
	Partitions int
	// Quorum holds N, fixed once the cluster has formed, and the default R and W.
	Quorum kv.Quorum
	Zone   string
	DC     string
	// DefaultLevel serves requests that name no level under a prefix without a policy.
	DefaultLevel kv.Level
	// Dev switches the fault injector on.
	Dev bool
	// RequestTimeout is the deadline of a request that brings none.
	RequestTimeout time.Duration
	// OpsInFlightMax and BytesInFlightMax bound what the node works on at once; beyond it requests are refused with
	// OVERLOADED before anything is written.
	OpsInFlightMax   int
	BytesInFlightMax int64
	Limits           kv.Limits
	// DrainTimeout bounds a graceful stop: finishing requests in flight and handing leaders over.
	DrainTimeout time.Duration
	// Watermark is the free disk space below which writes are refused.
	Watermark Watermark

	Storage     storage.Config
	Clock       causal.ClockConfig
	Consensus   consensus.Config
	Coordinator quorum.Config
	Hints       quorum.HintConfig
	AntiEntropy antientropy.Config
	Membership  membership.Config
	Transport   transport.Config
	Meta        meta.Config
}

// votersMax bounds the voters of group 0. More make every change of the map slower and no safer.
const votersMax = 7

// Addresses are the endpoints of one node, host:port each. RESP may be empty.
type Addresses struct {
	HTTP, GRPC, Gossip, RESP string
}

// DefaultConfig returns a configuration that lacks only names and addresses.
func DefaultConfig() Config {
	return Config{
		Partitions:       16,
		Quorum:           kv.Quorum{N: 3, R: 2, W: 2},
		DefaultLevel:     kv.LevelStrong,
		RequestTimeout:   kv.RequestTimeout,
		OpsInFlightMax:   10_000,
		BytesInFlightMax: 256 << 20,
		Limits:           kv.DefaultLimits(),
		DrainTimeout:     5 * time.Second,
		Watermark:        DefaultWatermark(),
		Storage:          storage.DefaultConfig(),
		Clock:            causal.DefaultClockConfig(),
		Consensus:        consensus.DefaultConfig(),
		Coordinator:      quorum.DefaultConfig(),
		Hints:            quorum.DefaultHintConfig(),
		AntiEntropy:      antientropy.DefaultConfig(),
		Membership:       membership.DefaultConfig(),
		Transport:        transport.DefaultConfig(),
		Meta:             meta.DefaultConfig(),
	}
}

// Validate reports what is wrong with the configuration, in one line that says what to do.
func (c Config) Validate() error {
	switch {
	case c.Name == "":
		return fmt.Errorf("the node has no name: give --name")
	case c.DataDir == "":
		return fmt.Errorf("the node has no data directory: give --data-dir")
	case !slices.Contains(c.InitialMembers, c.Name):
		return fmt.Errorf("%s is not among the initial members %v: nodes that join later are not supported by this version", c.Name, c.InitialMembers)
	case len(c.InitialMembers) > votersMax:
		return fmt.Errorf("%d initial members: this version forms clusters of up to %d", len(c.InitialMembers), votersMax)
	case c.Partitions < 1 || c.Partitions > 4096:
		return fmt.Errorf("%d partitions: choose 1 to 4096 with --partitions", c.Partitions)
	case c.Quorum.N > len(c.InitialMembers):
		return fmt.Errorf("n=%d replicas on %d members: lower --n or name more --initial-members", c.Quorum.N, len(c.InitialMembers))
	case !c.DefaultLevel.Valid():
		return fmt.Errorf("the default consistency level is not set")
	case c.DefaultLevel == kv.LevelBounded:
		return fmt.Errorf("level bounded has no writes: it cannot be the default")
	case c.RequestTimeout <= 0 || c.RequestTimeout > kv.RequestTimeoutMax:
		return fmt.Errorf("request timeout %v: choose up to %v", c.RequestTimeout, kv.RequestTimeoutMax)
	case c.OpsInFlightMax < 1 || c.BytesInFlightMax < 1:
		return fmt.Errorf("the limits of requests in flight must be positive")
	case c.DrainTimeout <= 0:
		return fmt.Errorf("the drain timeout must be positive")
	}
	if err := c.Watermark.Validate(); err != nil {
		return err
	}
	_, err := c.Quorum.Resolve(kv.Quorum{}, c.Quorum.N)
	return err
}

// genesis is what this configuration would create a cluster with. Names are sorted, so that the order in which they
// were given does not matter.
func (c Config) genesis() meta.Genesis {
	names := slices.Clone(c.InitialMembers)
	slices.Sort(names)
	return meta.Genesis{Partitions: c.Partitions, Replicas: c.Quorum.N, InitialMembers: slices.Compact(names)}
}

// Deps are the seams between a node and the world. The zero value of a seam is the real thing.
type Deps struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Rand       *rand.Rand
	// FS is the file system of all durable state; nil is the disk.
	FS storage.FS
	// WallNow feeds the hybrid clock only; nil is time.Now.
	WallNow func() time.Time
	// Wire makes links to peers. Required: cmd gives gRPC, the simulator its network.
	Wire func(Resolver) (transport.Wire, error)
	// Resolvers are those that policies can name; nil: the built-in ones.
	Resolvers *quorum.Registry
	// GossipTransport is nil for the network.
	GossipTransport memberlist.Transport
}

// Resolver finds the address of a peer's gRPC endpoint.
type Resolver func(id kv.NodeID) (addr string, ok bool)
