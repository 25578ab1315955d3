package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
)

// crashed checks that the disks which a crash left behind hold all that their nodes had promised, and, if it took all of
// them at one instant, that what clients were told is on a majority. The disks are not changed.
func (w *watcher) crashed(disks map[kv.NodeID]*vfs.MemFS, all bool) error {
	holders := map[kv.GroupID]int{}
	for node, disk := range disks {
		if err := w.look(node, disk, holders); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !all {
		return nil
	}
	for g, index := range w.applied {
		w.counts.Promises++
		if n := holders[g]; n < kv.Majority(len(disks)) {
			w.violate("a client was told that entry %d of group %d is applied, and %d disks have it", index, g, n)
		}
	}
	return nil
}

// look opens a copy of one disk.
func (w *watcher) look(node kv.NodeID, disk *vfs.MemFS, holders map[kv.GroupID]int) error {
	same := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(0, 0))})
	engine, err := storage.Open(dataDir, storageConfig(), storage.Deps{FS: same})
	if err != nil {
		return fmt.Errorf("the disk that n%d left behind: %w", node, err)
	}
	err = w.kept(node, engine, holders)
	if closeErr := engine.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (w *watcher) kept(node kv.NodeID, engine *storage.Engine, holders map[kv.GroupID]int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Disks++
	for g, index := range w.applied {
		last, err := lastEntry(engine.Log(), g)
		if err != nil {
			return err
		}
		if last.Index >= index {
			holders[g]++
		}
	}
	for r, p := range w.raft {
		if r.node != node {
			continue
		}
		if err := w.raftKept(r, p, engine.Log()); err != nil {
			return err
		}
	}
	if node == w.rotten {
		return nil
	}
	for dot, e := range w.eventual[node] {
		if err := w.writeKept(node, dot, &e, engine.State()); err != nil {
			return err
		}
	}
	return nil
}

// raftKept checks a replica's votes and acknowledged entries. mu must be held.
func (w *watcher) raftKept(r replica, p *raftPromises, log storage.Log) error {
	hard, _, err := log.HardState(r.group)
	if err != nil {
		return err
	}
	w.counts.Promises++
	if hard.Term < p.term {
		w.violate("n%d spoke in term %d of group %d and its disk knows term %d", r.node, p.term, r.group, hard.Term)
		return nil
	}
	if voted, ok := p.votes[hard.Term]; ok && kv.NodeID(hard.Vote) != voted {
		w.violate("n%d voted for n%d in term %d of group %d and its disk says %d", r.node, voted, hard.Term, r.group, hard.Vote)
	}
	last, err := lastEntry(log, r.group)
	if err != nil {
		return err
	}
	// A leader of a later term may have replaced what was acknowledged to an earlier one, so that only the
	// acknowledgements of the term that the disk knows can be held against it.
	if acked := p.acks[hard.Term]; last.Index < acked {
		w.violate("n%d acknowledged entry %d to the leader of term %d of group %d and its disk ends at %d",
			r.node, acked, hard.Term, r.group, last.Index)
	}
	return nil
}

// lastEntry returns where the log ends.
func lastEntry(log storage.Log, g kv.GroupID) (causal.Position, error) {
	last, found, err := log.LastEntry(g)
	if err == nil && !found {
		last, _, err = log.Truncated(g)
	}
	return last, err
}

// writeKept checks an eventual write that the node accepted. mu must be held.
func (w *watcher) writeKept(node kv.NodeID, dot causal.Dot, e *eventualWrite, state storage.State) error {
	if dot.Time <= state.Repair(e.partition).Committed {
		return nil // what superseded it may have been collected
	}
	w.counts.Promises++
	strong, hasStrong, set, _, err := state.Both(e.partition, []byte(e.key))
	if err != nil {
		return err
	}
	if set.Covers(dot) || hasStrong && (!e.stamp.After(strong.Stamp) || e.id.Time <= strong.Before) {
		return nil
	}
	for _, id := range strong.Covered {
		if id == e.id {
			return nil
		}
	}
	w.violate("n%d accepted write %v of key %q, and its disk knows nothing of it", node, dot, e.key)
	return nil
}

// stateInterval is how often the states of the strong lane are compared, in simulated time.
const stateInterval = time.Second

// compareStates compares, until stop is closed, the states of all replicas that have applied the same entries.
func (c *Cluster) compareStates(stop <-chan struct{}) {
	tick := time.NewTicker(stateInterval)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		for _, in := range c.nodes {
			if l := in.life.Load(); l != nil {
				c.watch.checked(in.id, l.node.Stats())
				// A node that has stopped meanwhile, or whose disk fails, has no state to compare.
				_ = l.node.Inspect(func(e *storage.Engine) error { return c.watch.nodeStates(in.id, e) })
			}
		}
	}
}

// nodeStates takes the states of one node.
func (w *watcher) nodeStates(node kv.NodeID, e *storage.Engine) error {
	groups, err := e.Log().Groups()
	if err != nil {
		return err
	}
	for _, g := range groups {
		applied, sum, err := stateSum(e, g)
		// A replica in quarantine counts entries as applied and does not apply them.
		if _, isolated, _ := e.Log().Quarantine(g); isolated {
			continue
		}
		switch {
		case errors.Is(err, storage.ErrSnapshotLost) || errors.Is(err, storage.ErrNotFound):
			// The group's rows are just being replaced.
		case err != nil:
			return err
		default:
			w.state(node, stateID{g, applied}, sum)
		}
	}
	return nil
}

func (w *watcher) state(node kv.NodeID, at stateID, sum uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	other, known := w.states[at]
	switch {
	case node == w.altered:
	case !known:
		w.states[at] = sum
	case other != sum:
		w.violate("n%d has another state of group %d at entry %d than others", node, at.group, at.applied)
	default:
		w.counts.States++
	}
}

// alter tolerates, from now on, that the node's state differs; NoNode ends that.
func (w *watcher) alter(node kv.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.altered = node
	w.tolerated++
}

// checked looks at what the node's own checks have found. Once a state has been altered they have something to find.
func (w *watcher) checked(id kv.NodeID, stats node.StatsDocument) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.altered == kv.NoNode && w.tolerated == 0 && stats.Violations > 0 {
		w.violate("n%d's checks found %d differences where there are none", id, stats.Violations)
	}
}

// stateSum is a hash of all that a group's machine has made of its log: what a snapshot holds, keys, remembered operations
// and expiries alike. It is the one by which replicas compare themselves.
func stateSum(e *storage.Engine, g kv.GroupID) (applied, sum uint64, err error) {
	const bytesMax = 1 << 20
	snapshot, err := e.SnapshotGroup(g)
	if err != nil {
		return 0, 0, err
	}
	defer snapshot.Close()
	at, sum, err := snapshot.Sum(bytesMax, func(int) error { return nil })
	return at.Index, sum, err
}
