package node

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/mutant"
)

const (
	// laneInterval is how often the driver looks, laneAskTimeout for how long it waits for a node's acknowledgement.
	laneInterval   = 100 * time.Millisecond
	laneAskTimeout = time.Second
	// sweepSlice is for how long it sweeps before it looks again, sweepPartitionsMax the partitions that are swept at once.
	sweepSlice         = time.Second
	sweepPartitionsMax = 4
	// conflictPause is how long it waits before it looks again at keys that only a user can settle.
	conflictPause = time.Second
)

// laneDriver takes switches to their end, on the node that leads group 0. What it knows beside group 0 it can find out again.
type laneDriver struct {
	n *Node
	// sweeps are under way, by prefix; only run uses them, and known.
	sweeps map[string]*lanePass
	known  []meta.Fence
	// openings are those under way, by prefix. Only run uses them.
	openings map[string]*laneOpening

	mu       sync.Mutex // guards progress
	progress map[string]kv.LaneSwitch
}

// lanePass is a pass over all partitions, and what earlier ones have done.
type lanePass struct {
	fence   meta.Fence
	begun   bool
	cursors map[kv.PartitionID][]byte
	done    map[kv.PartitionID]bool
	found   int
	passes  int
	settled int
	pause   time.Time
	// conflicts of this pass, and of the one before.
	conflicts, last int
	conflictKey     []byte
}

// laneOpening has, of a prefix that opens, the first reading of each node that has acknowledged.
type laneOpening struct {
	epoch    uint64
	readings map[kv.NodeID]causal.HLC
}

func (s *lanePass) restart() {
	s.cursors, s.done = map[kv.PartitionID][]byte{}, map[kv.PartitionID]bool{}
	s.found, s.conflicts = 0, 0
}

func newLaneDriver(n *Node) *laneDriver {
	return &laneDriver{n: n, sweeps: map[string]*lanePass{}, openings: map[string]*laneOpening{}, progress: map[string]kv.LaneSwitch{}}
}

// run drives until ctx is done.
func (d *laneDriver) run(ctx context.Context) {
	tick := time.NewTicker(laneInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st := d.n.machine.State()
		leads := d.n.strong.Leader(kv.MetaGroup) == d.n.id.Node
		d.note(st, leads)
		if leads && st.Ready() {
			d.step(ctx, st)
		}
	}
}

// note forgets what is over, and says on the leading node what has changed.
func (d *laneDriver) note(st *meta.State, leads bool) {
	passing := st.Passing()
	d.mu.Lock()
	maps.DeleteFunc(d.progress, func(prefix string, p kv.LaneSwitch) bool { return !leads || !among(passing, prefix, p.Epoch) })
	d.mu.Unlock()
	maps.DeleteFunc(d.sweeps, func(prefix string, s *lanePass) bool { return !leads || !among(passing, prefix, s.fence.Epoch) })
	maps.DeleteFunc(d.openings, func(prefix string, o *laneOpening) bool { return !leads || !among(passing, prefix, o.epoch) })
	if !leads {
		d.known = st.Fences
		return
	}
	for _, f := range st.Fences {
		if !slices.ContainsFunc(d.known, func(k meta.Fence) bool { return k.Epoch == f.Epoch && string(k.Prefix) == string(f.Prefix) }) {
			d.n.log.Info("the lanes of a prefix change", "prefix", string(f.Prefix), "state", string(f.Mode), "epoch", f.Epoch, "reason", reason(f.Mode))
			d.n.metrics.laneChanges.WithLabelValues(string(f.Mode)).Inc()
		}
	}
	for _, k := range d.known {
		if !slices.ContainsFunc(st.Fences, func(f meta.Fence) bool { return string(k.Prefix) == string(f.Prefix) }) {
			f := st.FenceOf(k.Prefix)
			why := reason(f.Mode)
			if k.Mode == meta.FenceDraining {
				why = "the policy was taken back"
			}
			d.n.log.Info("the lanes of a prefix change", "prefix", string(k.Prefix), "state", string(f.Mode), "epoch", st.PolicyEpoch, "reason", why)
			d.n.metrics.laneChanges.WithLabelValues(string(f.Mode)).Inc()
		}
	}
	d.known = st.Fences
}

// reason says in the log why a fence came to its mode.
func reason(m meta.FenceMode) string {
	switch m {
	case meta.FenceOpen:
		return "every node looks for eventual versions"
	case meta.FenceDraining:
		return "a policy asks for strong-only"
	case meta.FenceClosed:
		return "no eventual version is left, or the opening was taken back"
	case meta.FenceOpening:
		return "a policy allows eventual writes again"
	}
	return string(m)
}

func among(fences []meta.Fence, prefix string, epoch uint64) bool {
	return slices.ContainsFunc(fences, func(f meta.Fence) bool { return string(f.Prefix) == prefix && f.Epoch == epoch })
}

// report lists how far the switches are, by prefix.
func (d *laneDriver) report() []kv.LaneSwitch {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Collect(maps.Values(d.progress))
	slices.SortFunc(out, func(a, b kv.LaneSwitch) int { return cmp.Compare(string(a.Prefix), string(b.Prefix)) })
	return out
}

// step takes every switch that is under way one step on.
func (d *laneDriver) step(ctx context.Context, st *meta.State) {
	passing := st.Passing()
	if len(passing) == 0 {
		return
	}
	acks := d.acknowledgements(ctx, st)
	for i := range passing {
		f := &passing[i]
		p := kv.LaneSwitch{Prefix: f.Prefix, Epoch: f.Epoch, Mode: string(f.Mode), Phase: kv.SwitchFencing}
		for _, m := range st.Members {
			ack, ok := acks[m.ID]
			if !ok || ack.Epoch < f.Epoch {
				p.WaitingFor = append(p.WaitingFor, m.Name)
			}
			p.Hints += ack.Hints[string(f.Prefix)]
		}
		waits := len(p.WaitingFor) > 0
		switch {
		case f.Mode == meta.FenceOpening:
			d.open(ctx, st, f, acks, &p)
		case f.Mode == meta.FenceDraining && (!waits || mutant.Planted == mutant.SweepBeforeAcks):
			d.drain(ctx, st, f, &p)
		default:
		}
		d.mu.Lock()
		d.progress[string(f.Prefix)] = p
		d.mu.Unlock()
	}
}

// acknowledgements asks every member, those too that nobody has ever seen: one of them might act by an old policy once it is there.
func (d *laneDriver) acknowledgements(ctx context.Context, st *meta.State) map[kv.NodeID]laneReply {
	ctx, cancel := context.WithTimeout(ctx, laneAskTimeout)
	defer cancel()
	acks := make(map[kv.NodeID]laneReply, len(st.Members))
	var mu sync.Mutex // guards acks
	var asked sync.WaitGroup
	for _, m := range st.Members {
		asked.Go(func() {
			reply, err := d.n.askLanes(ctx, m.ID, laneAsk{Kind: laneAcknowledge})
			if err != nil {
				return // it is named among those that are waited for
			}
			mu.Lock()
			defer mu.Unlock()
			acks[m.ID] = reply
		})
	}
	asked.Wait()
	return acks
}

// open has eventual writes let in once every node looks for them. The floor is the latest of the readings that they had when they first
// said so. Writes have to be stamped above it: as long as some clock is too far ahead of another one, they could not be.
func (d *laneDriver) open(ctx context.Context, st *meta.State, f *meta.Fence, acks map[kv.NodeID]laneReply, p *kv.LaneSwitch) {
	o := d.openings[string(f.Prefix)]
	if o == nil || o.epoch != f.Epoch {
		o = &laneOpening{epoch: f.Epoch, readings: map[kv.NodeID]causal.HLC{}}
		d.openings[string(f.Prefix)] = o
	}
	var floor, slowest causal.HLC
	for _, m := range st.Members {
		ack := acks[m.ID]
		if ack.Epoch < f.Epoch {
			continue
		}
		if o.readings[m.ID] == 0 {
			o.readings[m.ID] = ack.Reading
		}
		floor = max(floor, o.readings[m.ID])
		if slowest == 0 || ack.Reading < slowest {
			slowest = ack.Reading
		}
	}
	switch ahead := time.Duration(floor.Millis()-slowest.Millis()) * time.Millisecond; {
	case len(p.WaitingFor) > 0:
	case ahead > d.n.cfg.Clock.MaxOffset/2:
		p.Problem = "a node's clock is " + ahead.String() + " ahead of another one's: no eventual write could be stamped"
	default:
		d.advance(ctx, f, floor, p)
	}
}

func (d *laneDriver) advance(ctx context.Context, f *meta.Fence, floor causal.HLC, p *kv.LaneSwitch) {
	ctx, cancel := context.WithTimeout(ctx, laneAskTimeout)
	defer cancel()
	if err := d.n.metadata.Advance(ctx, *f, floor); err != nil {
		p.Problem = err.Error()
	}
}

// drain goes on with a prefix of which every node refuses eventual writes. It is over once no node holds a hint, and, after that, a
// whole pass over all replicas of all partitions finds nothing.
func (d *laneDriver) drain(ctx context.Context, st *meta.State, f *meta.Fence, p *kv.LaneSwitch) {
	s := d.sweeps[string(f.Prefix)]
	if s == nil {
		s = &lanePass{fence: *f}
		s.restart()
		d.sweeps[string(f.Prefix)] = s
	}
	defer s.describe(p, len(st.Map.Partitions))
	if p.Hints > 0 && !s.begun {
		p.Phase = kv.SwitchHints
		return
	}
	s.begun = true
	p.Phase = kv.SwitchSweeping
	if time.Now().Before(s.pause) {
		return
	}
	if err := d.sweep(ctx, st, s); err != nil {
		p.Problem = err.Error()
		return
	}
	if len(s.done) < len(st.Map.Partitions) {
		return
	}
	s.passes++
	s.last = s.conflicts
	if s.found == 0 {
		d.advance(ctx, f, 0, p)
		return
	}
	if s.conflicts > 0 {
		s.pause = time.Now().Add(conflictPause)
	}
	s.restart()
}

// describe fills in what a sweep has done.
func (s *lanePass) describe(p *kv.LaneSwitch, partitions int) {
	p.Partitions, p.Swept, p.Passes, p.Settled = partitions, len(s.done), s.passes, s.settled
	if p.Conflicts = max(s.conflicts, s.last); p.Conflicts > 0 {
		p.ConflictKey = s.conflictKey
	}
}

// sweep goes on with a pass for a while, several partitions at once.
func (d *laneDriver) sweep(ctx context.Context, st *meta.State, s *lanePass) error {
	until := time.Now().Add(sweepSlice)
	var mu sync.Mutex // guards s and failed
	var failed error
	var all sync.WaitGroup
	slots := make(chan struct{}, sweepPartitionsMax)
	for at := range st.Map.Partitions {
		part := kv.PartitionID(at)
		if s.isDone(&mu, part) {
			continue
		}
		if slots <- struct{}{}; time.Now().After(until) {
			<-slots
			break
		}
		all.Go(func() {
			defer func() { <-slots }()
			for time.Now().Before(until) && ctx.Err() == nil {
				more, err := d.sweepChunk(ctx, st, s, &mu, part)
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
				if err != nil || !more {
					return
				}
			}
		})
	}
	all.Wait()
	return failed
}

func (s *lanePass) isDone(mu *sync.Mutex, p kv.PartitionID) bool {
	mu.Lock()
	defer mu.Unlock()
	return s.done[p]
}

// sweepChunk has the leader of a partition settle some of its keys, and then leaves it alone for as long as that took.
func (d *laneDriver) sweepChunk(ctx context.Context, st *meta.State, s *lanePass, mu *sync.Mutex, p kv.PartitionID) (more bool, err error) {
	began := time.Now()
	mu.Lock()
	ask := laneAsk{Kind: laneSweep, Fence: s.fence, Partition: p, After: s.cursors[p]}
	mu.Unlock()
	reply, err := d.askLeader(ctx, st, ask)
	if err != nil {
		return false, err
	}
	mu.Lock()
	s.found += reply.Found
	s.settled += reply.Settled
	s.conflicts += reply.Conflicts
	if reply.Conflicts > 0 {
		s.conflictKey = reply.ConflictKey
	}
	if s.cursors[p] = reply.Last; !reply.More {
		s.done[p] = true
	}
	mu.Unlock()
	if reply.Found > 0 && sleep(ctx, time.Since(began)) != nil {
		return false, nil
	}
	return reply.More, nil
}

// askLeader asks whoever leads the partition.
func (d *laneDriver) askLeader(ctx context.Context, st *meta.State, ask laneAsk) (reply laneReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	owners := st.Map.Owners(ask.Partition)
	if leader := d.n.strong.Leader(ask.Partition.Group()); leader != kv.NoNode {
		return d.n.askLanes(ctx, leader, ask)
	}
	for _, id := range owners {
		if reply, err = d.n.askLanes(ctx, id, ask); kv.CodeOf(err) != kv.CodeNoLeader {
			return reply, err
		}
	}
	return reply, err
}
