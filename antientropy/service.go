package antientropy

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Peer carries one request of an exchange to another replica and brings back the answer.
type Peer interface {
	Exchange(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error)
}

// Replica is this node's replica of the eventual lane. Its methods return once what they did is durable, and are called
// for many keys at once.
type Replica interface {
	// Merge merges a set under the rules of a repair. heals says that the sender has lost nothing and is as far as this
	// replica, so that a replica which heals takes also what is from before the watermark.
	Merge(ctx context.Context, p kv.PartitionID, epoch kv.Epoch, key []byte, set causal.SiblingSet, heals bool) error
	// Renounce drops, while the replica heals, what it holds of the key from up to the time and theirs does not hold.
	Renounce(ctx context.Context, p kv.PartitionID, key []byte, theirs causal.SiblingSet, upTo causal.HLC) error
	// Rewrite writes the key's row again as it is; a row that cannot be read is removed.
	Rewrite(ctx context.Context, p kv.PartitionID, key []byte) error
	// Collect removes the key's row if it holds no value and is wholly behind the watermark. applied is how far the
	// partition's log was applied before.
	Collect(ctx context.Context, p kv.PartitionID, key []byte, applied uint64) (gone bool, err error)
	// Flush returns once all that was accepted for the partition is in storage.
	Flush(ctx context.Context, p kv.PartitionID) error
}

// Hints is a node's store of hints, as far as the watermark is concerned.
type Hints interface {
	// Settled reports whether the store holds no hint of the partition stamped at or below the time, and makes it durably
	// refuse such hints from then on.
	Settled(ctx context.Context, p kv.PartitionID, upTo causal.HLC) (bool, error)
	// Holders returns the nodes that this one has asked to keep hints of the partition, and Strike forgets those that were last
	// asked at or before the time, because all of them have settled up to it.
	Holders(p kv.PartitionID) []kv.NodeID
	Strike(p kv.PartitionID, upTo causal.HLC)
}

// Owned is a partition that this node holds a replica of.
type Owned struct {
	Partition kv.PartitionID
	Epoch     kv.Epoch
	Owners    []kv.NodeID
}

// Deps are the service's collaborators.
type Deps struct {
	Self    kv.NodeID
	Engine  *storage.Engine
	Replica Replica
	Peer    Peer
	// Owned lists what this node holds by the map in force.
	Owned func() []Owned
	Alive func(kv.NodeID) bool
	// Now reads the node's hybrid clock: every attempt that the node stamps later is above what it returns.
	Now func() (causal.HLC, error)
	// Applied returns how far the log of the partition is applied here.
	Applied func(kv.PartitionID) uint64
	// Hints is nil on a node that keeps none.
	Hints Hints
	// Members lists the nodes of the cluster. Nil: there are none but the owners.
	Members func() []kv.NodeID
	// Violated counts rows that were found damaged. Nil: nobody counts.
	Violated   func(rows int)
	Rand       *rand.Rand
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Service compares this node's partitions with their other replicas, answers theirs, and keeps what it compares sound.
type Service struct {
	cfg      Config
	deps     Deps
	metrics  *metrics
	suspects suspects
	// soon has one slot: a token begins a round without the pause.
	soon chan struct{}

	mu         sync.Mutex // guards what follows, and deps.Rand
	partitions map[kv.PartitionID]*progress
}

// New returns a service that answers peers at once and asks them while Run runs.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Engine == nil || deps.Replica == nil || deps.Peer == nil || deps.Owned == nil || deps.Alive == nil || deps.Now == nil ||
		deps.Applied == nil || deps.Rand == nil || deps.Logger == nil || deps.Registerer == nil {
		return nil, errors.New("antientropy: a collaborator is missing")
	}
	if deps.Members == nil {
		deps.Members = func() []kv.NodeID { return nil }
	}
	if deps.Violated == nil {
		deps.Violated = func(int) {}
	}
	s := &Service{
		cfg: cfg, deps: deps, soon: make(chan struct{}, 1), partitions: map[kv.PartitionID]*progress{},
		suspects: suspects{wake: make(chan struct{}, 1), all: map[kv.PartitionID]bool{}},
	}
	s.metrics = newMetrics(s)
	return s, nil
}

// Run compares, scrubs and collects, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.exchanges(ctx) })
	g.Go(func() error { return s.watermarks(ctx) })
	g.Go(func() error { return s.scrub(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-s.deps.Engine.TreesFull():
			}
			if err := s.deps.Engine.FoldTrees(ctx); err != nil && ctx.Err() == nil {
				s.deps.Logger.Warn("changes could not be folded into a hash tree", "error", err)
			}
		}
	})
	return g.Wait()
}

// exchanges compares, round after round.
func (s *Service) exchanges(ctx context.Context) error {
	pause := s.cfg.Interval
	for round := 0; ; round++ {
		pause += s.chance(s.cfg.Interval / 2)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		case <-s.soon:
		}
		began := time.Now()
		scanned := s.round(ctx, round)
		s.metrics.seconds.Add(time.Since(began).Seconds())
		pause = max(s.cfg.Interval, time.Duration(s.cfg.IdleFactor)*scanned)
	}
}

// chance draws a duration up to most.
func (s *Service) chance(most time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.deps.Rand.Int64N(int64(most) + 1))
}

// salt draws the salt of an exchange.
func (s *Service) salt() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deps.Rand.Uint64()
}

// hurry begins the next round at once.
func (s *Service) hurry() {
	select {
	case s.soon <- struct{}{}:
	default:
	}
}

// round compares each partition with one of its other live replicas, and one that heals with all of them. It returns how
// long this node's own reading took: waiting for a peer costs nothing, and after a fault that made comparisons time out the
// next one must not be far away.
func (s *Service) round(ctx context.Context, round int) (scanned time.Duration) {
	for _, o := range s.deps.Owned() {
		others := s.others(o)
		healing := s.deps.Engine.State().Repair(o.Partition).Healing
		if len(others) > 0 && !healing {
			// The partition is added so that one round does not burden a single peer.
			n := (round + int(o.Partition)) % len(others)
			others = others[n : n+1]
		}
		for _, to := range others {
			x := s.newExchange(o, to)
			_ = s.compare(ctx, x) // a later round tries again
			scanned += x.scanned
			if ctx.Err() != nil {
				return scanned
			}
		}
		if healing {
			s.healed(o)
		}
		s.collect(ctx, o)
	}
	return scanned
}

// others returns the live owners but this node.
func (s *Service) others(o Owned) []kv.NodeID {
	var out []kv.NodeID
	for _, id := range o.Owners {
		if id != s.deps.Self && s.deps.Alive(id) {
			out = append(out, id)
		}
	}
	return out
}

// compare runs an exchange and notes how it went.
func (s *Service) compare(ctx context.Context, x *exchange) error {
	began := time.Now()
	err := x.run(ctx)
	s.metrics.repaired.WithLabelValues("local").Add(float64(x.received))
	s.metrics.repaired.WithLabelValues("remote").Add(float64(x.sent))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		s.metrics.exchanges.WithLabelValues("failed").Inc()
		s.deps.Logger.Debug("a comparison of replicas failed; a later round tries again",
			"partition", x.o.Partition, "peer", x.to, "error", err)
		return err
	case x.keys == 0:
		s.metrics.exchanges.WithLabelValues("equal").Inc()
	default:
		s.metrics.exchanges.WithLabelValues("repaired").Inc()
		s.deps.Logger.Info("replicas differed and were merged", "partition", x.o.Partition, "peer", x.to, "keys", x.keys)
	}
	s.note(x, began)
	return nil
}

func (s *Service) ask(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	reply, err := s.deps.Peer.Exchange(ctx, to, payload)
	s.metrics.sent.Add(float64(len(payload)))
	s.metrics.received.Add(float64(len(reply)))
	return reply, err
}
