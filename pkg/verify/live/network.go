package live

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
)

// network cuts links between nodes.
type network interface {
	// open makes the network before any node is started.
	open(ctx context.Context) error
	// wrap changes the command of node i so that it runs in the network.
	wrap(i int, cmd *exec.Cmd)
	// cut replaces the cuts in force, and proves that they are.
	cut(ctx context.Context, cuts []Cut) error
	// heal removes all cuts.
	heal(ctx context.Context) error
	// dropped counts what cuts have swallowed so far. It only grows while no process is restarted.
	dropped(ctx context.Context) (float64, error)
	// close removes the network after all nodes have ended.
	close() error
}

// injector is the network of nodes that listen on one machine, or wherever they run already: links are cut by the
// nodes' own fault injectors.
type injector struct{ fleet *fleet }

func (*injector) open(context.Context) error { return nil }
func (*injector) wrap(int, *exec.Cmd)        {}
func (*injector) close() error               { return nil }

// cut sets each end's rules: a frame is dropped when it is sent, and if that end is restarted and has lost its rules,
// when it arrives.
func (j *injector) cut(ctx context.Context, cuts []Cut) error {
	for i, n := range j.fleet.nodes {
		rules := cutRules(i, cuts, func(i int) uint64 { return uint64(j.fleet.nodes[i].id) })
		if len(rules) == 0 {
			continue
		}
		if err := n.admin.setFaults(ctx, rules...); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

// cutRules returns the rules of node i.
func cutRules(i int, cuts []Cut, id func(int) uint64) []rule {
	var rules []rule
	for _, c := range cuts {
		switch i {
		case c.From:
			rules = append(rules, rule{Peer: id(c.To), Direction: "out", Cut: true})
		case c.To:
			rules = append(rules, rule{Peer: id(c.From), Direction: "in", Cut: true})
		}
	}
	return rules
}

func (j *injector) heal(ctx context.Context) error {
	var errs []error
	for _, n := range j.fleet.nodes {
		if n.proc != nil && n.proc.hasExited() {
			continue // its rules ended with it
		}
		if err := n.admin.clearFaults(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
		}
	}
	return errors.Join(errs...)
}

func (j *injector) dropped(ctx context.Context) (float64, error) {
	sum := 0.0
	for _, n := range j.fleet.nodes {
		if n.gone {
			continue
		}
		value, err := n.admin.metric(ctx, "kvstore_transport_dropped_frames_total", `reason="fault"`)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", n.name, err)
		}
		sum += value
	}
	return sum, nil
}
