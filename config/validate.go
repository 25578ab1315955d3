package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Validate reports the first thing that makes no sense, in one line that says what to do. It changes nothing.
func (c Config) Validate() error {
	for _, check := range []func() error{c.validateNode, c.validateListen, c.validateMembers, c.validateQuorum, c.validateProcess} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) validateNode() error {
	if err := validateName(c.Node.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if c.Node.DataDir == "" {
		return fmt.Errorf("data-dir is empty: give the directory that shall hold the node's data")
	}
	for key, value := range map[string]string{"zone": c.Node.Zone, "dc": c.Node.DC} {
		if len(value) > zoneBytesMax {
			return fmt.Errorf("%s has %d characters: give at most %d", key, len(value), zoneBytesMax)
		}
	}
	return nil
}

// validateName keeps names to what is safe in a header, a metric label, a file name and a comma-separated list.
func validateName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if name == "" || len(name) > nameBytesMax || strings.Trim(name, allowed) != "" || strings.ContainsAny(name[:1], "-_.") {
		return fmt.Errorf("%q cannot name a node: use 1 to %d letters, digits, dots, dashes or underscores, a letter or digit first",
			name, nameBytesMax)
	}
	return nil
}

type listener struct{ key, host, port string }

func (c Config) validateListen() error {
	var taken []listener
	for _, a := range []struct {
		key, address         string
		optional, advertised bool
	}{
		{key: "http", address: c.Listen.HTTP, advertised: true},
		{key: "grpc", address: c.Listen.GRPC, advertised: true},
		{key: "gossip", address: c.Listen.Gossip, advertised: true},
		{key: "resp", address: c.Listen.RESP, optional: true},
	} {
		if a.address == "" && a.optional {
			continue
		}
		host, port, err := splitAddress(a.address)
		if err != nil {
			return fmt.Errorf("%s: %w", a.key, err)
		}
		if a.advertised && unspecified(host) && c.Listen.AdvertiseHost == "" {
			return fmt.Errorf("%s listens on all interfaces (%s): say with --advertise-host how others reach this node", a.key, a.address)
		}
		for _, t := range taken {
			if port == t.port && (host == t.host || unspecified(host) || unspecified(t.host)) {
				return fmt.Errorf("%s and %s both want port %s: give each its own", t.key, a.key, port)
			}
		}
		taken = append(taken, listener{a.key, host, port})
	}
	if h := c.Listen.AdvertiseHost; h != "" && (unspecified(h) || strings.ContainsAny(h, "/, \t") || hasPort(h)) {
		return fmt.Errorf("advertise-host: %q is no host that others can reach: give a host name or an IP address, without a port", h)
	}
	return nil
}

// splitAddress takes host:port apart. The port must be a number from 1 to 65535: a node whose ports change with every
// start could not be found again.
func splitAddress(address string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("%q is no address: write host:port, such as 127.0.0.1:8081", address)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return "", "", fmt.Errorf("%q has no usable port: write host:port with a port from 1 to 65535", address)
	}
	return host, port, nil
}

// unspecified reports whether binding host means all interfaces.
func unspecified(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// hasPort reports whether host carries a port; an IPv6 address without brackets does not.
func hasPort(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	return strings.Contains(host, ":")
}

func (c Config) validateMembers() error {
	members := c.Cluster.InitialMembers
	if len(members) > membersMax {
		return fmt.Errorf("initial-members names %d members: at most %d are supported", len(members), membersMax)
	}
	for i, m := range members {
		if err := validateName(m); err != nil {
			return fmt.Errorf("initial-members: %w", err)
		}
		if slices.Contains(members[:i], m) {
			return fmt.Errorf("initial-members names %s twice: name every member once", m)
		}
	}
	if !slices.Contains(members, c.Node.Name) {
		return fmt.Errorf("%s is not one of initial-members (%s): add it there on every member; joining a cluster that has already formed is not supported by this version",
			c.Node.Name, strings.Join(members, ", "))
	}
	if len(c.Cluster.Join) > joinMax {
		return fmt.Errorf("join lists %d addresses: at most %d are supported, and a few are enough", len(c.Cluster.Join), joinMax)
	}
	for _, address := range c.Cluster.Join {
		host, _, err := splitAddress(address)
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		if unspecified(host) {
			return fmt.Errorf("join: %q names no host: write the gossip address of a member", address)
		}
	}
	return nil
}

func (c Config) validateQuorum() error {
	cl := c.Cluster
	switch {
	case cl.Partitions < 1 || cl.Partitions > partitionsMax:
		return fmt.Errorf("partitions is %d: choose 1 to %d", cl.Partitions, partitionsMax)
	case cl.N < 1:
		return fmt.Errorf("n is %d: choose at least 1 replica", cl.N)
	case cl.N > len(cl.InitialMembers):
		return fmt.Errorf("n is %d replicas but initial-members names only %d (%s): lower n or name more members",
			cl.N, len(cl.InitialMembers), strings.Join(cl.InitialMembers, ", "))
	case cl.R < 1 || cl.R > cl.N:
		return fmt.Errorf("r is %d: choose 1 to n, which is %d", cl.R, cl.N)
	case cl.W < 1 || cl.W > cl.N:
		return fmt.Errorf("w is %d: choose 1 to n, which is %d", cl.W, cl.N)
	}
	return nil
}

func (c Config) validateProcess() error {
	p := c.Process
	switch {
	case p.CacheSize < cacheSizeMin:
		return fmt.Errorf("cache-size is %v: choose at least %v", p.CacheSize, cacheSizeMin)
	case p.MemoryLimit != 0 && p.MemoryLimit < memoryLimitMin:
		return fmt.Errorf("memory-limit is %v: choose at least %v, or 0 for none", p.MemoryLimit, memoryLimitMin)
	case p.MemoryLimit != 0 && p.CacheSize > p.MemoryLimit/2:
		return fmt.Errorf("cache-size %v is more than half of memory-limit %v: lower the one or raise the other", p.CacheSize, p.MemoryLimit)
	case p.RequestTimeout <= 0 || p.RequestTimeout > kv.RequestTimeoutMax:
		return fmt.Errorf("request-timeout is %v: choose more than 0 and at most %v", p.RequestTimeout, kv.RequestTimeoutMax)
	case p.DiskFreePercent < 0 || p.DiskFreePercent > diskFreePercentMax:
		return fmt.Errorf("disk-free-percent is %d: choose 0 to %d", p.DiskFreePercent, diskFreePercentMax)
	case p.CheckInterval != 0 && p.CheckInterval < checkIntervalMin:
		return fmt.Errorf("check-interval is %v: choose at least %v, or 0 for none", p.CheckInterval, checkIntervalMin)
	case p.ReadSamplePercent < 0 || p.ReadSamplePercent > 100:
		return fmt.Errorf("read-sample-percent is %d: choose 0 to 100", p.ReadSamplePercent)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return fmt.Errorf("log-format is %q: choose text or json", c.Log.Format)
	}
	return p.validateRepair()
}

// validateRepair checks what brings replicas up to date that were away.
func (p Process) validateRepair() error {
	h, r := p.Hints, p.Repair
	switch {
	case h.BytesMax < 1:
		return fmt.Errorf("hints-bytes-max is %v: choose at least 1B", h.BytesMax)
	case h.AgeMax <= 0:
		return fmt.Errorf("hints-age-max is %v: choose more than 0", h.AgeMax)
	case h.Rate < hintsRateMin:
		return fmt.Errorf("hints-rate is %v: choose at least %v", h.Rate, hintsRateMin)
	case r.Interval <= 0:
		return fmt.Errorf("repair-interval is %v: choose more than 0", r.Interval)
	case r.Rate < repairRateMin:
		return fmt.Errorf("repair-rate is %v: choose at least %v", r.Rate, repairRateMin)
	case r.TombstoneInterval <= 0:
		return fmt.Errorf("tombstone-interval is %v: choose more than 0", r.TombstoneInterval)
	case r.TombstoneLag < kv.RequestTimeoutMax:
		return fmt.Errorf("tombstone-lag is %v: choose at least %v, which a request may take", r.TombstoneLag, kv.RequestTimeoutMax)
	case r.ScrubInterval <= 0:
		return fmt.Errorf("scrub-interval is %v: choose more than 0", r.ScrubInterval)
	}
	return nil
}
