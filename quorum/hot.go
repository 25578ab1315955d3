package quorum

import (
	"context"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// hotKeysMax bounds the keys that a node remembers as written hard from several coordinators. Beyond it a key is found out
// anew, by two refusals.
const hotKeysMax = 1024

// hotKeys are keys whose writes go to the leader of their partition. The zero value holds none.
type hotKeys struct {
	mu    sync.Mutex // guards until
	until map[string]time.Time
}

func (h *hotKeys) add(key []byte, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.until == nil {
		h.until = map[string]time.Time{}
	}
	now := time.Now()
	if len(h.until) >= hotKeysMax {
		for k, until := range h.until {
			if now.After(until) {
				delete(h.until, k)
			}
		}
	}
	if _, known := h.until[string(key)]; known || len(h.until) < hotKeysMax {
		h.until[string(key)] = now.Add(d)
	}
}

func (h *hotKeys) has(key []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	until, known := h.until[string(key)]
	if known && time.Now().After(until) {
		delete(h.until, string(key))
		known = false
	}
	return known
}

// attemptsBeforeLeader is after how many refused attempts a write is handed to the leader of the key's partition.
const attemptsBeforeLeader = 2

// otherLeader returns the node that should coordinate the write instead of this one. Only where the last writer wins: a
// coordinator covers there what it holds, so that an earlier attempt elsewhere loses against the leader's. Where siblings are
// kept the two would stand side by side.
func (c *Coordinator) otherLeader(call *Call) (kv.NodeID, bool) {
	if c.deps.Leader == nil || c.deps.Forward == nil || call.Resolver.KeepsSiblings() || len(call.Request.Resume) > 0 {
		return kv.NoNode, false
	}
	if _, folds := call.Resolver.(Folder); folds {
		return kv.NoNode, false // what a write makes of the key depends on what its coordinator holds
	}
	leader := c.deps.Leader(call.Partition)
	return leader, leader != kv.NoNode && leader != c.deps.Self
}

// leads reports whether this node leads the partition's group, as far as it knows.
func (c *Coordinator) leads(call *Call) bool {
	return c.deps.Leader != nil && c.deps.Leader(call.Partition) == c.deps.Self
}

// handOver has the leader coordinate the write. It returns false when the leader did nothing. What was handed to a leader that
// does not answer is lost to this node: the leader may yet make the write, so that nobody else may. Hence a leader that is silent
// is handed nothing.
func (c *Coordinator) handOver(ctx context.Context, call *Call, resume []byte) (kv.Response, bool, error) {
	leader, ok := c.otherLeader(call)
	if !ok || c.calls.silent(leader) || !c.calls.begin(leader) {
		return kv.Response{}, false, nil
	}
	defer c.calls.end(leader)
	r := *call.Request
	r.Resume = resume
	c.metrics.handedOver.Inc()
	res, err := c.deps.Forward(ctx, leader, &r)
	if err != nil && kv.AsError(err).Outcome == kv.OutcomeNotApplied {
		return kv.Response{}, false, err
	}
	c.hot.add(r.Key, c.cfg.HotFor)
	return res, true, err
}

// appendResume appends what the leader must know to go on with a write: its id, and what it was refused with. found is what
// a reader would have found before it.
func appendResume(dst []byte, d *draft, found bool) []byte {
	dst = causal.AppendPosition(causal.AppendStamp(causal.AppendDot(dst, d.id), d.above), d.base)
	if found {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func decodeResume(b []byte, d *draft) (found bool, err error) {
	if d.id, b, err = causal.DecodeDot(b); err != nil {
		return false, err
	}
	if d.above, b, err = causal.DecodeStamp(b); err != nil {
		return false, err
	}
	if d.base, b, err = causal.DecodePosition(b); err != nil {
		return false, err
	}
	if len(b) != 1 || d.id.IsZero() {
		return false, kv.Errorf(kv.CodeBadRequest, "the write to go on with cannot be read")
	}
	return b[0] == 1, nil
}
