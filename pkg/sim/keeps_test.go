package sim

import (
	"context"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/ring"
)

// Both lanes on keys whose prefix keeps versions: what was acknowledged is there in the end unless somebody covered it.

// keptWrite is one write of a history under a resolver that keeps versions. begin and end are of one counter for all clients.
type keptWrite struct {
	key, value    string
	strong, acked bool
	refused       bool // it certainly did nothing
	begin, end    int64
	saw           []string // values that the writer's context covers
	bit           int      // of a counter
	id            causal.Dot
}

// keptHistory is what the clients of a run did.
type keptHistory struct {
	c     *Cluster
	clock atomic.Int64
	mu    sync.Mutex // guards writes
	all   []*keptWrite
}

// do makes a write and notes it.
func (h *keptHistory) do(ctx context.Context, at int, w *keptWrite, r *kv.Request) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	r.Key, r.Value = []byte(w.key), []byte(w.value)
	r.Op, r.Level = kv.OpPut, kv.LevelEventual
	if w.strong {
		r.Level = kv.LevelStrong
	}
	w.begin = h.clock.Add(1)
	h.mu.Lock()
	h.all = append(h.all, w)
	h.mu.Unlock()
	_, err := h.c.Execute(ctx, at, r)
	w.end = h.clock.Add(1)
	w.acked, w.refused = err == nil, err != nil && kv.AsError(err).Outcome == kv.OutcomeNotApplied
	if w.acked && !w.strong {
		w.id = h.idOf(w)
	}
}

// idOf looks for the write's version on the nodes' disks; the zero dot if it is replaced everywhere already.
func (h *keptHistory) idOf(w *keptWrite) (id causal.Dot) {
	p := ring.PartitionOf([]byte(w.key), h.c.opts.Partitions)
	for i := range h.c.Size() {
		n := h.c.Node(i)
		if n == nil {
			continue
		}
		// What cannot be read now, because the node is being stopped say, is not known.
		_ = n.Inspect(func(e *storage.Engine) error {
			set, _, err := e.State().Siblings(p, []byte(w.key))
			for _, s := range set.Siblings {
				if string(s.Value) == w.value {
					id = s.ID
				}
			}
			return err
		})
	}
	return id
}

// read returns what a reader sees of a key, and its context.
func (h *keptHistory) read(ctx context.Context, at int, level kv.Level, key string) (values []string, seen []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	res, err := h.c.Execute(ctx, at, &kv.Request{Op: kv.OpGet, Level: level, Key: []byte(key), Siblings: kv.SiblingsAll})
	if err != nil {
		return nil, nil, err
	}
	for _, s := range res.Siblings {
		if !s.Deleted {
			values = append(values, string(s.Value))
		}
	}
	if len(res.Siblings) == 0 && res.Found {
		values = []string{string(res.Value)}
	}
	return values, res.Context, nil
}

// underFaults runs clients beside a plan of faults, until it is over.
func (h *keptHistory) underFaults(t *testing.T, ctx context.Context, seed uint64, clients int, step func(ctx context.Context, client, i int, r *rand.Rand)) {
	const length = 15 * time.Second
	plan, err := Scenario{Nodes: 3, Length: length, Faults: Faults(), AheadMax: 20 * time.Second}.Draw(rand.New(rand.NewPCG(seed, 29)))
	require.NoError(t, err)
	faulty, stop := context.WithTimeout(ctx, length)
	defer stop()
	var wg sync.WaitGroup
	for client := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(100+client)))
		wg.Go(func() {
			for i := 0; faulty.Err() == nil; i++ {
				step(ctx, client, i, r)
				time.Sleep(between(r, time.Millisecond, 60*time.Millisecond))
			}
		})
	}
	_, err = h.c.Nemesis(ctx, plan, func(string) {})
	require.NoError(t, err)
	wg.Wait()
	require.NoError(t, h.c.startMissing(ctx))
	waitReady(t, ctx, h.c, 30*time.Second)
	requireEqualReplicas(t, ctx, h.c)
}

func TestNothingAcknowledgedInEitherLaneVanishesWhereVersionsAreKept(t *testing.T) {
	for _, seed := range seeds()[:max(1, len(seeds())/2)] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, nil, func(t *testing.T, ctx context.Context, c *Cluster) {
				require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("s:"), Resolver: kv.ResolverSiblings}))
				time.Sleep(time.Second)
				h := &keptHistory{c: c}
				h.underFaults(t, ctx, seed, 6, func(ctx context.Context, client, i int, r *rand.Rand) {
					w := &keptWrite{key: fmt.Sprintf("s:%d", r.IntN(4)), value: fmt.Sprintf("%d-%d", client, i)}
					at, q := r.IntN(3), &kv.Request{}
					switch r.IntN(5) {
					case 0:
						w.strong = true
					case 1, 2, 3:
						level := []kv.Level{kv.LevelStrong, kv.LevelEventual}[r.IntN(2)]
						seen, token, err := h.read(ctx, at, level, w.key)
						if err != nil {
							return
						}
						w.saw, q.Context = seen, token
						at = r.IntN(3)
					}
					h.do(ctx, at, w, q)
				})
				exact := 0
				for i := range 4 {
					exact += h.judgeSiblings(t, ctx, fmt.Sprintf("s:%d", i))
				}
				t.Logf("%d writes, %d of those that are gone found in the strong lane by id", len(h.all), exact)
			})
		})
	}
}

// judgeSiblings checks what is left of a key, and returns how many writes are gone because a strong one took them in.
func (h *keptHistory) judgeSiblings(t *testing.T, ctx context.Context, key string) (exact int) {
	left, _, err := h.read(ctx, 0, kv.LevelStrong, key)
	require.NoError(t, err)
	for at := range 3 {
		for _, level := range []kv.Level{kv.LevelEventual, kv.LevelLocal} {
			got, _, err := h.read(ctx, at, level, key)
			require.NoError(t, err)
			require.ElementsMatch(t, left, got, "both levels show the same of %s once all is calm", key)
		}
	}
	strong := stateAt(t, h.c, 0, key)
	for _, w := range h.all {
		if w.key != key {
			continue
		}
		there := slices.Contains(left, w.value)
		require.False(t, there && w.refused, "%s was refused and is there", w.value)
		covered, maybe := false, false
		for _, o := range h.all {
			if o.key != key || o == w || o.refused {
				continue
			}
			saw := slices.Contains(o.saw, w.value)
			covered = covered || o.acked && (saw || o.strong && w.acked && w.end < o.begin)
			maybe = maybe || saw || o.strong && w.strong && (o.end > w.begin || !o.acked) ||
				o.strong && !w.strong && w.id.IsZero() && (o.end > w.begin || !o.acked)
		}
		require.False(t, there && covered, "%s was covered and is there; left is %v", w.value, left)
		byID := !w.id.IsZero() && slices.Contains(strong.Covered, w.id)
		if byID && !there {
			exact++
		}
		require.False(t, there && byID, "%s was taken in and is there", w.value)
		require.False(t, w.acked && !there && !maybe && !byID, "%s was acknowledged, nobody covered it, and it is gone; left is %v", w.value, left)
	}
	return exact
}

// Each increment has a bit of its own in the sum.
func TestCountersCountWhatTheLastStrongWriteHasNotReplaced(t *testing.T) {
	for _, seed := range seeds()[:max(1, len(seeds())/2)] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inTunedBubble(t, seed, 3, nil, func(t *testing.T, ctx context.Context, c *Cluster) {
				require.NoError(t, c.SetPolicy(ctx, kv.Policy{Prefix: []byte("c:"), Resolver: kv.ResolverCounter}))
				time.Sleep(time.Second)
				h := &keptHistory{c: c}
				var mu sync.Mutex // guards next
				next := map[string]int{}
				h.underFaults(t, ctx, seed, 4, func(ctx context.Context, _, _ int, r *rand.Rand) {
					w := &keptWrite{key: fmt.Sprintf("c:%d", r.IntN(20)), value: "0", bit: -1}
					if w.strong = r.IntN(6) == 0; !w.strong {
						mu.Lock()
						w.bit = next[w.key]
						next[w.key]++
						mu.Unlock()
						if w.bit > 60 {
							return
						}
						w.value = fmt.Sprint(uint64(1) << w.bit)
					}
					h.do(ctx, r.IntN(3), w, &kv.Request{})
				})
				counted := 0
				for key := range next {
					counted += h.judgeCounter(t, ctx, key)
				}
				t.Logf("%d writes, %d left in the sums", len(h.all), counted)
			})
		})
	}
}

func (h *keptHistory) judgeCounter(t *testing.T, ctx context.Context, key string) (counted int) {
	left, _, err := h.read(ctx, 0, kv.LevelStrong, key)
	require.NoError(t, err)
	sum := new(big.Int)
	if len(left) > 0 {
		_, ok := sum.SetString(left[0], 10)
		require.True(t, ok, left)
	}
	require.GreaterOrEqual(t, sum.Sign(), 0, "%s: more was taken away than was counted", key)
	for at := range 3 {
		got, _, err := h.read(ctx, at, kv.LevelLocal, key)
		require.NoError(t, err)
		require.Equal(t, left, got, key)
	}
	known := new(big.Int)
	for _, w := range h.all {
		if w.key != key || w.strong {
			continue
		}
		there := sum.Bit(w.bit) == 1
		if there {
			counted++
			known.SetBit(known, w.bit, 1)
		}
		replaced, maybe := false, false
		for _, o := range h.all {
			if o.key == key && o.strong && !o.refused {
				replaced = replaced || o.acked && w.acked && w.end < o.begin
				maybe = maybe || !o.acked || o.end > w.begin
			}
		}
		require.False(t, there && w.refused, "%s: increment %d was refused and is counted", key, w.bit)
		require.False(t, there && replaced, "%s: increment %d was replaced by a strong write and is counted: %b", key, w.bit, sum)
		require.False(t, w.acked && !there && !maybe, "%s: increment %d was acknowledged and is not counted: %b", key, w.bit, sum)
	}
	require.Zero(t, known.Cmp(sum), "%s: %b counts what nobody added", key, sum)
	return counted
}
