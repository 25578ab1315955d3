package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	sigStop     = syscall.SIGSTOP
	sigContinue = syscall.SIGCONT
)

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// killFault kills processes and starts them again.
type killFault struct {
	still
	fleet *fleet
	nodes []int
	pids  []string
}

func (k *killFault) begin(context.Context) error { return k.kill() }

// kill kills all victims before it waits for any: nodes that die together must not see each other die.
func (k *killFault) kill() error {
	k.fleet.noteDeaths()
	for _, i := range k.nodes {
		n := k.fleet.nodes[i]
		if err := n.proc.kill(); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		k.pids = append(k.pids, fmt.Sprintf("%s (pid %d)", n.name, n.proc.pid()))
	}
	for _, i := range k.nodes {
		n := k.fleet.nodes[i]
		if !n.proc.awaitExit(exitTimeout) {
			return fmt.Errorf("%w: %s outlived SIGKILL by %v", errNoEffect, n.name, exitTimeout)
		}
		if !n.proc.killedBy(syscall.SIGKILL) {
			return fmt.Errorf("%w: %s was not killed but ended otherwise: %s", errNoEffect, n.name, n.proc.how())
		}
	}
	return nil
}

func (k *killFault) end(ctx context.Context) (string, error) {
	took, err := k.fleet.restart(ctx, k.nodes)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s killed by SIGKILL; ready again %v after the restart", strings.Join(k.pids, " "), took.Round(time.Millisecond)), nil
}

// powerFault has the disks keep unsynced writes to themselves for a while, and then kills the processes: what was not synced
// is lost, as in a power cut. It takes effect at the end of the hold.
type powerFault struct{ killFault }

func (p *powerFault) begin(ctx context.Context) error {
	for _, i := range p.nodes {
		n := p.fleet.nodes[i]
		if err := n.admin.setFaults(ctx, rule{Disk: diskVolatile}); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

func (p *powerFault) end(ctx context.Context) (string, error) {
	// Still volatile at the last moment: else it was a kill and nothing more.
	var errs []error
	for _, i := range p.nodes {
		var inForce []rule
		n := p.fleet.nodes[i]
		if err := n.admin.get(ctx, "/admin/faults", &inForce); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
		} else if !covers(inForce, []rule{{Disk: diskVolatile}}) {
			errs = append(errs, fmt.Errorf("%w: the disk of %s is not volatile", errNoEffect, n.name))
		}
	}
	errs = append(errs, p.kill())
	effect, err := p.killFault.end(ctx)
	return effect + "; the disk was volatile until then", errors.Join(append(errs, err)...)
}

// wipeFault takes a node's disk away. The node is started again with an empty one, must refuse to serve under the id that had
// another, and is gone.
type wipeFault struct {
	killFault
	said string
}

// refusal is what a node says that finds its id taken by an earlier disk.
const refusal = "never reused"

func (w *wipeFault) begin(context.Context) error {
	if err := w.kill(); err != nil {
		return err
	}
	for _, i := range w.nodes {
		n := w.fleet.nodes[i]
		n.gone = true
		if err := os.RemoveAll(n.spec.Dir); err != nil {
			return err
		}
		if err := w.fleet.start(i); err != nil {
			return err
		}
		n.proc.expected.Store(true)
		if !n.proc.awaitExit(readyTimeout) {
			return fmt.Errorf("%w: %s runs on with an empty disk under its old id", errNoEffect, n.name)
		}
		if w.said = lastLine(n.log); !n.proc.failedByItself() || !strings.Contains(w.said, refusal) {
			return fmt.Errorf("%w: %s did not refuse to serve with an empty disk: %s: %s", errNoEffect, n.name, n.proc.how(), w.said)
		}
	}
	return nil
}

func (w *wipeFault) end(context.Context) (string, error) {
	for _, i := range w.nodes {
		if n := w.fleet.nodes[i]; !n.proc.hasExited() {
			n.proc.end()
		}
	}
	return fmt.Sprintf("%s killed and its disk taken away; it ended by itself: %s", strings.Join(w.pids, " "), w.said), nil
}

// pauseFault stops processes as a debugger or an overloaded host would: sockets stay open and nobody answers.
type pauseFault struct {
	still
	fleet *fleet
	nodes []int
	seen  []string
}

func (p *pauseFault) begin(ctx context.Context) error {
	for _, i := range p.nodes {
		if err := p.fleet.nodes[i].proc.signal(sigStop); err != nil {
			return fmt.Errorf("%s: %w", p.fleet.nodes[i].name, err)
		}
	}
	for _, i := range p.nodes {
		n := p.fleet.nodes[i]
		err := await(ctx, stateTimeout, func(context.Context) error {
			if state := n.proc.state(); state != "T" && state != "" {
				return fmt.Errorf("%w: %s is in state %s", errNoEffect, n.name, state)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n.admin.alive(ctx) == nil {
			return fmt.Errorf("%w: %s answers although it is stopped", errNoEffect, n.name)
		}
		p.seen = append(p.seen, fmt.Sprintf("%s (pid %d)", n.name, n.proc.pid()))
	}
	return nil
}

func (p *pauseFault) end(ctx context.Context) (string, error) {
	var errs []error
	for _, i := range p.nodes {
		errs = append(errs, ignoreDone(p.fleet.nodes[i].proc.signal(sigContinue)))
	}
	for _, i := range p.nodes {
		n := p.fleet.nodes[i]
		if err := await(ctx, exitTimeout, n.admin.alive); err != nil {
			errs = append(errs, fmt.Errorf("%s does not answer after SIGCONT: %w", n.name, err))
		}
	}
	return strings.Join(p.seen, " ") + " stopped and silent; answers again", errors.Join(errs...)
}
