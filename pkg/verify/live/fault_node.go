package live

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// diskTimeout bounds how long a disk fault may take to show.
const diskTimeout = 10 * time.Second

// setOn sets one fault on each of the nodes.
func (f *fleet) setOn(ctx context.Context, nodes []int, r rule) error {
	for _, i := range nodes {
		if err := f.nodes[i].admin.setFaults(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", f.nodes[i].name, err)
		}
	}
	return nil
}

// clearOn removes the faults of those nodes that run.
func (f *fleet) clearOn(ctx context.Context, nodes []int) error {
	var errs []error
	for _, i := range nodes {
		n := f.nodes[i]
		if n.proc != nil && n.proc.hasExited() {
			continue
		}
		if err := n.admin.clearFaults(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
		}
	}
	return errors.Join(errs...)
}

// clockFault sets wall clocks wrong.
type clockFault struct {
	still
	fleet *fleet
	nodes []int
	skew  time.Duration
	seen  []string
}

// begin also writes through each victim. A clock that is ahead shows in the version's timestamp; one that is behind need not:
// the stamp also knows what the other nodes' clocks said.
func (c *clockFault) begin(ctx context.Context) error {
	if err := c.fleet.setOn(ctx, c.nodes, rule{Clock: c.skew.String()}); err != nil {
		return err
	}
	for _, i := range c.nodes {
		n := c.fleet.nodes[i]
		text := fmt.Sprintf("%s set wrong by %v", n.name, c.skew)
		if ahead, ok := stampedAhead(ctx, n); ok {
			if c.skew > 2*time.Second && ahead < c.skew/2 {
				return fmt.Errorf("%w: %s, whose clock is %v ahead, stamps a write %v ahead", errNoEffect, n.name, c.skew, ahead)
			}
			text += fmt.Sprintf(", a write is stamped %v ahead", ahead.Round(100*time.Millisecond))
		}
		c.seen = append(c.seen, text)
	}
	return nil
}

// stampedAhead writes until the node itself has stamped a write, and returns how far ahead of this process's clock. A
// node whose hybrid clock is ahead of its wall clock stamps none.
func stampedAhead(ctx context.Context, n *node) (time.Duration, bool) {
	for i := range probeKeys {
		answer, err := n.admin.probe(ctx, fmt.Sprintf("clock-%s-%d", n.name, i), "consistency=local&timeout=1s")
		if err == nil && answer.coordinator == n.name {
			return time.Until(answer.stamp), true
		}
	}
	return 0, false
}

func (c *clockFault) end(ctx context.Context) (string, error) {
	return strings.Join(c.seen, "; "), c.fleet.clearOn(ctx, c.nodes)
}

// slowFault delays every frame to and from its victims.
type slowFault struct {
	still
	fleet *fleet
	nodes []int
	delay time.Duration
	seen  []string
}

// begin measures a write through each victim that has to wait for a peer.
func (s *slowFault) begin(ctx context.Context) error {
	if err := s.fleet.setOn(ctx, s.nodes, rule{Delay: s.delay.String()}); err != nil {
		return err
	}
	for _, i := range s.nodes {
		n := s.fleet.nodes[i]
		began := time.Now()
		_, err := n.admin.probe(ctx, "slow-"+n.name, "consistency=eventual&w=2&timeout=2s")
		took := time.Since(began)
		if took < s.delay {
			return fmt.Errorf("%w: through %s, whose frames are delayed by %v, a write took %v (error: %v)", errNoEffect, n.name, s.delay, took, err)
		}
		s.seen = append(s.seen, fmt.Sprintf("%s delayed by %v, a write took %v", n.name, s.delay, took.Round(time.Millisecond)))
	}
	return nil
}

func (s *slowFault) end(ctx context.Context) (string, error) {
	return strings.Join(s.seen, "; "), s.fleet.clearOn(ctx, s.nodes)
}

// diskFault takes space away from disks or has them fail. A node then refuses writes, or stops by itself.
type diskFault struct {
	still
	fleet *fleet
	nodes []int
	disk  string
	seen  []string
}

func (d *diskFault) begin(ctx context.Context) error {
	for _, i := range d.nodes {
		// From here on its end is what the fault is meant to do.
		if n := d.fleet.nodes[i]; n.proc != nil && d.disk != diskLow {
			n.proc.expected.Store(true)
		}
	}
	if err := d.fleet.setOn(ctx, d.nodes, rule{Disk: d.disk}); err != nil {
		return err
	}
	for _, i := range d.nodes {
		n := d.fleet.nodes[i]
		effect := ""
		err := await(ctx, diskTimeout, func(ctx context.Context) (err error) {
			effect, err = d.effect(ctx, n)
			return err
		})
		if err != nil {
			return fmt.Errorf("%w: %s: the disk fault %q does not show: %w", errNoEffect, n.name, d.disk, err)
		}
		d.seen = append(d.seen, n.name+" "+effect)
	}
	return nil
}

// effect describes what the fault has done to the node; an error says that it has done nothing yet.
func (d *diskFault) effect(ctx context.Context, n *node) (string, error) {
	if n.proc != nil && n.proc.hasExited() {
		if d.disk == diskLow {
			return "", fmt.Errorf("it stopped (%s), which little space is no reason for", n.proc.how())
		}
		if words := n.panicked(); words != "" {
			return words, nil // that it ended is certain; end says that it must not end so
		}
		if !n.proc.failedByItself() {
			return "", fmt.Errorf("it ended otherwise: %s", n.proc.how())
		}
		return fmt.Sprintf("(pid %d) stopped by itself with exit code %d", n.proc.pid(), n.proc.cmd.ProcessState.ExitCode()), nil
	}
	err := takesWrites(ctx, n)
	if err == nil {
		return "", errors.New("it takes writes")
	}
	answer, ok := errors.AsType[*answerError](err)
	if d.disk != diskError && ok && refusedForSpace(answer) {
		return "refuses writes for want of space", nil
	}
	return "", fmt.Errorf("a write failed otherwise: %w", err)
}

// takesWrites writes some keys through the node and returns the first error.
func takesWrites(ctx context.Context, n *node) error {
	for i := range probeKeys {
		if _, err := n.admin.probe(ctx, fmt.Sprintf("disk-%s-%d", n.name, i), "consistency=local&timeout=1s"); err != nil {
			return err
		}
	}
	return nil
}

// refusedForSpace reports whether the answer refuses a write, and says that the disk is the reason.
func refusedForSpace(a *answerError) bool {
	text := strings.ToLower(a.body)
	return a.status == http.StatusTooManyRequests && (strings.Contains(text, "disk") || strings.Contains(text, "space"))
}

// panics returns an error for every victim that has panicked: a broken disk is a reason to stop and to say so, not to panic.
func (d *diskFault) panics() error {
	var errs []error
	for _, i := range d.nodes {
		n := d.fleet.nodes[i]
		if n.proc == nil || !n.proc.hasExited() {
			continue
		}
		if words := n.panicked(); words != "" {
			errs = append(errs, fmt.Errorf("%w: %s (pid %d): %s", errPanicked, n.name, n.proc.pid(), words))
		}
	}
	return errors.Join(errs...)
}

func (d *diskFault) end(ctx context.Context) (string, error) {
	// A new life goes on in the same log, so this comes before the restart.
	errs := []error{d.panics(), d.fleet.clearOn(ctx, d.nodes)}
	serves := true
	if d.fleet.nodes[0].proc != nil {
		_, err := d.fleet.restart(ctx, d.nodes)
		errs = append(errs, err)
		serves = err == nil
	}
	for _, i := range d.nodes {
		n := d.fleet.nodes[i]
		if err := await(ctx, diskTimeout, func(ctx context.Context) error { return takesWrites(ctx, n) }); err != nil {
			errs = append(errs, fmt.Errorf("%s takes no writes after the disk was mended: %w", n.name, err))
		}
		// It served with the disk mended. Should it have ended since, that is news.
		if n.proc != nil && serves {
			n.proc.expected.Store(false)
		}
	}
	return strings.Join(d.seen, "; "), errors.Join(errs...)
}
