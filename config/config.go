package config

import (
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Config holds every setting of one node's process. Start from Default, or let Load build it.
type Config struct {
	Node    Node
	Listen  Listen
	Cluster Cluster
	Process Process
	Log     Log
}

// Node says who this node is and where it stands.
type Node struct {
	// Name must be one of Cluster.InitialMembers and unique in the cluster.
	Name string
	// DataDir holds everything the node must not forget. Losing it makes the node a new one. One process at a time.
	DataDir string
	// Zone and DC are failure domains: replicas of a partition are spread over them first. Empty: all the same.
	Zone, DC string
}

// Listen holds the addresses, each host:port.
type Listen struct {
	HTTP, GRPC, Gossip string
	// RESP is the Redis protocol's address; empty: it is off.
	RESP string
	// AdvertiseHost is the host under which others reach this node. Empty: the host of each address, which then must
	// name one interface. Needed when binding all of them (0.0.0.0), as in a container.
	AdvertiseHost string
}

// Cluster says what the node is part of. InitialMembers, Partitions and N are fixed once the cluster has formed, and
// must be the same on every member.
type Cluster struct {
	// Join lists gossip addresses of any members; the node's own may be among them.
	Join []string
	// InitialMembers names the members that form the cluster. Empty: this node alone.
	InitialMembers []string
	// Partitions is Q, the number of equal parts of the key space. 1 to 4096.
	Partitions int
	// N is the number of replicas of each partition, R and W how many of them answer an eventual read or acknowledge
	// an eventual write that does not say. Zero: N is 3 or the number of members if that is smaller; R and W are the
	// majority of N.
	//
	// Invariant, once resolved: 1 <= R, W <= N <= len(InitialMembers).
	N, R, W int
}

// Process bounds what the process takes and does.
type Process struct {
	// CacheSize is the storage engine's block cache, in bytes. Part of MemoryLimit.
	CacheSize Size
	// MemoryLimit is what the garbage collector tries to stay under, in bytes; 0: no limit. Too small a limit costs
	// CPU, it does not fail. GOMEMLIMIT in the environment wins over it.
	MemoryLimit Size
	// RequestTimeout is the deadline of a request that brings none.
	RequestTimeout time.Duration
	// ReadSamplePercent is the share of eventual and local reads that ask all replicas, so that staleness is measured. 0 to
	// 100; each such read costs n requests.
	ReadSamplePercent int
	// DiskFreeMin and DiskFreePercent are the watermark of the disk: with less free space than the smaller of them the
	// node refuses writes. Either at 0: no watermark, and a full disk stops the node.
	DiskFreeMin     Size
	DiskFreePercent int
	// CheckInterval is how often the replicas of each partition hash their strong state and compare; 0 for only on demand.
	CheckInterval time.Duration
	// Hints bounds what the node keeps for replicas that are away, and how fast it hands it over.
	Hints Hints
	// Repair paces anti-entropy.
	Repair Repair
	// Dev switches the fault injector's routes on. Anyone who reaches the HTTP port can then cut the cluster apart.
	Dev bool
}

// Hints bounds hinted handoff. What is dropped at a limit is left to anti-entropy.
type Hints struct {
	// BytesMax is how much is kept for one node.
	BytesMax Size
	// AgeMax is how long it is kept.
	AgeMax time.Duration
	// Rate is how much one node is handed in a second.
	Rate Size
}

// Repair paces the comparison of replicas, and the removal of what is deleted.
type Repair struct {
	// Interval is the pause between two rounds; in each the node compares each of its partitions with one other replica.
	Interval time.Duration
	// Rate is how much the exchanges that the node began carry in a second. At least 1 MiB, the size of a message.
	Rate Size
	// TombstoneInterval is how often the node tries to have tombstones and expired values removed for good, from the partitions of
	// which it is the first owner.
	TombstoneInterval time.Duration
	// TombstoneLag is how long they stay at least. A write takes less, or it is stamped anew: not below the longest request.
	TombstoneLag time.Duration
	// ScrubInterval is the pause between two checks of all rows of a partition against its hash tree.
	ScrubInterval time.Duration
}

// Log says how the process logs.
type Log struct {
	// Format is "text" or "json".
	Format string
	Level  slog.Level
}

const (
	replicasDefault   = 3
	partitionsDefault = 16
	partitionsMax     = 4096
	membersMax        = 100
	joinMax           = 100
	nameBytesMax      = 63
	zoneBytesMax      = 63
	// memoryLimitMin is what an idle node needs beside its cache and memtables; below it the collector never rests.
	memoryLimitMin = 256 * MiB
	// memoryLimitDefault keeps the process below 500 MB, its program text and what the collector overshoots included, also
	// while it sends or takes a snapshot; see docs/adr/0008-memory-of-a-node.md.
	memoryLimitDefault = 432 * MiB
	cacheSizeMin       = 8 * MiB
	cacheSizeDefault   = 128 * MiB
	// memtableShare is the share of the memory limit that one memtable may have. Two are the rule, one that is filled and
	// one that is flushed; writes are refused before there are three, and stop at four.
	memtableShare = 12
	memtableMax   = 64 * MiB
	// diskFreePercentMax keeps half of a disk usable.
	diskFreePercentMax = 50
	// checkIntervalMin keeps checks from being all that replicas do.
	checkIntervalMin = time.Second
	// repairRateMin is one message of an exchange.
	repairRateMin = MiB
	hintsRateMin  = 64 * KiB
)

// Default returns the settings of a single node on this machine, on the ports of node 1.
func Default() Config {
	return Config{
		Node: Node{Name: "n1", DataDir: "caprock-data"},
		Listen: Listen{
			HTTP:   "127.0.0.1:8081",
			GRPC:   "127.0.0.1:9001",
			Gossip: "127.0.0.1:7001",
		},
		Cluster: Cluster{Partitions: partitionsDefault},
		Process: Process{
			CacheSize:      cacheSizeDefault,
			MemoryLimit:    memoryLimitDefault,
			RequestTimeout: kv.RequestTimeout, ReadSamplePercent: 10,
			DiskFreeMin: GiB, DiskFreePercent: 5,
			CheckInterval: 10 * time.Minute,
			Hints:         Hints{BytesMax: GiB, AgeMax: 3 * time.Hour, Rate: 8 * MiB},
			Repair: Repair{
				Interval: 10 * time.Second, Rate: 16 * MiB,
				TombstoneInterval: time.Minute, TombstoneLag: 90 * time.Second, ScrubInterval: 6 * time.Hour,
			},
		},
		Log: Log{Format: "text", Level: slog.LevelInfo},
	}
}

// MemtableSize returns the size of the storage engine's memtables, in bytes. They are memory beside the cache, so that they
// follow from MemoryLimit: were they of one size, a small limit would leave the collector no room to work in.
func (p Process) MemtableSize() Size {
	if p.MemoryLimit == 0 {
		return memtableMax
	}
	return min(p.MemoryLimit/memtableShare, memtableMax)
}

// Resolved returns c with everything filled in that follows from other settings. It reports no nonsense: Validate does.
func (c Config) Resolved() Config {
	out := c
	out.Cluster.Join = slices.Clone(c.Cluster.Join)
	out.Cluster.InitialMembers = slices.Clone(c.Cluster.InitialMembers)
	if len(out.Cluster.InitialMembers) == 0 {
		out.Cluster.InitialMembers = []string{c.Node.Name}
	}
	if out.Cluster.N == 0 {
		out.Cluster.N = min(replicasDefault, len(out.Cluster.InitialMembers))
	}
	if out.Cluster.R == 0 {
		out.Cluster.R = kv.Majority(out.Cluster.N)
	}
	if out.Cluster.W == 0 {
		out.Cluster.W = kv.Majority(out.Cluster.N)
	}
	return out
}

// Quorum returns N and the defaults of R and W.
func (c Cluster) Quorum() kv.Quorum { return kv.Quorum{N: c.N, R: c.R, W: c.W} }

// Advertise returns address as others reach it: with AdvertiseHost in place of the host, where one is given.
func (l Listen) Advertise(address string) string {
	if l.AdvertiseHost == "" || address == "" {
		return address
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(l.AdvertiseHost, port)
}
