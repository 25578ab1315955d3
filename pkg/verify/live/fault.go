package live

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// errNoEffect is returned for a fault that was injected, and of which nothing was then seen.
var errNoEffect = errors.New("no effect")

// errPanicked is returned for a fault under which a node panicked, which no fault is a reason for.
var errPanicked = errors.New("a node panicked")

// fault carries out one step. end is called whatever begin and hold returned, and takes the fault back.
type fault interface {
	// begin puts the fault in force.
	begin(ctx context.Context) error
	// hold keeps it in force until ctx is done or the time is over.
	hold(ctx context.Context, d time.Duration) error
	// end takes it back, and returns what it was seen to do. That it did nothing is an error.
	end(ctx context.Context) (effect string, err error)
}

// newFault returns the fault of a step.
func newFault(f *fleet, s Step) fault {
	switch s.Fault {
	case Kill:
		return &killFault{fleet: f, nodes: s.Nodes}
	case Power:
		return &powerFault{killFault{fleet: f, nodes: s.Nodes}}
	case Wipe:
		return &wipeFault{killFault: killFault{fleet: f, nodes: s.Nodes}}
	case Pause:
		return &pauseFault{fleet: f, nodes: s.Nodes}
	case Clock:
		return &clockFault{fleet: f, nodes: s.Nodes, skew: s.Skew}
	case Slow:
		return &slowFault{fleet: f, nodes: s.Nodes, delay: s.Delay}
	case DiskFull, DiskError:
		return &diskFault{fleet: f, nodes: s.Nodes, disk: s.Disk}
	default:
		return &partitionFault{fleet: f, step: s}
	}
}

// still is a fault that needs nothing done while it is in force.
type still struct{}

func (still) hold(ctx context.Context, d time.Duration) error {
	pause(ctx, d)
	return nil
}

// partitionFault cuts links.
type partitionFault struct {
	fleet  *fleet
	step   Step
	before float64
	cuts   int // how often they were made
}

func (p *partitionFault) begin(ctx context.Context) (err error) {
	if p.before, err = p.fleet.net.dropped(ctx); err != nil {
		return err
	}
	p.cuts++
	return p.fleet.net.cut(ctx, p.step.Cuts)
}

// hold of a flapping partition mends and cuts in turns, and ends with a cut or without.
func (p *partitionFault) hold(ctx context.Context, d time.Duration) error {
	if p.step.Toggle == 0 {
		return still{}.hold(ctx, d)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for cut := true; pause(ctx, p.step.Toggle); cut = !cut {
		// What was begun is finished: half a cut is another fault than the one that was meant.
		whole := context.WithoutCancel(ctx)
		if cut {
			if err := p.fleet.net.heal(whole); err != nil {
				return err
			}
			continue
		}
		p.cuts++
		if err := p.fleet.net.cut(whole, p.step.Cuts); err != nil {
			return err
		}
	}
	return nil
}

func (p *partitionFault) end(ctx context.Context) (string, error) {
	after, err := p.fleet.net.dropped(ctx)
	if err = errors.Join(err, p.fleet.net.heal(ctx)); err != nil {
		return "", err
	}
	if after <= p.before {
		return "", fmt.Errorf("%w: the cuts %s dropped nothing", errNoEffect, p.fleet.cutText(p.step.Cuts))
	}
	times := ""
	if p.cuts > 1 {
		times = fmt.Sprintf(", made %d times", p.cuts)
	}
	return fmt.Sprintf("%s cut%s; %.0f %s dropped", p.fleet.cutText(p.step.Cuts), times, after-p.before, p.fleet.unit()), nil
}

// unit is what the network counts when it drops something.
func (f *fleet) unit() string {
	if _, ok := f.net.(*netns); ok {
		return "packets"
	}
	return "frames"
}

// cutText spells cuts out: n1↔n2 for both directions, n1→n2 for one.
func (f *fleet) cutText(cuts []Cut) string {
	has := map[Cut]bool{}
	for _, c := range cuts {
		has[c] = true
	}
	var parts []string
	for _, c := range cuts {
		arrow := "→"
		if has[Cut{From: c.To, To: c.From}] {
			if c.From > c.To {
				continue
			}
			arrow = "↔"
		}
		parts = append(parts, f.nodes[c.From].name+arrow+f.nodes[c.To].name)
	}
	return strings.Join(parts, " ")
}
