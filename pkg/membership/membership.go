package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/caprockdb/caprock/pkg/kv"
)

// ErrAddressInUse is returned by Run when another process listens on the gossip address.
var ErrAddressInUse = errors.New("gossip address in use")

// Deps connect gossip with the node.
type Deps struct {
	// Transport is nil for the network.
	Transport memberlist.Transport
	Logger    *slog.Logger
	// Rand spreads the re-joins of different nodes.
	Rand *rand.Rand
	// Epoch and HLC are what this node tells the others of its map and clock; OnEpoch and OnHLC receive theirs. None of
	// them may block. OnEpoch and OnHLC may be nil.
	Epoch   func() kv.Epoch
	HLC     func() uint64
	OnEpoch func(kv.Epoch)
	OnHLC   func(uint64)
	// OnAlive receives every member that is seen alive, or says something new about itself. It must not block; nil for
	// nobody.
	OnAlive func(Member)
	// KnownAddrs lists gossip addresses of members that the partition map knows.
	KnownAddrs func() []string
}

// Member is one node as gossip last heard of it.
type Member struct {
	Name  string
	Meta  Meta
	Alive bool
}

// Membership is this node's view of who is alive.
type Membership struct {
	cfg  Config
	deps Deps

	mu      sync.RWMutex // guards what follows; never held while memberlist is called
	self    []byte       // encoded
	cluster uint64       // of self; 0 while unknown
	members map[string]Member

	// changed has a token while self has changed since it was last announced.
	changed chan struct{}
}

// New returns a view that knows nobody until Run.
func New(cfg Config, deps Deps) (*Membership, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Logger == nil || deps.Rand == nil || deps.Epoch == nil || deps.HLC == nil || deps.KnownAddrs == nil {
		return nil, errors.New("membership: Logger, Rand, Epoch, HLC and KnownAddrs are required")
	}
	return &Membership{cfg: cfg, deps: deps, members: map[string]Member{}, changed: make(chan struct{}, 1)}, nil
}

// SetSelf sets what the node says about itself. A running member tells the others soon after; SetSelf does not wait.
func (m *Membership) SetSelf(meta Meta) error {
	enc, err := meta.encode()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.self, m.cluster = enc, meta.Cluster
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default: // an announcement is due already, and it will carry this
	}
	return nil
}

// announce tells the others what the node says about itself now.
func (m *Membership) announce(list *memberlist.Memberlist) {
	if err := list.UpdateNode(m.cfg.LeaveTimeout); err != nil {
		m.deps.Logger.Debug("gossip: the update of this node's addresses is still spreading", "error", err)
	}
}

// Members lists all members ever seen, sorted by name, this node included once it runs.
func (m *Membership) Members() []Member {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Values(m.members), func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
}

// Lookup finds a member by name, alive or not.
func (m *Membership) Lookup(name string) (Member, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	member, ok := m.members[name]
	return member, ok
}

// Alive reports whether gossip believes the named member to be alive.
func (m *Membership) Alive(name string) bool {
	member, ok := m.Lookup(name)
	return ok && member.Alive
}

// Run gossips until ctx is done, then tells the others that this node leaves. The error wraps ErrAddressInUse when
// another process has the gossip address.
func (m *Membership) Run(ctx context.Context) error {
	cfg, err := m.listConfig(ctx)
	if err != nil {
		return err
	}
	select {
	case <-m.changed: // Create announces it
	default:
	}
	list, err := memberlist.Create(cfg)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "address already in use") {
			return fmt.Errorf("%w: %s is taken by another process; choose another with --gossip", ErrAddressInUse, m.cfg.BindAddr)
		}
		return fmt.Errorf("membership: start gossip on %s: %w", m.cfg.BindAddr, err)
	}
	m.rejoin(ctx, list)
	if err := list.Leave(m.cfg.LeaveTimeout); err != nil {
		m.deps.Logger.Debug("gossip: leaving was not confirmed", "error", err)
	}
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("membership: stop gossip: %w", err)
	}
	return nil
}

// listConfig translates the configuration for memberlist.
func (m *Membership) listConfig(ctx context.Context) (*memberlist.Config, error) {
	host, port, err := splitAddr(m.cfg.BindAddr)
	if err != nil {
		return nil, fmt.Errorf("membership: gossip address: %w", err)
	}
	bind, err := bindIP(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("membership: gossip address: %w", err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort = m.cfg.Name, bind, port, port
	if m.cfg.AdvertiseAddr != "" {
		host, port, err := splitAddr(m.cfg.AdvertiseAddr)
		if err != nil {
			return nil, fmt.Errorf("membership: advertised gossip address: %w", err)
		}
		ip, err := resolveIP(ctx, host)
		if err != nil {
			return nil, fmt.Errorf("membership: advertised gossip address: %w", err)
		}
		c.AdvertiseAddr, c.AdvertisePort = ip, port
	}
	c.ProbeInterval, c.ProbeTimeout = m.cfg.ProbeInterval, m.cfg.ProbeTimeout
	c.GossipInterval, c.PushPullInterval = m.cfg.GossipInterval, m.cfg.PushPullInterval
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 2
	c.TCPTimeout = 2 * time.Second
	// A node that comes back with another address, as containers do, may take its name back once it is seen dead.
	c.DeadNodeReclaimTime = time.Second
	c.EnableCompression = false // packets are small; compressing them costs more than it saves
	c.Transport = m.deps.Transport
	c.Delegate, c.Events, c.Conflict, c.Alive = delegate{m}, delegate{m}, delegate{m}, delegate{m}
	c.Logger = slog.NewLogLogger(m.deps.Logger.Handler(), slog.LevelDebug)
	return c, nil
}

// bindIP returns the address to listen on. memberlist takes a name for "all interfaces" and then advertises [::], which
// nobody can reach; of the wildcards it replaces only 0.0.0.0 by an address of the machine.
func bindIP(ctx context.Context, host string) (string, error) {
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "0.0.0.0", nil
	}
	return resolveIP(ctx, host)
}

// resolveIP returns the host's address, the IPv4 one where it has both; memberlist binds and advertises addresses only.
func resolveIP(ctx context.Context, host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return "", err
	}
	if len(ips) == 0 {
		return "", fmt.Errorf("%s has no address", host)
	}
	for _, ip := range ips {
		if ip.IP.To4() != nil {
			return ip.String(), nil
		}
	}
	return ips[0].String(), nil
}

// rejoin joins whoever is known and not seen alive, again and again: often until a first member is found, then rarely.
func (m *Membership) rejoin(ctx context.Context, list *memberlist.Memberlist) {
	for {
		for _, target := range m.missing() {
			// One at a time: a dial to a host that is down blocks for its whole timeout, and stopping waits for it.
			if ctx.Err() != nil {
				return
			}
			if _, err := list.Join([]string{target}); err != nil {
				m.deps.Logger.Debug("gossip: a member could not be joined", "address", target, "error", err)
			}
		}
		wait := m.cfg.FirstJoinInterval
		if list.NumMembers() > 1 {
			wait = m.cfg.RejoinInterval + time.Duration(m.deps.Rand.Int64N(int64(m.cfg.RejoinInterval)/2+1))
		}
		if !m.idle(ctx, list, wait) {
			return
		}
	}
}

// idle waits, and announces what changes meanwhile. It returns false when ctx is done.
func (m *Membership) idle(ctx context.Context, list *memberlist.Memberlist, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-m.changed:
			m.announce(list)
		case <-timer.C:
			return true
		}
	}
}

// missing lists the addresses worth joining: known ones that no live member listens on. Members that are alive on both
// sides of a healed cut are found through those that are not.
func (m *Membership) missing() []string {
	live := map[string]bool{m.cfg.BindAddr: true, m.cfg.AdvertiseAddr: true}
	for _, member := range m.Members() {
		if member.Alive {
			live[member.Meta.Gossip] = true
		}
	}
	var out []string
	for _, addr := range slices.Concat(m.cfg.Join, m.deps.KnownAddrs()) {
		if addr != "" && !live[addr] && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}
