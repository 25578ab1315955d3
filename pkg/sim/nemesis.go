package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// trapWait is how long a power cut waits for the acknowledgements that it is to follow.
	trapWait = 500 * time.Millisecond
	// deathWait is how long a node may take to end by itself when it must.
	deathWait = 10 * time.Second
	deathPoll = time.Millisecond
)

// happening is a moment of a plan.
type happening struct {
	at   time.Duration
	step int
	kind happeningKind
}

type happeningKind int

const (
	begins happeningKind = iota
	flaps
	ends
)

// happenings returns the moments of the plan in order. A step ends before another begins at the same instant.
func (p Plan) happenings() []happening {
	var out []happening
	for i, s := range p.Steps {
		out = append(out, happening{s.At, i, begins}, happening{s.At + s.For, i, ends})
		for _, at := range s.Flaps {
			out = append(out, happening{s.At + at, i, flaps})
		}
	}
	slices.SortStableFunc(out, func(a, b happening) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		return int(b.kind - a.kind)
	})
	return out
}

// nemesis carries out a plan.
type nemesis struct {
	c    *Cluster
	plan Plan
	note func(string)
	// active are the steps that have begun and not ended, but for flapping cuts that are mended just now.
	active []*Step
	wiped  []int
	fired  map[Fault]int
	// before is the effect that was counted when each step began.
	before map[*Step]uint64
}

// Nemesis carries out the plan, until ctx is done at the latest. Then it mends everything: all links are whole, all clocks
// are right, and all nodes run but for those whose disk was wiped. note is told of each fault as it begins. It returns how
// often each fault took effect: a node that is down can be neither paused nor cut off. It drives the cluster, so nobody else may meanwhile.
func (c *Cluster) Nemesis(ctx context.Context, plan Plan, note func(string)) (map[Fault]int, error) {
	n := &nemesis{c: c, plan: plan, note: note, fired: map[Fault]int{}, before: map[*Step]uint64{}}
	start, lasting := time.Now(), context.WithoutCancel(ctx)
	for _, h := range plan.happenings() {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(start.Add(h.at))):
		}
		if ctx.Err() != nil {
			break
		}
		if err := n.happen(lasting, h); err != nil {
			return n.fired, fmt.Errorf("%s: %w", plan.Steps[h.step], err)
		}
	}
	return n.fired, n.finish(lasting)
}

func (n *nemesis) happen(ctx context.Context, h happening) error {
	s := &n.plan.Steps[h.step]
	on := slices.Contains(n.active, s)
	var err error
	switch {
	case h.kind == begins:
		n.note(s.String())
		n.active = append(n.active, s)
		err = n.begin(ctx, s)
	case h.kind == ends:
		n.active = slices.DeleteFunc(n.active, func(o *Step) bool { return o == s })
		err = n.end(ctx, s)
	case on:
		n.active = slices.DeleteFunc(n.active, func(o *Step) bool { return o == s })
	default:
		n.active = append(n.active, s)
	}
	n.setNetwork()
	return err
}

// setNetwork makes the networks what the active steps want them to be.
func (n *nemesis) setNetwork() {
	c := n.c
	cuts, mute := map[pair]bool{}, map[int]bool{}
	loss := 0.0
	for _, s := range n.active {
		s.cuts(len(c.nodes), cuts)
		switch s.Fault {
		case FaultPause:
			mute[s.Nodes[0]] = true // gossip has no queue in which to wait
		case FaultNoise:
			loss = float64(s.Loss) / 100
		}
	}
	for i := range c.nodes {
		for j := range c.nodes {
			if i != j {
				cut := cuts[pair{i, j}]
				c.net.SetCut(c.nodes[i].id, c.nodes[j].id, cut)
				c.gossip.SetCut(gossipAddr(i), gossipAddr(j), cut || mute[i] || mute[j])
			}
		}
	}
	c.gossip.SetLoss(loss)
	everywhere, special := conditions(n.active)
	c.net.SetAll(everywhere)
	for d, cond := range special {
		c.net.Set(c.nodes[d.from].id, c.nodes[d.to].id, cond)
	}
}

// begin starts what the step does to nodes. What it does to the networks is setNetwork's.
func (n *nemesis) begin(ctx context.Context, s *Step) error {
	c := n.c
	n.before[s] = n.effect(s)
	if s.Fault.stops() && s.Fault != FaultDisk && (len(s.Nodes) == 0 || c.nodes[s.Nodes[0]].life.Load() != nil) {
		n.fired[s.Fault]++
	}
	switch s.Fault {
	case FaultKill:
		return c.Crash(100, s.Nodes...)
	case FaultPower:
		return n.power(ctx, s, s.Nodes[0], s.Nodes)
	case FaultBlackout:
		var all []int
		for i := range c.nodes {
			if !slices.Contains(n.wiped, i) {
				all = append(all, i)
			}
		}
		return n.power(ctx, s, -1, all)
	case FaultSkew:
		c.SetSkew(s.Nodes[0], s.Skew)
	case FaultSlowDisk:
		c.SetSyncDelay(s.Nodes[0], s.Delay)
	case FaultPause:
		c.Pause(s.Nodes[0], s.For)
	case FaultDisk:
		c.SetDisk(s.Nodes[0], storage.DiskFault{Mode: storage.DiskError})
	case FaultFull:
		c.SetDisk(s.Nodes[0], storage.DiskFault{Mode: storage.DiskLow})
	case FaultRot:
		return c.Rot(s.Nodes[0])
	case FaultWipe:
		if err := c.Crash(0, s.Nodes...); err != nil {
			return err
		}
		c.Wipe(s.Nodes[0])
		n.wiped = append(n.wiped, s.Nodes[0])
	}
	return nil
}

// power cuts the power of the nodes, right after one of by's acknowledgements if the step says so and any comes.
func (n *nemesis) power(ctx context.Context, s *Step, by int, which []int) error {
	if s.Events > 0 {
		ctx, cancel := context.WithTimeout(ctx, trapWait)
		defer cancel()
		if sprung, err := n.c.CrashAfter(ctx, by, s.Events, s.Survives, which...); sprung || err != nil {
			return err
		}
	}
	return n.c.Crash(s.Survives, which...)
}

// end takes back what the step did to nodes.
func (n *nemesis) end(ctx context.Context, s *Step) error {
	c := n.c
	if !s.Fault.stops() && n.effect(s) > n.before[s] {
		n.fired[s.Fault]++
	}
	switch s.Fault {
	case FaultSkew:
		c.SetSkew(s.Nodes[0], 0)
	case FaultSlowDisk:
		c.SetSyncDelay(s.Nodes[0], syncDelay)
	case FaultFull:
		c.SetDisk(s.Nodes[0], storage.DiskFault{})
	case FaultDisk:
		failed, err := c.diskFailed(s.Nodes[0], s.Survives)
		if err != nil || !failed {
			return err
		}
		n.fired[FaultDisk]++
		return c.Start(ctx, s.Nodes[0])
	case FaultKill, FaultPower, FaultBlackout, FaultWipe:
		return c.startMissing(ctx)
	}
	return nil
}

// finish ends every fault, and waits until nodes that lost their disk have refused to serve.
func (n *nemesis) finish(ctx context.Context) error {
	for len(n.active) > 0 {
		s := n.active[0]
		n.active = n.active[1:]
		if err := n.end(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	n.setNetwork()
	if err := n.c.startMissing(ctx); err != nil {
		return err
	}
	for _, i := range n.wiped {
		if !n.c.diesWithin(i, deathWait) {
			return fmt.Errorf("sim: n%d runs on with an empty disk under its old id", i+1)
		}
		if err := <-n.c.nodes[i].life.Load().done; err == nil {
			return fmt.Errorf("sim: n%d ended without saying that its disk is not its own", i+1)
		}
		n.c.forget(i)
	}
	return nil
}

// startMissing starts every node that does not run.
func (c *Cluster) startMissing(ctx context.Context) error {
	var errs []error
	for i := range c.nodes {
		if c.nodes[i].life.Load() == nil {
			errs = append(errs, c.Start(ctx, i))
		}
	}
	return errors.Join(errs...)
}

// diesWithin waits until the life of node i has ended by itself. Its result stays to be taken from done.
func (c *Cluster) diesWithin(i int, limit time.Duration) bool {
	l := c.nodes[i].life.Load()
	for deadline := time.Now().Add(limit); len(l.done) == 0; time.Sleep(deathPoll) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// diskFailed ends a disk's failing. It reports whether the node met it: then the node must have ended by itself and is down
// now, and its disk is what a crash leaves.
func (c *Cluster) diskFailed(i, survives int) (bool, error) {
	l := c.nodes[i].life.Load()
	met := l.faults.Stats().Error > 0
	if !met {
		c.SetDisk(i, storage.DiskFault{})
		if l.faults.Stats().Error == 0 {
			return false, nil
		}
	}
	if !c.diesWithin(i, deathWait) {
		return true, fmt.Errorf("sim: n%d runs on although its log cannot be written", i+1)
	}
	if err := <-l.done; err == nil {
		return true, fmt.Errorf("sim: n%d ended without saying that its disk failed", i+1)
	}
	l.done <- node.ErrKilled // its end has been judged
	return true, c.Crash(survives, i)
}

// Pause holds back for a while what node i sends and is sent, and what it answers its clients.
func (c *Cluster) Pause(i int, d time.Duration) { c.net.Hold(c.nodes[i].id, time.Now().Add(d)) }

// paused waits until node i is not paused. false: ctx was done first.
func (c *Cluster) paused(ctx context.Context, i int) bool {
	wait := time.Until(c.net.heldUntil(c.nodes[i].id))
	if wait <= 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// errUnheard is what a client is left with that a paused node did not answer in time.
func errUnheard() error {
	return kv.Errorf(kv.CodeQuorumUnavailable, "the node did not answer").WithOutcome(kv.OutcomeUnknown)
}

// SetPolicy sets a policy through the first running node.
func (c *Cluster) SetPolicy(ctx context.Context, p kv.Policy) error {
	if p.Async() {
		c.watch.excuse(p.Prefix)
	}
	for i := range c.nodes {
		if n := c.Node(i); n != nil {
			return n.SetPolicy(ctx, p)
		}
	}
	return ErrDown
}
