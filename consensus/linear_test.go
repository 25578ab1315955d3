package consensus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// register is one key as clients of the strong lane see it.
type registerInput struct {
	write   bool
	value   string
	version uint64 // with conditional
	cond    bool
}

type registerOutput struct {
	value    string
	revision uint64
	applied  bool
	unknown  bool
}

type registerState struct {
	value    string
	revision uint64
}

// registerModel follows revisions: a write that applied gets a higher one than the present, and a conditional one
// applies exactly when the present is what it expects. A write whose end is unknown may or may not have happened; if it
// did, a later read tells its revision.
var registerModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{registerState{}} },
	Step: func(state, input, output any) []any {
		s, in, out := state.(registerState), input.(registerInput), output.(registerOutput)
		switch {
		case !in.write:
			if s.value == out.value && (s.revision == out.revision || s.revision == anyRevision) {
				return []any{registerState{out.value, out.revision}}
			}
			return nil
		case out.unknown:
			next := []any{s}
			if !in.cond || s.revision == in.version || s.revision == anyRevision {
				next = append(next, registerState{in.value, anyRevision})
			}
			return next
		case out.applied:
			if in.cond && s.revision != in.version && s.revision != anyRevision {
				return nil
			}
			if s.revision != anyRevision && out.revision <= s.revision {
				return nil
			}
			return []any{registerState{in.value, out.revision}}
		default: // the condition missed, and the answer says what was there
			if s.revision != anyRevision && s.revision != out.revision {
				return nil
			}
			if out.revision == in.version {
				return nil
			}
			return []any{registerState{s.value, out.revision}}
		}
	},
	Equal:             func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// anyRevision stands for the unknown revision of a write that nobody heard about.
const anyRevision = ^uint64(0)

// history records operations with a counter for a clock: virtual time would tie them.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   map[string][]porcupine.Operation
	known int
}

func (h *history) add(client int, key string, start int64, in registerInput, out registerOutput) {
	end := h.clock.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.unknown {
		end = 1 << 60 // it may still happen
	} else {
		h.known++
	}
	h.ops[key] = append(h.ops[key], porcupine.Operation{ClientId: client, Input: in, Output: out, Call: start, Return: end})
}

// client writes keys on whichever node believes to lead, including nodes that no longer do, and reads them anywhere.
func (h *history) client(ctx context.Context, c *cluster, id int, rng *rand.Rand) {
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(1+rng.IntN(4)) * time.Millisecond)
		n := c.nodes[c.ids[rng.IntN(len(c.ids))]]
		store, fenced := n.life()
		write := rng.IntN(2) == 0
		if store == nil || write && store.Leader(1) != n.id {
			continue
		}
		op, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
		key := fmt.Sprintf("k%d-%d", rng.IntN(3), h.clock.Load()/600)
		if !write {
			h.read(op, n, store, id, key)
		} else {
			in := registerInput{write: true, value: fmt.Sprintf("c%d-%d", id, i), cond: rng.IntN(3) == 0}
			h.write(op, n, store, fenced, id, key, in)
		}
		cancel()
	}
}

func (h *history) read(ctx context.Context, n *node, store *Store, id int, key string) {
	start := h.clock.Add(1)
	if store.ReadBarrier(ctx, 1) != nil {
		return
	}
	if s, alive, err := n.strong(store, 1, key); alive && err == nil {
		h.add(id, key, start, registerInput{}, registerOutput{value: string(s.Value), revision: s.Revision})
	}
}

func (h *history) write(
	ctx context.Context, n *node, store *Store, fenced *atomic.Bool, id int, key string, in registerInput,
) {
	w := WriteOp{Key: []byte(key), Value: []byte(in.value)}
	if in.cond {
		s, _, _ := n.strong(store, 1, key)
		in.version = s.Revision
		w.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: s.Revision}
	}
	start := h.clock.Add(1)
	r, err := store.Put(ctx, 0, w)
	switch {
	case fenced.Load(), err != nil && kv.AsError(err).Outcome == kv.OutcomeUnknown:
		h.add(id, key, start, in, registerOutput{unknown: true})
	case err == nil:
		h.add(id, key, start, in, registerOutput{applied: r.Applied, revision: r.Revision})
	}
}

// TestStrongLaneIsLinearizable runs clients through partitions, power cuts and transfers, and asks porcupine.
func TestStrongLaneIsLinearizable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		c.awaitLeader(1, 5*time.Second)
		h := &history{ops: make(map[string][]porcupine.Operation)}
		ctx, stop := context.WithCancel(context.Background())
		var clients sync.WaitGroup
		for id := range 5 {
			rng := rand.New(rand.NewPCG(seed, uint64(id)))
			clients.Go(func() { h.client(ctx, c, id, rng) })
		}
		rng := rand.New(rand.NewPCG(seed, 99))
		leaders := make(map[kv.NodeID]int)
		for range 9 {
			time.Sleep(time.Duration(100+rng.IntN(400)) * time.Millisecond)
			leader := c.leader(1)
			leaders[leader]++
			switch victim := c.ids[rng.IntN(3)]; rng.IntN(4) {
			case 0, 1:
				if leader != kv.NoNode {
					victim = leader
				}
				c.net.isolate(victim, c.others(victim), true)
				time.Sleep(time.Duration(500+rng.IntN(3000)) * time.Millisecond)
				c.net.isolate(victim, c.others(victim), false)
			case 2:
				c.powerCut(50, rng, victim)
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
				c.start(victim)
			case 3:
				if leader != kv.NoNode {
					c.nodes[leader].store.TransferLeader(1, c.others(leader)[rng.IntN(2)])
				}
			}
		}
		stop()
		clients.Wait()
		require.Greater(t, h.known, 300)
		require.Greater(t, len(leaders), 1, "a run without a leader change proves nothing")
		for key, ops := range h.ops {
			result := porcupine.CheckOperationsTimeout(registerModel.ToModel(), ops, 20*time.Second)
			require.Equal(t, porcupine.Ok, result, "key %s, seed %d, %d operations", key, seed, len(ops))
		}
	})
}
