package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// forwardPatience is how long a forwarded read is waited for before the other node is asked whether it is there.
	forwardPatience = 300 * time.Millisecond
	// leaderlessMax is for how long a replica waits for a leader while a majority can be reached. Two election timeouts
	// with a lost vote in between are shorter.
	leaderlessMax = 4 * time.Second
)

// errAway says that a node does not answer.
var errAway = errors.New("the node does not answer")

// failing is a strong request that failed at least once and is offered again.
type failing struct {
	since time.Time
	// lost counts the replicas that said themselves that they are out of touch with a majority.
	lost int
}

// lost returns the error of a strong request for which no majority of the partition's replicas can be reached, nil while there
// is hope. A request that meets a cut is answered within a second with who is missing: a replica refuses after half a second of
// silence (consensus.SilenceMax), and what follows here takes a ping. An election, on the other hand, is waited for.
func (n *Node) lost(ctx context.Context, rt *route, f *failing, err error) error {
	if kv.AsError(err).Required > 0 {
		// A replica said so. Another one may be on the other side of the cut.
		if f.lost++; f.lost >= len(rt.owners) {
			return err
		}
	}
	silence, owner := n.strong.Silence(rt.partition.Group())
	if !owner {
		silence = time.Since(f.since)
	}
	if silence < n.strong.SilenceMax() {
		return nil
	}
	others := slices.DeleteFunc(slices.Clone(rt.owners), func(id kv.NodeID) bool { return id == n.id.Node })
	reached := n.reach.of(ctx, others)
	alive := len(reached) + len(rt.owners) - len(others)
	if alive >= kv.Majority(len(rt.owners)) && (!owner || silence < leaderlessMax) {
		for _, id := range others {
			if !owner && !slices.Contains(reached, id) {
				n.avoided.add(id)
			}
		}
		return nil
	}
	return lostError(rt, alive)
}

// lostError says how many replicas are missing for level strong, and what works without them.
func lostError(rt *route, alive int) error {
	total := len(rt.owners)
	required := kv.Majority(total)
	code, what := kv.CodeQuorumUnavailable, fmt.Sprintf("%d of its %d replicas can be reached, and level strong needs %d", alive, total, required)
	if alive >= required {
		code, what = kv.CodeNoLeader, fmt.Sprintf("it has had no leader for %v, though %d of its %d replicas can be reached", leaderlessMax, alive, total)
	}
	instead := fmt.Sprintf("levels eventual (r and w up to %d) and local still work", alive)
	if alive == 0 {
		instead = "no level works for its keys from here"
	}
	e := kv.Errorf(code, "partition %d: %s; %s", rt.partition, what, instead)
	e.Required, e.Alive = required, alive
	return e
}

// forwardRead is forward of a read, which is given up when the other node turns out not to answer at all. A write cannot be
// given up: whether it arrived, nobody knows.
func (n *Node) forwardRead(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(forwardPatience, func() {
		handler{n}.spawn(func() {
			if len(n.reach.of(ctx, []kv.NodeID{to})) == 0 && ctx.Err() == nil {
				cancel(errAway)
			}
		})
	})
	defer timer.Stop()
	res, err := n.forward(ctx, to, r)
	if err != nil && errors.Is(context.Cause(ctx), errAway) {
		n.avoided.add(to)
		return kv.Response{}, kv.Errorf(kv.CodeNoLeader, "node %s, asked for the read: %w", n.NodeName(to), errAway)
	}
	return res, err
}
