package meta

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// Config bounds the service's loops.
type Config struct {
	// Genesis is proposed by the first leader of a cluster that has none yet. Its ClusterID is drawn then.
	Genesis Genesis
	// Interval is how often the driver and the registration look at the state. Shorter starts a cluster faster.
	Interval time.Duration
	// StragglerWait is how long the first map waits for initial members that have not registered, once a majority
	// has. Without a member's own word its zone and DC are unknown, so placement is better when nobody is missing.
	StragglerWait time.Duration
	// ProposeTimeout bounds one proposal of the driver or the registration.
	ProposeTimeout time.Duration
}

// DefaultConfig returns the bounds used in production; Genesis is left to the caller.
func DefaultConfig() Config {
	return Config{Interval: 50 * time.Millisecond, StragglerWait: 10 * time.Second, ProposeTimeout: 2 * time.Second}
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case len(c.Genesis.InitialMembers) == 0:
		return fmt.Errorf("meta: the cluster has no initial members")
	case c.Genesis.Partitions < 1:
		return fmt.Errorf("meta: %d partitions; at least 1 is needed", c.Genesis.Partitions)
	case c.Genesis.Replicas < 1 || c.Genesis.Replicas > len(c.Genesis.InitialMembers):
		return fmt.Errorf("meta: %d replicas on %d initial members", c.Genesis.Replicas, len(c.Genesis.InitialMembers))
	case c.Interval <= 0 || c.StragglerWait < 0 || c.ProposeTimeout <= 0:
		return fmt.Errorf("meta: intervals must be positive")
	}
	return nil
}

// Group is what the service needs of the strong lane: group 0's leader and proposals to it.
type Group interface {
	Leader(g kv.GroupID) kv.NodeID
	Propose(ctx context.Context, g kv.GroupID, p consensus.Proposal) (consensus.Result, error)
}

// Forwarder carries a command to the node that leads group 0.
type Forwarder interface {
	Meta(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error)
}

// Deps are the service's collaborators.
type Deps struct {
	// Self is what this node registers as. Its ID and Disk are final.
	Self    Member
	Machine *Machine
	Group   Group
	Forward Forwarder
	Rand    *rand.Rand
	Logger  *slog.Logger
}

// Service proposes changes to group 0 and drives a new cluster to its first partition map.
type Service struct {
	cfg  Config
	deps Deps
	// agreed is the last policy epoch at which the fences were found to agree with the policies. Only Run uses it.
	agreed uint64
}

// New returns a service that does nothing until Run.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, deps: deps}, nil
}

// State returns the state of group 0 as far as this node has applied it.
func (s *Service) State() *State { return s.deps.Machine.State() }

// PutPolicy sets the policy of a prefix and returns the policy epoch from which on it holds. The error is a *kv.Error.
func (s *Service) PutPolicy(ctx context.Context, p kv.Policy) (uint64, error) {
	return s.propose(ctx, command{PutPolicy: &p})
}

// DeletePolicy returns the prefix to the next shorter one, and the policy epoch from which on it is so. Deleting a
// policy that does not exist is no error.
func (s *Service) DeletePolicy(ctx context.Context, prefix []byte) (uint64, error) {
	return s.propose(ctx, command{DeletePolicy: &prefix})
}

// Advance ends the passing of the fence, if it is still the one that group 0 has. floor goes with one that opens.
func (s *Service) Advance(ctx context.Context, f Fence, floor causal.HLC) error {
	_, err := s.propose(ctx, command{Advance: &advance{Prefix: f.Prefix, Epoch: f.Epoch, Floor: floor}})
	return err
}

// Handle proposes a command that another node forwarded. It never forwards again: a node that asked the wrong one
// learns so and asks anew.
func (s *Service) Handle(ctx context.Context, payload []byte) ([]byte, error) {
	r, err := s.proposeHere(ctx, payload)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// propose takes a command to the leader of group 0 and returns the policy epoch after it.
func (s *Service) propose(ctx context.Context, c command) (uint64, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return 0, fmt.Errorf("meta: encode command: %w", err)
	}
	var r reply
	switch leader := s.deps.Group.Leader(kv.MetaGroup); leader {
	case kv.NoNode:
		return 0, kv.Errorf(kv.CodeNoLeader, "group 0 has no leader at present")
	case s.deps.Self.ID:
		if r, err = s.proposeHere(ctx, raw); err != nil {
			return 0, err
		}
	default:
		out, err := s.deps.Forward.Meta(ctx, leader, raw)
		if err != nil {
			return 0, err
		}
		if err := json.Unmarshal(out, &r); err != nil {
			return 0, fmt.Errorf("meta: reply of node %d: %w", leader, err)
		}
	}
	return r.PolicyEpoch, r.err()
}

func (s *Service) proposeHere(ctx context.Context, raw []byte) (reply, error) {
	res, err := s.deps.Group.Propose(ctx, kv.MetaGroup, consensus.Proposal{Command: raw})
	if err != nil {
		return reply{}, err
	}
	return res.Reply.(reply), nil
}

// Run registers this node and, while this node leads group 0, drives the cluster to its first partition map. It returns
// when ctx is done, or with an error that the node must not survive: its id belongs to another disk.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	var leading time.Time // since when this node leads group 0 without a map; zero when it does not
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if s.deps.Group.Leader(kv.MetaGroup) != s.deps.Self.ID {
			leading = time.Time{}
		} else if leading.IsZero() {
			leading = time.Now()
		}
		if err := s.checkIdentity(); err != nil {
			return err
		}
		if c, ok := s.nextCommand(leading); ok {
			s.drive(ctx, c)
		}
	}
}

// checkIdentity fails when group 0 knows this node's id to belong to another disk or name.
func (s *Service) checkIdentity() error {
	st := s.State()
	m, ok := st.Member(s.deps.Self.ID)
	if !ok || !m.Registered() {
		return nil
	}
	if m.Disk != s.deps.Self.Disk || m.Name != s.deps.Self.Name {
		return fmt.Errorf("meta: %s lost its disk: node id %d belongs to another data directory and is never reused", s.deps.Self.Name, m.ID)
	}
	return nil
}

// nextCommand decides what this node should propose now. leading is when it became the leader of group 0.
func (s *Service) nextCommand(leading time.Time) (command, bool) {
	st := s.State()
	leads := !leading.IsZero()
	if !st.Formed() {
		if !leads {
			return command{}, false
		}
		g := s.cfg.Genesis
		for g.ClusterID == 0 {
			g.ClusterID = s.deps.Rand.Uint64()
		}
		return command{Genesis: &g}, true
	}
	if m, ok := st.Member(s.deps.Self.ID); ok && m != s.deps.Self {
		self := s.deps.Self
		return command{Register: &self}, true
	}
	if leads && st.Ready() && st.PolicyEpoch > s.agreed {
		if !st.Agrees() {
			return command{Refence: &struct{}{}}, true
		}
		s.agreed = st.PolicyEpoch
	}
	if !leads || st.Ready() || !s.mayPlace(st, time.Since(leading)) {
		return command{}, false
	}
	placement := ring.DefaultConfig()
	placement.Partitions, placement.Replicas = st.Genesis.Partitions, st.Genesis.Replicas
	m, err := ring.Place(st.nodes(), placement)
	if err != nil {
		s.deps.Logger.Error("placing the partitions failed", "error", err)
		return command{}, false
	}
	m.Epoch = 1
	return command{Map: &m}, true
}

// mayPlace reports whether the first map may be made: everybody registered, or a majority did and the rest had time.
func (s *Service) mayPlace(st *State, waited time.Duration) bool {
	registered := 0
	for _, m := range st.Members {
		if m.Registered() {
			registered++
		}
	}
	return registered == len(st.Members) || (registered >= kv.Majority(len(st.Members)) && waited >= s.cfg.StragglerWait)
}

// drive proposes a command and logs a failure; the next tick decides anew from the state.
func (s *Service) drive(ctx context.Context, c command) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ProposeTimeout)
	defer cancel()
	if _, err := s.propose(ctx, c); err != nil && ctx.Err() == nil {
		s.deps.Logger.Debug("proposal to group 0 failed; it is decided anew", "error", err)
	}
}
