package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Backend is the node behind the front.
type Backend interface {
	// Execute runs one request to its end. The context carries its deadline. A failure is a *kv.Error; any other error
	// is answered as kv.CodeInternal. A read of an absent key is no error.
	Execute(ctx context.Context, r *kv.Request) (kv.Response, error)
	// ExecuteEach runs requests that came together, each by itself and those on one key in their order, and answers each at its
	// place.
	ExecuteEach(ctx context.Context, rs []kv.Request) []kv.Answer
	// NodeName returns the name of a member, "" when the id is unknown.
	NodeName(id kv.NodeID) string
	// Self returns the name of this node.
	Self() string
	// PartitionCount returns the number of the cluster's partitions, 0 while this node has no partition map.
	PartitionCount() int
	// Ready returns nil when requests of the level can be served now, else an error that says why not.
	// kv.LevelUnset asks about every level at once.
	Ready(level kv.Level) error
	// Document returns a value that encoding/json can marshal. The names are DocStatus and its siblings; DocPartition is
	// followed by a slash and a partition's number, and its document is nil when there is no such partition. So is DocCheck,
	// whose document is made by comparing the partition's replicas, for as long as ctx allows.
	Document(ctx context.Context, name string) (any, error)
	// Policies returns the store of per-prefix policies.
	Policies() PolicyStore
	// Faults returns the fault injector, or a nil interface when the node runs without it.
	Faults() FaultStore
}

// The names of the documents that Backend.Document knows.
const (
	DocStatus     = "status"
	DocRing       = "ring"
	DocNodes      = "nodes"
	DocPartitions = "partitions"
	DocPartition  = "partition"
	DocCheck      = "check"
	DocStats      = "stats"
)

// PolicyStore holds the per-prefix policies of the cluster.
type PolicyStore interface {
	// List returns every policy, ordered by prefix.
	List(ctx context.Context) ([]kv.Policy, error)
	// Get returns the policy of exactly this prefix.
	Get(ctx context.Context, prefix []byte) (kv.Policy, bool, error)
	// Switches returns how far the keys of the policy with exactly this prefix are from the lanes that it names: nothing once they
	// are there. Without a prefix it returns all switches that are under way.
	Switches(ctx context.Context, prefix []byte) []kv.LaneSwitch
	// Put creates or replaces the policy of p.Prefix and returns it as stored.
	Put(ctx context.Context, p kv.Policy) (kv.Policy, error)
	// Delete removes the policy of exactly this prefix; an absent one is no error.
	Delete(ctx context.Context, prefix []byte) error
}

// FaultStore is the fault injector of a node that was started for it.
type FaultStore interface {
	// Rules returns the rules in force, as JSON.
	Rules() json.RawMessage
	// Set replaces the rules. An error means that the rules are malformed and nothing changed.
	Set(rules json.RawMessage) error
	// Clear removes all rules.
	Clear()
}

// Deps is what the fronts need from their surroundings.
type Deps struct {
	Backend    Backend
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Gatherer is what GET /metrics exposes. Only the HTTP front uses it.
	Gatherer prometheus.Gatherer
	// WallNow is the wall clock.
	WallNow func() time.Time
}

// Validate reports what is missing.
func (d Deps) Validate() error {
	switch {
	case d.Backend == nil:
		return errors.New("api: Deps.Backend is missing")
	case d.Logger == nil:
		return errors.New("api: Deps.Logger is missing")
	case d.Registerer == nil:
		return errors.New("api: Deps.Registerer is missing")
	case d.WallNow == nil:
		return errors.New("api: Deps.WallNow is missing")
	}
	return nil
}
