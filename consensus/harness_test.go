package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// cluster is a few stores in one process, a network between them, and disks that a power cut can hit.
type cluster struct {
	unsettled *unsettledBy // nil: no node holds any
	t         testing.TB
	cfg       Config
	ids       []kv.NodeID
	nodes     map[kv.NodeID]*node
	net       *network
	meta      bool
	// memtableBytes is how much storage collects before it writes tables; 0 for more than a test writes.
	memtableBytes int64
	// shunned are the nodes that should not lead.
	shunned sync.Map
	// onPull is called with each pull before it is made; nil for nothing.
	onPull func(from, to kv.NodeID, request []byte)

	// mu guards cancels: what ends with the cluster.
	mu      sync.Mutex
	cancels []context.CancelFunc
}

// node is one life after the other of a store.
type node struct {
	id     kv.NodeID
	fs     *vfs.MemFS
	wrap   func(vfs.FS) vfs.FS // what stands between the engine and fs; nil for nothing
	dir    string              // on the real disk; "" for one on fs
	engine *storage.Engine
	store  *Store
	meta   *listMachine
	cancel context.CancelFunc
	done   chan error

	// mu guards what clients see while lives end: store and fenced change under it, and engine is closed under it.
	mu sync.RWMutex
	up bool
	// fenced is set before the power is cut: what the node says from then on, nobody hears.
	fenced *atomic.Bool
	// serving counts the pulls that peers make; none begins once up is false.
	serving sync.WaitGroup
}

func newCluster(t testing.TB, size int, delay time.Duration) *cluster {
	c := &cluster{t: t, cfg: DefaultConfig(), nodes: make(map[kv.NodeID]*node), net: newNetwork(delay)}
	for i := range size {
		id := kv.NodeID(i + 1)
		c.ids = append(c.ids, id)
		c.nodes[id] = &node{id: id, fs: storage.NewCrashableMemFS()}
	}
	return c
}

// startAll starts every node, a moment apart: in a bubble equal starts would make elections tie for ever.
func (c *cluster) startAll() {
	for _, id := range c.ids {
		c.start(id)
		time.Sleep(13 * time.Millisecond)
	}
}

func (c *cluster) start(id kv.NodeID) {
	n := c.nodes[id]
	require.NoError(c.t, c.tryStart(n))
}

func (c *cluster) tryStart(n *node) error {
	cfg := storage.DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 8<<20, 8<<20
	if c.memtableBytes > 0 {
		cfg.MemtableBytes = c.memtableBytes
	}
	var fs vfs.FS = n.fs
	if n.wrap != nil {
		fs = n.wrap(fs)
	}
	dir := "data"
	if n.dir != "" {
		fs, dir, cfg = storage.DiskFS(), n.dir, storage.DefaultConfig()
	}
	var err error
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.engine, err = storage.Open(dir, cfg, storage.Deps{FS: fs}); err != nil {
		return err
	}
	clock, err := newTestClock(n.engine)
	if err != nil {
		return err
	}
	n.fenced = &atomic.Bool{}
	deps := Deps{
		MayLead: func(id kv.NodeID) bool {
			_, found := c.shunned.Load(id)
			return !found
		},
		Self: n.id, Engine: n.engine, Clock: clock,
		Sender: sender{net: c.net, from: n.id, fenced: n.fenced},
		Puller: puller{c: c, from: n.id, fenced: n.fenced},
	}
	if c.unsettled != nil {
		deps.Unsettled = c.unsettled.of(n.id)
	}
	if c.meta {
		n.meta = &listMachine{}
		deps.Meta = n.meta
	}
	if n.store, err = New(c.cfg, deps); err != nil {
		return errors.Join(err, n.engine.Close())
	}
	fenced, store := n.fenced, n.store
	c.net.plug(n.id, func(from kv.NodeID, frame []byte) {
		if !fenced.Load() {
			_ = store.Receive(from, frame)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done, n.up = cancel, make(chan error, 1), true
	go func() { n.done <- store.Run(ctx) }()
	return nil
}

// stop ends a node's life gracefully and returns what Run said.
func (c *cluster) stop(id kv.NodeID) error {
	n := c.nodes[id]
	if s, _ := n.life(); s == nil {
		return nil
	}
	c.net.plug(id, nil)
	n.cancel()
	err := <-n.done
	n.mu.Lock()
	n.up = false
	n.mu.Unlock()
	n.serving.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	require.NoError(c.t, n.engine.Close())
	return err
}

// life returns the node's present store, and the fence before which its answers count. The store is nil while the node
// is down.
func (n *node) life() (*Store, *atomic.Bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.up {
		return nil, nil
	}
	return n.store, n.fenced
}

// strong reads S of a store that may have ended its life meanwhile; then it returns false.
func (n *node) strong(s *Store, g kv.GroupID, key string) (row storage.Strong, alive bool, err error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.up || n.store != s || n.fenced.Load() {
		return row, false, nil
	}
	row, _, err = n.engine.State().Strong(g, []byte(key))
	return row, err == nil, err
}

// powerCut ends lives as a power cut does: at once for all the nodes, keeping the given share of what was not synced.
func (c *cluster) powerCut(unsyncedPercent int, rng *rand.Rand, ids ...kv.NodeID) {
	for _, id := range ids {
		c.nodes[id].fenced.Store(true)
	}
	clones := make(map[kv.NodeID]*vfs.MemFS)
	for _, id := range ids {
		clones[id] = c.nodes[id].fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsyncedPercent, RNG: rng})
	}
	for _, id := range ids {
		_ = c.stop(id)
		c.nodes[id].fs = clones[id]
	}
}

func (c *cluster) close() {
	for _, cancel := range c.cancels {
		cancel()
	}
	for _, id := range c.ids {
		_ = c.stop(id)
	}
	c.net.close()
}

// bootstrap creates groups on all nodes, the preferred voter rotating.
func (c *cluster) bootstrap(groups ...kv.GroupID) {
	for _, g := range groups {
		voters := c.voters(g)
		for _, id := range c.ids {
			require.NoError(c.t, c.nodes[id].store.Bootstrap(g, voters))
		}
	}
}

func (c *cluster) voters(g kv.GroupID) []kv.NodeID {
	var out []kv.NodeID
	for i := range c.ids {
		out = append(out, c.ids[(int(g)+i)%len(c.ids)])
	}
	return out
}

// leader returns the node that leads the group in the eyes of a majority of the nodes.
func (c *cluster) leader(g kv.GroupID) kv.NodeID {
	votes := make(map[kv.NodeID]int)
	own := make(map[kv.NodeID]bool)
	for id, n := range c.nodes {
		if s, _ := n.life(); s != nil {
			votes[s.Leader(g)]++
			own[id] = s.Leader(g) == id
		}
	}
	for id, v := range votes {
		if v > len(c.ids)/2 && own[id] {
			return id
		}
	}
	return kv.NoNode
}

// awaitLeader waits for a leader and returns it with the time it took.
func (c *cluster) awaitLeader(g kv.GroupID, limit time.Duration) (*node, time.Duration) {
	c.t.Helper()
	start := time.Now()
	for time.Since(start) < limit {
		if id := c.leader(g); id != kv.NoNode {
			return c.nodes[id], time.Since(start)
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.t.Fatalf("group %d has no leader after %v", g, limit)
	return nil, 0
}

// leading returns the store that leads the group, nil when there is none.
func (c *cluster) leading(g kv.GroupID) (*Store, *node) {
	if id := c.leader(g); id != kv.NoNode {
		s, _ := c.nodes[id].life()
		return s, c.nodes[id]
	}
	return nil, nil
}

// put writes through whoever leads, retrying while that is known to have done nothing.
func (c *cluster) put(ctx context.Context, p kv.PartitionID, key, value string) (WriteReply, error) {
	for {
		err := error(notLeader(p.Group(), kv.NoNode))
		if s, _ := c.leading(p.Group()); s != nil {
			var r WriteReply
			if r, err = s.Put(ctx, p, WriteOp{Key: []byte(key), Value: []byte(value)}); err == nil {
				return r, nil
			}
		}
		if e := kv.AsError(err); e.Outcome != kv.OutcomeNotApplied || ctx.Err() != nil {
			return WriteReply{}, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// get reads linearizably through whoever leads.
func (c *cluster) get(ctx context.Context, p kv.PartitionID, key string) (storage.Strong, bool, error) {
	for {
		if store, n := c.leading(p.Group()); store != nil && store.ReadBarrier(ctx, p.Group()) == nil {
			s, alive, err := n.strong(store, p.Group(), key)
			if alive || err != nil {
				return s, s.Revision > 0 && !s.Deleted, err
			}
		}
		if ctx.Err() != nil {
			return storage.Strong{}, false, ctx.Err()
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const clockRow = "test-clock"

func newTestClock(e *storage.Engine) (*causal.Clock, error) {
	raw, found, err := e.NodeRow(clockRow)
	if err != nil {
		return nil, err
	}
	var ceiling causal.HLC
	if found {
		ceiling = causal.HLC(binary.BigEndian.Uint64(raw))
	}
	return causal.NewClock(causal.DefaultClockConfig(), causal.ClockDeps{
		WallNow: time.Now, Ceiling: ceiling,
		Persist: func(h causal.HLC) error {
			b := e.NewBatch()
			defer b.Close()
			b.SetNodeRow(clockRow, binary.BigEndian.AppendUint64(nil, uint64(h)))
			return e.ApplySync(b)
		},
	})
}

// listMachine is a metadata machine that remembers its commands.
type listMachine struct {
	mu       sync.Mutex
	commands []string
	fail     error
	restored int
}

// Restored implements Restorer.
func (m *listMachine) Restored() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restored++
	return nil
}

func (m *listMachine) Apply(b *storage.Batch, e Committed) ([]any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	var out []any
	for _, c := range e.Commands {
		m.commands = append(m.commands, string(c))
		b.SetMetaValue("last", c)
		out = append(out, len(m.commands))
	}
	return out, nil
}

func (m *listMachine) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.commands...)
}

// bubble runs f with a started cluster of the size inside a synctest bubble.
func bubble(t *testing.T, size int, f func(c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, size, time.Millisecond)
		defer c.close()
		c.startAll()
		f(c)
	})
}

func (c *cluster) atEnd(f context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancels = append(c.cancels, f)
}

// timeout returns a context that ends after d, and with the cluster.
func (c *cluster) timeout(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	c.atEnd(cancel)
	return ctx
}

func value(i int) string { return fmt.Sprintf("value-%d", i) }

// dump returns what a node holds of a group's S.
func (c *cluster) dump(g kv.GroupID, id kv.NodeID) map[string]storage.Strong {
	out := make(map[string]storage.Strong)
	err := c.nodes[id].engine.State().ScanStrong(g, nil, func(key []byte, s storage.Strong) (bool, error) {
		out[string(key)] = s
		return true, nil
	})
	require.NoError(c.t, err)
	return out
}

// peeking is bubble with three nodes that hold unsettled versions as u says.
func peeking(t *testing.T, u *unsettledBy, f func(c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.unsettled = u
		defer c.close()
		c.startAll()
		f(c)
	})
}
