package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Fault is a kind of trouble that the nemesis makes.
type Fault string

// The faults. Each ends by itself after a while.
const (
	// FaultCut isolates one node.
	FaultCut Fault = "cut"
	// FaultOneWay silences one direction between two nodes.
	FaultOneWay Fault = "one-way"
	// FaultKill ends one node at once, as kill -9 does, and starts it again.
	FaultKill Fault = "kill"
	// FaultPower cuts one node's power: what was not synced survives in part.
	FaultPower Fault = "power"
	// FaultBlackout cuts everybody's power at one instant.
	FaultBlackout Fault = "blackout"
	// FaultNoise makes the whole network lose, double, delay and reorder.
	FaultNoise Fault = "noise"
	// FaultSkew sets one node's wall clock off by up to ten minutes either way.
	FaultSkew Fault = "skew"
)

// Faults lists all of them.
func Faults() []Fault {
	return []Fault{FaultCut, FaultOneWay, FaultKill, FaultPower, FaultBlackout, FaultNoise, FaultSkew}
}

// Bounds of how long a fault lasts, and of the calm before the next.
const (
	faultMin, faultMax = 500 * time.Millisecond, 4 * time.Second
	calmMin, calmMax   = 500 * time.Millisecond, 3 * time.Second
	skewMax            = 10 * time.Minute
)

// noise is a network at the edge of what can be worked with.
var noise = Conditions{Loss: 0.05, Duplicate: 0.05, DelayMin: time.Millisecond, DelayMax: 400 * time.Millisecond, Reorder: true}

// Nemesis makes one fault after another until ctx is done, then mends everything: all nodes run, all links are whole, all
// clocks are right. note is told of each fault as it begins. It returns how often each fault took place. It drives the
// cluster, so nobody else may meanwhile.
func (c *Cluster) Nemesis(ctx context.Context, r *rand.Rand, faults []Fault, note func(string)) (map[Fault]int, error) {
	fired := map[Fault]int{}
	pause := func(lo, hi time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(lo + time.Duration(r.Int64N(int64(hi-lo)))):
		}
	}
	for {
		pause(calmMin, calmMax)
		if ctx.Err() != nil {
			break
		}
		f := faults[r.IntN(len(faults))]
		if err := c.begin(f, r, note); err != nil {
			return fired, err
		}
		fired[f]++
		pause(faultMin, faultMax)
		if err := c.mend(context.WithoutCancel(ctx)); err != nil {
			return fired, err
		}
	}
	for i := range c.nodes {
		c.SetSkew(i, 0)
	}
	return fired, c.mend(context.WithoutCancel(ctx))
}

// begin starts one fault at a node chosen by chance.
func (c *Cluster) begin(f Fault, r *rand.Rand, note func(string)) error {
	victim := r.IntN(len(c.nodes))
	other := (victim + 1 + r.IntN(len(c.nodes)-1)) % len(c.nodes)
	note(fmt.Sprintf("%s n%d n%d", f, victim+1, other+1))
	survives := []int{0, 50, 100}[r.IntN(3)]
	switch f {
	case FaultCut:
		var rest []int
		for i := range c.nodes {
			if i != victim {
				rest = append(rest, i)
			}
		}
		c.Cut([]int{victim}, rest)
	case FaultOneWay:
		c.net.SetCut(c.nodes[victim].id, c.nodes[other].id, true)
		c.gossip.SetCut(gossipAddr(victim), gossipAddr(other), true)
	case FaultKill:
		return c.Crash(100, victim)
	case FaultPower:
		return c.Crash(survives, victim)
	case FaultBlackout:
		all := make([]int, len(c.nodes))
		for i := range all {
			all[i] = i
		}
		return c.Crash(survives, all...)
	case FaultNoise:
		c.net.SetAll(noise)
	case FaultSkew:
		c.SetSkew(victim, time.Duration(r.Int64N(int64(2*skewMax)))-skewMax)
	default:
		return fmt.Errorf("sim: no fault is called %q", f)
	}
	return nil
}

// mend ends whatever fault there is, but for clocks: a wrong one stays wrong until the end.
func (c *Cluster) mend(ctx context.Context) error {
	c.Heal()
	c.net.SetAll(Calm())
	var errs []error
	for i := range c.nodes {
		if c.nodes[i].life.Load() == nil {
			errs = append(errs, c.Start(ctx, i))
		}
	}
	return errors.Join(errs...)
}

// SetPolicy sets a policy through the first running node.
func (c *Cluster) SetPolicy(ctx context.Context, p kv.Policy) error {
	for i := range c.nodes {
		if n := c.Node(i); n != nil {
			return n.SetPolicy(ctx, p)
		}
	}
	return ErrDown
}
