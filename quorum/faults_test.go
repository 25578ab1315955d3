package quorum

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// seedVariable replays one seed of the randomised tests.
const seedVariable = "QUORUM_TEST_SEED"

func seeds(t *testing.T, n int) []uint64 {
	if s := os.Getenv(seedVariable); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		return []uint64{seed}
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = rand.Uint64()
	}
	return out
}

// randomLink draws what a link does for a while.
func randomLink(r *rand.Rand) link {
	l := link{delay: time.Duration(r.IntN(4)) * time.Millisecond}
	switch r.IntN(8) {
	case 0:
		l.refuse = kv.Errorf(kv.CodeNotReady, "no connection")
	case 1:
		l.swallow = true
	case 2:
		l.dropReply = true
	case 3:
		l.delay += time.Duration(r.IntN(200)) * time.Millisecond
	case 4:
		l.twice = time.Duration(r.IntN(300)) * time.Millisecond
	}
	return l
}

// faultRun is a randomised run: clients write through links that come and go while nodes lose power.
type faultRun struct {
	*cluster
	// mu guards acked, the values that were acknowledged by key, with their stamps' time.
	mu    sync.Mutex
	acked map[string][]ackedWrite
	fired int // acknowledgements after at least one fault
}

type ackedWrite struct {
	value string
	dot   causal.HLC
}

func (f *faultRun) client(id int, r *rand.Rand, writes int) {
	for i := range writes {
		at := kv.NodeID(1 + r.IntN(3))
		node := f.node(at)
		key, value := fmt.Sprintf("k%d", r.IntN(3)), fmt.Sprintf("%d/%d", id, i)
		res, err := f.do(at, 300*time.Millisecond, &kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value)}, kv.Quorum{W: 2})
		if err == nil && !node.fenced.Load() {
			f.mu.Lock()
			f.acked[key] = append(f.acked[key], ackedWrite{value, causal.MakeHLC(res.Timestamp.UnixMilli(), 0)})
			f.fired++
			f.mu.Unlock()
		}
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
	}
}

// run lets clients write under faults, then heals and reads everything from all replicas until it is repaired.
func (f *faultRun) run(r *rand.Rand) {
	var clients sync.WaitGroup
	for id := range 4 {
		own := rand.New(rand.NewPCG(r.Uint64(), 1))
		clients.Go(func() { f.client(id, own, 30) })
	}
	for round := range 8 {
		for from := kv.NodeID(1); from <= 3; from++ {
			for to := kv.NodeID(1); to <= 3; to++ {
				f.setLink(from, to, randomLink(r))
			}
			f.node(from).disk.set(func(d *testDisk) { d.sync = time.Duration(r.IntN(10)) * time.Millisecond })
		}
		time.Sleep(time.Duration(20+r.IntN(100)) * time.Millisecond)
		if round == 3 {
			f.powerCut(kv.NodeID(1 + r.IntN(3)))
		}
	}
	clients.Wait()
	f.slowLinks(time.Millisecond)
	// The clock of a node that came back at once is ahead of its peers' until they catch up.
	time.Sleep(20 * time.Second)
	for range 3 {
		for key := range f.acked {
			_, err := f.get(kv.NodeID(1+r.IntN(3)), key, 3)
			require.NoError(f.t, err)
		}
		time.Sleep(time.Second)
	}
}

func TestNoAcknowledgedSiblingIsLostToFaultsAndPowerCuts(t *testing.T) {
	for _, seed := range seeds(t, 12) {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			c.keeps = true
			for _, n := range c.nodes {
				n.store.cfg.SiblingsMax = 1 << 20
			}
			f := &faultRun{cluster: c, acked: map[string][]ackedWrite{}}
			f.run(rand.New(rand.NewPCG(seed, 0)))
			for key, writes := range f.acked {
				for id := kv.NodeID(1); id <= 3; id++ {
					held := values(c.node(id).held(key))
					for _, w := range writes {
						require.Contains(t, held, w.value, "key %s, node %d; replay with %s=%d", key, id, seedVariable, seed)
					}
				}
			}
			require.Greater(t, f.fired, 20, "the faults must leave something to be lost; %s=%d", seedVariable, seed)
		})
	}
}

func TestLastAcknowledgedWriterWinsAfterFaultsAndPowerCuts(t *testing.T) {
	for _, seed := range seeds(t, 12) {
		inBubble(t, 3, func(t *testing.T, c *cluster) {
			f := &faultRun{cluster: c, acked: map[string][]ackedWrite{}}
			f.run(rand.New(rand.NewPCG(seed, 0)))
			for key, writes := range f.acked {
				newest := slices.MaxFunc(writes, func(a, b ackedWrite) int { return int(a.dot) - int(b.dot) })
				first := c.node(1).held(key)
				winner, ok := first.Latest()
				require.True(t, ok)
				require.GreaterOrEqual(t, winner.Stamp.Time.Millis(), newest.dot.Millis(),
					"key %s: %q won over %q; replay with %s=%d", key, winner.Value, newest.value, seedVariable, seed)
				for id := kv.NodeID(2); id <= 3; id++ {
					require.True(t, first.Equal(c.node(id).held(key)), "key %s, node %d; replay with %s=%d", key, id, seedVariable, seed)
				}
			}
		})
	}
}
