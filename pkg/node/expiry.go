package node

import (
	"context"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// expireEvery is how often a leader looks for values that have expired, expireRounds the most batches that it then
	// removes of one partition, and expireTimeout what one batch may take.
	expireEvery   = time.Second
	expireRounds  = 16
	expireTimeout = 2 * time.Second
	// expiredReadsMax bounds how often a read that meets an expired value looks again.
	expiredReadsMax = 3
)

// unexpired returns the state of a key that was read as s, after a read barrier and with an expiry, as the strong lane
// answers it. A value that has expired is removed first, by an entry: only the log can say when a key ceases to exist, or
// a write that was proposed earlier and still finds the value there would contradict the read.
func (n *Node) unexpired(ctx context.Context, g kv.GroupID, key []byte, s storage.Strong) (storage.Strong, bool, error) {
	found := true
	for range expiredReadsMax {
		now, err := n.clock.Now()
		if err != nil || !found || !consensus.Expired(s, now) {
			return s, found, err
		}
		if err := n.strong.Expire(ctx, g, []consensus.Expiring{{At: s.Expiry, Key: key}}); err != nil {
			// Nothing that the caller asked for was or could be written.
			return storage.Strong{}, false, kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
		if s, found, err = n.engine.State().Strong(g, key); err != nil {
			return s, found, err
		}
	}
	return storage.Strong{}, false, kv.Errorf(kv.CodeNoLeader, "the key was replaced by values that had expired %d times", expiredReadsMax)
}

// removeExpired removes the expired values of the partitions that this node leads, until ctx is done.
func (n *Node) removeExpired(ctx context.Context) error {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		st := n.machine.State()
		for p := range st.Map.Partitions {
			g := kv.PartitionID(p).Group()
			for round := 0; round < expireRounds && n.strong.Leader(g) == n.id.Node; round++ {
				if !n.removeBatch(ctx, g) {
					break
				}
			}
		}
	}
}

// removeBatch removes some expired values of a partition, and reports whether there may be more. What it cannot do now
// is left for the next look.
func (n *Node) removeBatch(ctx context.Context, g kv.GroupID) (more bool) {
	now, err := n.clock.Now()
	if err != nil {
		return false
	}
	var keys []consensus.Expiring
	err = n.engine.State().ScanExpiry(g, now, func(at causal.HLC, key []byte) (bool, error) {
		keys = append(keys, consensus.Expiring{At: at, Key: key})
		return len(keys) < consensus.ExpireMax, nil
	})
	if err != nil {
		n.log.Warn("cannot look for expired values", "group", uint32(g), "error", err)
		return false
	}
	if len(keys) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, expireTimeout)
	defer cancel()
	if err := n.strong.Expire(ctx, g, keys); err != nil {
		n.log.Debug("expired values stay until the next look", "group", uint32(g), "error", err)
		return false
	}
	return len(keys) == consensus.ExpireMax
}
