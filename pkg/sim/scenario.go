package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Bounds of what a plan draws.
const (
	faultMin, faultMax = 500 * time.Millisecond, 4 * time.Second
	calmMin, calmMax   = 500 * time.Millisecond, 3 * time.Second
	skewMax            = 10 * time.Minute
	// farSkew is by how much a far skew exceeds the one that was drawn: it comes to three hours at the most.
	farSkew          = 18
	flapMin, flapMax = 100 * time.Millisecond, 800 * time.Millisecond
	slowMin, slowMax = 50 * time.Millisecond, 400 * time.Millisecond
	// A disk much slower than that makes the other replicas take its leaders away, which a cut does too.
	slowDiskMin, slowDiskMax = 5 * time.Millisecond, 300 * time.Millisecond
	noiseDelayMax            = 400 * time.Millisecond
	noisePercentMax          = 10
	// trapEventsMax bounds how many acknowledgements pass by before a power cut that waits for one.
	trapEventsMax = 50
	// ringNodesMin is how many nodes a majority ring needs: of fewer, two would see the same majority.
	ringNodesMin = 5
	// stepsMax bounds a plan, whatever its length.
	stepsMax = 10_000
)

// Scenario says what a plan may hold.
type Scenario struct {
	Nodes int
	// Length is how long the plan takes.
	Length time.Duration
	// Faults are drawn from with equal chances.
	Faults []Fault
	// AheadMax bounds how far ahead a clock is set, up to ten minutes; 0 leaves it at that. What was written eventually
	// by a clock that is ahead is refused by the other replicas until their clocks have come there, so that a run with
	// such writes cannot converge before: see Plan.Caught.
	AheadMax time.Duration
	// FarSkews sets every other clock that is set wrong farther off, by up to three hours. Where nothing is written
	// eventually, no clock has anything to wait for.
	FarSkews bool
	// WipesMax bounds the nodes that lose their disk for good. With more than one, acknowledged writes may be lost by
	// right.
	WipesMax int
}

// Step is one fault of a plan.
type Step struct {
	// At is when the fault begins, after the start of the plan; For is how long it lasts.
	At, For time.Duration
	Fault   Fault
	// Nodes are those that the fault is about, from 0; the kinds of faults say which.
	Nodes []int
	// Survives is the percentage of unsynced data that a power cut leaves.
	Survives int
	// Events, if positive, lets a power cut wait for that many acknowledgements, so that it follows one.
	Events int
	// Loss and Duplicate are percentages, Delay is the longest of a message, or that of a sync.
	Loss, Duplicate int
	Delay           time.Duration
	Skew            time.Duration
	// Flaps are the times, after At, at which a flapping cut is mended and made again in turn.
	Flaps []time.Duration
}

// String describes the step in one line.
func (s Step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s for %s %s", s.At.Round(time.Millisecond), s.For.Round(time.Millisecond), s.Fault)
	for _, i := range s.Nodes {
		fmt.Fprintf(&b, " n%d", i+1)
	}
	switch s.Fault {
	case FaultPower, FaultBlackout:
		fmt.Fprintf(&b, " survives=%d%% events=%d", s.Survives, s.Events)
	case FaultDisk:
		fmt.Fprintf(&b, " survives=%d%%", s.Survives)
	case FaultNoise:
		fmt.Fprintf(&b, " loss=%d%% duplicate=%d%% delay=%s", s.Loss, s.Duplicate, s.Delay.Round(time.Millisecond))
	case FaultSlow, FaultSlowDisk:
		fmt.Fprintf(&b, " delay=%s", s.Delay.Round(time.Millisecond))
	case FaultSkew:
		fmt.Fprintf(&b, " skew=%s", s.Skew.Round(time.Millisecond))
	case FaultFlapping:
		fmt.Fprintf(&b, " flaps=%d", len(s.Flaps))
	}
	return b.String()
}

// Plan is a list of faults, drawn before anything of it happens.
type Plan struct {
	Scenario
	Steps []Step
}

// String lists the steps, one a line.
func (p Plan) String() string {
	lines := make([]string, len(p.Steps))
	for i, s := range p.Steps {
		lines[i] = s.String()
	}
	return strings.Join(lines, "\n")
}

// rotten returns the node whose rows the plan damages.
func (p Plan) rotten() []int {
	for _, s := range p.Steps {
		if s.Fault == FaultRot {
			return s.Nodes
		}
	}
	return nil
}

// Caught returns when, after the start of the plan, every clock has passed all that a clock which was ahead showed.
func (p Plan) Caught() time.Duration {
	var at time.Duration
	for _, s := range p.Steps {
		at = max(at, s.At+s.For+s.Skew)
	}
	return at
}

// Draw makes a plan of the scenario. Equal random sources make equal plans.
func (s Scenario) Draw(r *rand.Rand) (Plan, error) {
	if s.Nodes < 3 || s.Length < calmMax+faultMin || len(s.Faults) == 0 || s.WipesMax >= s.Nodes {
		return Plan{}, fmt.Errorf("sim: no plan of %d nodes, %s, %d kinds of faults and %d wiped disks",
			s.Nodes, s.Length, len(s.Faults), s.WipesMax)
	}
	for _, f := range s.Faults {
		if !slices.Contains(append(Faults(), FaultWipe, FaultFull, FaultRot), f) {
			return Plan{}, fmt.Errorf("sim: no fault is called %q", f)
		}
	}
	d := drawing{Scenario: s, r: r}
	for at := between(r, calmMin, calmMax); at+faultMin <= s.Length && len(d.steps) < stepsMax; {
		first, ok := d.step(at, nil)
		if !ok {
			break // what is left to draw from is used up
		}
		end := at + first.For
		// Every third fault meets another one.
		if late := at + between(r, 0, first.For); r.IntN(3) == 0 && late+faultMin <= s.Length {
			if second, ok := d.step(late, &first); ok {
				end = max(end, late+second.For)
			}
		}
		at = end + between(r, calmMin, calmMax)
	}
	return Plan{Scenario: s, Steps: d.steps}, nil
}

// drawing is a plan that is being drawn.
type drawing struct {
	Scenario
	r     *rand.Rand
	steps []Step
	// wiped are the nodes that are gone for good, rotten is the one whose rows are damaged.
	wiped, rotten []int
}

// step draws a fault that may happen at the same time as another. false: there is none.
func (d *drawing) step(at time.Duration, beside *Step) (Step, bool) {
	var kinds []Fault
	for _, f := range d.Faults {
		if f == FaultWipe && len(d.wiped) >= d.WipesMax || beside != nil && !compatible(f, beside.Fault) {
			continue
		}
		kinds = append(kinds, f)
	}
	if len(kinds) == 0 {
		return Step{}, false
	}
	s := Step{
		At: at, Fault: kinds[d.r.IntN(len(kinds))],
		For: min(between(d.r, faultMin, faultMax), d.Length-at),
	}
	if s.Fault == FaultRing && d.Nodes < ringNodesMin {
		s.Fault = FaultBridge
	}
	d.fill(&s)
	d.steps = append(d.steps, s)
	return s, true
}

// compatible reports whether two faults may happen at once. One at a time stops nodes, so that a plan never takes more
// from the cluster than its faults say one by one; and two of a kind would be one. A disk has one fault at a time.
func compatible(a, b Fault) bool {
	disks := (a == FaultDisk || a == FaultFull) && (b == FaultDisk || b == FaultFull)
	return a != b && !disks && (!a.stops() || !b.stops())
}

// fill draws whom the fault meets, and how badly.
func (d *drawing) fill(s *Step) {
	order := d.r.Perm(d.Nodes)
	switch s.Fault {
	case FaultCut, FaultPause, FaultSkew, FaultSlowDisk, FaultFull:
		s.Nodes = order[:1]
	case FaultHalves:
		s.Nodes = order[:d.Nodes/2]
	case FaultFlapping:
		s.Nodes = order[:1+d.r.IntN(d.Nodes/2)]
		for at := between(d.r, flapMin, flapMax); at < s.For; at += between(d.r, flapMin, flapMax) {
			s.Flaps = append(s.Flaps, at)
		}
	case FaultRing, FaultBridge:
		s.Nodes = order
	case FaultOneWay, FaultSlow:
		s.Nodes = order[:2]
	case FaultKill, FaultPower, FaultDisk, FaultWipe:
		// A node whose disk is gone cannot lose more.
		s.Nodes = slices.DeleteFunc(order, func(i int) bool { return slices.Contains(d.wiped, i) })[:1]
	case FaultRot:
		if d.rotten == nil {
			d.rotten = order[:1]
		}
		s.Nodes = d.rotten
	case FaultBlackout, FaultNoise:
	}
	s.Survives = []int{0, 50, 100}[d.r.IntN(3)]
	switch s.Fault {
	case FaultWipe:
		d.wiped = append(d.wiped, s.Nodes[0])
	case FaultPower, FaultBlackout:
		if d.r.IntN(2) == 0 {
			s.Events = 1 + d.r.IntN(trapEventsMax)
		}
	case FaultNoise:
		s.Loss, s.Duplicate = 1+d.r.IntN(noisePercentMax), 1+d.r.IntN(noisePercentMax)
		s.Delay = between(d.r, noiseDelayMax/20, noiseDelayMax)
	case FaultSlow:
		s.Delay = between(d.r, slowMin, slowMax)
	case FaultSlowDisk:
		s.Delay = between(d.r, slowDiskMin, slowDiskMax)
	case FaultSkew:
		ahead := skewMax
		if d.AheadMax > 0 {
			ahead = min(ahead, d.AheadMax)
		}
		// Ahead and behind with equal chances, however far.
		if s.Skew = between(d.r, -skewMax, 0); d.r.IntN(2) == 0 {
			s.Skew = between(d.r, ahead/10, ahead)
		}
		// Which ones, the number that was drawn says: another draw would give every later step of the plan another meaning.
		if d.FarSkews && s.Skew%2 == 0 {
			s.Skew *= farSkew
		}
	}
}

// between draws a duration from lo to below hi.
func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(r.Int64N(int64(hi-lo)))
}
