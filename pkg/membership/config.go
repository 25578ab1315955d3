package membership

import (
	"fmt"
	"net"
	"strconv"
	"time"
)

// Config says how a node gossips. Start from DefaultConfig.
type Config struct {
	// Name is the node's name, unique in the cluster.
	Name string
	// BindAddr is the host:port that the gossip listeners (TCP and UDP) bind.
	BindAddr string
	// AdvertiseAddr is the host:port at which others reach them; "" advertises what was bound.
	AdvertiseAddr string
	// Join lists gossip addresses of any members. The node's own may be among them.
	Join []string
	// RejoinInterval is how often the members that the map knows are joined again, plus up to half as much by chance.
	RejoinInterval time.Duration
	// FirstJoinInterval replaces RejoinInterval until a first other member has been seen, so that a cluster forms fast.
	FirstJoinInterval time.Duration
	// ProbeInterval and ProbeTimeout pace the failure detector. A dead node is noticed within about five intervals.
	ProbeInterval, ProbeTimeout time.Duration
	// GossipInterval paces the spread of news.
	GossipInterval time.Duration
	// PushPullInterval paces the exchange of whole states, which also carries epoch and clock.
	PushPullInterval time.Duration
	// LeaveTimeout bounds how long a stopping node spends on telling the others.
	LeaveTimeout time.Duration
}

// DefaultConfig returns timings for a LAN: a killed node is seen dead after 2 to 3 s. Shorter ones mistake a busy
// machine for a dead one.
func DefaultConfig() Config {
	return Config{
		RejoinInterval:    10 * time.Second,
		FirstJoinInterval: 100 * time.Millisecond,
		ProbeInterval:     500 * time.Millisecond,
		ProbeTimeout:      250 * time.Millisecond,
		GossipInterval:    100 * time.Millisecond,
		PushPullInterval:  10 * time.Second,
		LeaveTimeout:      500 * time.Millisecond,
	}
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	if c.Name == "" {
		return fmt.Errorf("membership: the node has no name")
	}
	if _, _, err := splitAddr(c.BindAddr); err != nil {
		return fmt.Errorf("membership: gossip address: %w", err)
	}
	for name, d := range map[string]time.Duration{
		"rejoin interval": c.RejoinInterval, "first join interval": c.FirstJoinInterval, "probe interval": c.ProbeInterval,
		"probe timeout": c.ProbeTimeout, "gossip interval": c.GossipInterval, "push-pull interval": c.PushPullInterval,
		"leave timeout": c.LeaveTimeout,
	} {
		if d <= 0 {
			return fmt.Errorf("membership: %s is %v; it is above 0", name, d)
		}
	}
	return nil
}

// splitAddr splits host:port.
func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	if port, err = strconv.Atoi(p); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q: the port is not a number from 0 to 65535", addr)
	}
	return host, port, nil
}
