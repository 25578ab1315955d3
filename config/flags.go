package config

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
)

// FlagConfig is the flag, and CAPROCK_CONFIG the variable, that names the configuration file. It is no setting: a file
// cannot name another file.
const FlagConfig = "config"

// AddFlags declares every setting as a flag of fs, and the flag that names the configuration file. Load reads them.
func AddFlags(fs *pflag.FlagSet) {
	c := Default()
	bind(fs, &c)
	fs.String(FlagConfig, "", "YAML `file` with any of these settings, spelled as the flags without dashes in front")
}

// bind declares every setting as a flag whose value lives in c, with c's present values as the defaults. It is the one
// table of settings: names, types and help come from here for all three sources.
func bind(fs *pflag.FlagSet, c *Config) {
	fs.SortFlags = false
	n, l, cl, p := &c.Node, &c.Listen, &c.Cluster, &c.Process
	fs.StringVar(&n.Name, "name", n.Name, "this node's `name`, one of --initial-members")
	fs.StringVar(&n.DataDir, "data-dir", n.DataDir, "`directory` that holds everything the node must not forget")
	fs.StringVar(&l.HTTP, "http", l.HTTP, "`address` of the HTTP API")
	fs.StringVar(&l.GRPC, "grpc", l.GRPC, "`address` for Go clients and the other nodes")
	fs.StringVar(&l.Gossip, "gossip", l.Gossip, "`address` for the members' gossip (TCP and UDP)")
	fs.StringVar(&l.RESP, "resp", l.RESP, "`address` of the Redis protocol (default off)")
	fs.StringVar(&l.AdvertiseHost, "advertise-host", l.AdvertiseHost,
		"`host` under which others reach this node, needed when listening on all interfaces (default the host of each address)")
	fs.StringSliceVar(&cl.Join, "join", cl.Join, "gossip `addresses` of any members, comma-separated")
	fs.StringSliceVar(&cl.InitialMembers, "initial-members", cl.InitialMembers,
		"`names` of the members that form the cluster, comma-separated, the same on every member (default this node alone)")
	fs.IntVar(&cl.Partitions, "partitions", cl.Partitions, "`number` of partitions of the key space, fixed when the cluster forms")
	fs.IntVar(&cl.N, "n", cl.N, "replicas of each partition, fixed when the cluster forms (default 3, or the number of members if smaller)")
	fs.IntVar(&cl.R, "r", cl.R, "replicas that answer an eventual read (default the majority of n)")
	fs.IntVar(&cl.W, "w", cl.W, "replicas that acknowledge an eventual write (default the majority of n)")
	fs.StringVar(&n.Zone, "zone", n.Zone, "this node's failure `zone`; replicas are spread over zones")
	fs.StringVar(&n.DC, "dc", n.DC, "this node's `datacentre`; replicas are spread over datacentres")
	fs.Var(&p.CacheSize, "cache-size", "storage block cache, part of --memory-limit")
	fs.Var(&p.MemoryLimit, "memory-limit", "memory that the garbage collector tries to stay under; 0 for no limit")
	fs.DurationVar(&p.RequestTimeout, "request-timeout", p.RequestTimeout, "deadline of a request that brings none")
	fs.IntVar(&p.ReadSamplePercent, "read-sample-percent", p.ReadSamplePercent,
		"`percentage` of eventual and local reads that ask all replicas, to measure staleness")
	fs.Var(&p.DiskFreeMin, "disk-free-min", "free disk space below which writes are refused; 0 to switch that off")
	fs.IntVar(&p.DiskFreePercent, "disk-free-percent", p.DiskFreePercent,
		"the same as a `percentage` of the disk; the smaller of the two counts")
	fs.DurationVar(&p.CheckInterval, "check-interval", p.CheckInterval,
		"how often the replicas of each partition compare their strong state; 0 for only on demand")
	h, r := &p.Hints, &p.Repair
	fs.Var(&h.BytesMax, "hints-bytes-max", "hints kept for one node that is away; beyond it they are dropped and left to anti-entropy")
	fs.DurationVar(&h.AgeMax, "hints-age-max", h.AgeMax, "how long a hint is kept")
	fs.Var(&h.Rate, "hints-rate", "bytes a second that a node which is back is handed")
	fs.DurationVar(&r.Interval, "repair-interval", r.Interval,
		"pause between two rounds of anti-entropy; in each, every partition is compared with one other replica")
	fs.Var(&r.Rate, "repair-rate", "bytes a second that this node's exchanges carry")
	fs.DurationVar(&r.TombstoneInterval, "tombstone-interval", r.TombstoneInterval,
		"how often to try to remove tombstones and expired values that every replica has seen")
	fs.DurationVar(&r.TombstoneLag, "tombstone-lag", r.TombstoneLag, "how long they stay at least; more than any request takes")
	fs.DurationVar(&r.ScrubInterval, "scrub-interval", r.ScrubInterval, "pause between two checks of all rows of a partition")
	fs.StringVar(&c.Log.Format, "log-format", c.Log.Format, "text or json")
	fs.Var(&levelValue{&c.Log.Level}, "log-level", "debug, info, warn or error")
	fs.BoolVar(&p.Dev, "dev", p.Dev, "switch on the fault-injection routes; anyone who reaches the HTTP port can use them")
}

// levelValue makes a slog.Level a flag that is spelled in lower case and has no arithmetic ("info+2").
type levelValue struct{ level *slog.Level }

var logLevels = []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}

func (v *levelValue) Set(text string) error {
	for _, l := range logLevels {
		if strings.EqualFold(text, l.String()) {
			*v.level = l
			return nil
		}
	}
	return fmt.Errorf("%q is no log level: choose debug, info, warn or error", text)
}

func (v *levelValue) String() string {
	if v.level == nil {
		return ""
	}
	return strings.ToLower(v.level.String())
}

func (v *levelValue) Type() string { return "level" }
