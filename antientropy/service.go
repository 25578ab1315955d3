package antientropy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Peer carries one request of an exchange to another replica and brings back the answer.
type Peer interface {
	Exchange(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error)
}

// Merger merges a set into this node's replica under the rules of a repair, and returns once the result is durable. It is
// called for many keys at once.
type Merger interface {
	Merge(ctx context.Context, p kv.PartitionID, epoch kv.Epoch, key []byte, set causal.SiblingSet) error
}

// Owned is a partition that this node holds a replica of.
type Owned struct {
	Partition kv.PartitionID
	Epoch     kv.Epoch
	Owners    []kv.NodeID
}

// Deps are the service's collaborators.
type Deps struct {
	Self   kv.NodeID
	State  storage.State
	Merger Merger
	Peer   Peer
	// Owned lists what this node holds by the map in force.
	Owned      func() []Owned
	Alive      func(kv.NodeID) bool
	Rand       *rand.Rand
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Service compares this node's partitions with their other replicas, and answers theirs.
type Service struct {
	cfg  Config
	deps Deps

	exchanges *prometheus.CounterVec
	repaired  *prometheus.CounterVec
	seconds   prometheus.Counter
}

// New returns a service that answers peers at once and asks them while Run runs.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Merger == nil || deps.Peer == nil || deps.Owned == nil || deps.Alive == nil || deps.Rand == nil ||
		deps.Logger == nil || deps.Registerer == nil {
		return nil, errors.New("antientropy: a collaborator is missing")
	}
	s := &Service{
		cfg: cfg, deps: deps,
		exchanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvstore_antientropy_exchanges_total",
			Help: "Comparisons of a partition with another replica, by result: equal, repaired or failed.",
		}, []string{"result"}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvstore_antientropy_keys_repaired_total",
			Help: "Keys that a comparison merged, by side: local, or remote for those sent to the peer.",
		}, []string{"side"}),
		seconds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_antientropy_busy_seconds_total", Help: "Time spent on comparisons that this node began.",
		}),
	}
	deps.Registerer.MustRegister(s.exchanges, s.repaired, s.seconds)
	return s, nil
}

// Run compares, round after round, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	pause := s.cfg.Interval
	for round := 0; ; round++ {
		pause += time.Duration(s.deps.Rand.Int64N(int64(s.cfg.Interval)/2 + 1))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		began := time.Now()
		scanned := s.round(ctx, round)
		s.seconds.Add(time.Since(began).Seconds())
		pause = max(s.cfg.Interval, time.Duration(s.cfg.IdleFactor)*scanned)
	}
}

// round compares each partition with one of its other live replicas. It returns how long this node's own scans took:
// waiting for a peer costs nothing, and after a fault that made comparisons time out the next one must not be far away.
func (s *Service) round(ctx context.Context, round int) (scanned time.Duration) {
	for _, o := range s.deps.Owned() {
		to, ok := s.choose(o, round)
		if !ok {
			continue
		}
		n, err := s.compareWith(ctx, o, to, &scanned)
		switch {
		case ctx.Err() != nil:
			return scanned
		case err != nil:
			s.exchanges.WithLabelValues("failed").Inc()
			s.deps.Logger.Debug("a comparison of replicas failed; a later round tries again",
				"partition", o.Partition, "peer", to, "error", err)
		case n == 0:
			s.exchanges.WithLabelValues("equal").Inc()
		default:
			s.exchanges.WithLabelValues("repaired").Inc()
			s.deps.Logger.Info("replicas differed and were merged", "partition", o.Partition, "peer", to, "keys", n)
		}
	}
	return scanned
}

// choose takes the owners in turn, skipping this node and the dead.
func (s *Service) choose(o Owned, round int) (kv.NodeID, bool) {
	var others []kv.NodeID
	for _, id := range o.Owners {
		if id != s.deps.Self && s.deps.Alive(id) {
			others = append(others, id)
		}
	}
	if len(others) == 0 {
		return kv.NoNode, false
	}
	// The partition is added so that one round does not burden a single peer.
	return others[(round+int(o.Partition))%len(others)], true
}

// compareWith makes one partition equal on this node and the peer. It returns the number of keys that differed, and adds
// the time of this node's scans to scanned.
func (s *Service) compareWith(ctx context.Context, o Owned, to kv.NodeID, scanned *time.Duration) (int, error) {
	began := time.Now()
	own, err := s.digest(ctx, o.Partition)
	*scanned += time.Since(began)
	if err != nil {
		return 0, err
	}
	reply, err := s.ask(ctx, to, appendDigest(header{askLeaves, o.Partition, o.Epoch}.append(nil), own))
	if err != nil {
		return 0, err
	}
	differ, rest, err := decodeLeafSet(reply)
	if err != nil || len(rest) != 0 {
		return 0, fmt.Errorf("%w: answer to a digest", ErrPayload)
	}
	if differ.empty() {
		return 0, nil
	}
	total := 0
	var last []byte
	for {
		request := append(header{askKeys, o.Partition, o.Epoch}.append(nil), differ[:]...)
		reply, err := s.ask(ctx, to, append(request, last...))
		if err != nil {
			return total, err
		}
		theirs, err := decodeChunk(reply)
		if err != nil {
			return total, err
		}
		var upTo []byte
		if theirs.more {
			upTo = theirs.keys[len(theirs.keys)-1].key
		}
		began := time.Now()
		ours, err := s.keys(ctx, o.Partition, &differ, last, upTo, s.cfg.ChunkBytesMax)
		*scanned += time.Since(began)
		if err != nil {
			return total, err
		}
		if ours.more { // both lists end where the shorter one does
			upTo = ours.keys[len(ours.keys)-1].key
			theirs.keys = until(theirs.keys, upTo)
		}
		keys := compare(ours.keys, theirs.keys)
		if err := s.mergeKeys(ctx, o, to, keys); err != nil {
			return total, err
		}
		total += len(keys)
		if upTo == nil {
			return total, nil
		}
		last = slices.Clone(upTo)
	}
}

// mergeKeys sends this node's sets of the keys to the peer and merges what comes back, chunk by chunk.
func (s *Service) mergeKeys(ctx context.Context, o Owned, to kv.NodeID, keys [][]byte) error {
	for len(keys) > 0 {
		request := header{askMerge, o.Partition, o.Epoch}.append(nil)
		sent := 0
		for sent < len(keys) && (sent == 0 || len(request) < s.cfg.ChunkBytesMax) {
			set, _, err := s.deps.State.Siblings(o.Partition, keys[sent])
			if err != nil {
				return err
			}
			request = keySet{key: keys[sent], set: set}.append(request)
			sent++
		}
		reply, err := s.ask(ctx, to, request)
		if err != nil {
			return err
		}
		m, err := decodeMerged(reply, sent)
		if err != nil {
			return err
		}
		if err := s.mergeAll(ctx, o, m.sets); err != nil {
			return err
		}
		s.repaired.WithLabelValues("local").Add(float64(len(m.sets)))
		s.repaired.WithLabelValues("remote").Add(float64(m.taken))
		keys = keys[m.taken:]
	}
	return nil
}

func (s *Service) ask(ctx context.Context, to kv.NodeID, payload []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.deps.Peer.Exchange(ctx, to, payload)
}
