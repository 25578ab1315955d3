package causal

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/mutant"
)

// ClockConfig bounds a clock.
type ClockConfig struct {
	// MaxOffset is how far a remote reading may be ahead of the local wall clock before it is refused. Default 500 ms.
	// Too small and ordinary NTP drift refuses requests; too large and one bad clock drags all others along.
	MaxOffset time.Duration
	// CeilingAhead is how far ahead of the clock its ceiling is persisted. Default 400 ms. The shorter, the more often
	// the disk is synced for it; but a node that was killed and is back at once starts up to this far ahead of its
	// peers, and while that is more than their MaxOffset they refuse what it stamps.
	CeilingAhead time.Duration
}

// DefaultClockConfig returns the defaults.
func DefaultClockConfig() ClockConfig {
	return ClockConfig{MaxOffset: 500 * time.Millisecond, CeilingAhead: 400 * time.Millisecond}
}

// Validate reports the first value that makes no sense.
func (c ClockConfig) Validate() error {
	switch {
	case c.MaxOffset < time.Millisecond:
		return fmt.Errorf("causal: max offset %v is too small: at least 1ms", c.MaxOffset)
	case c.CeilingAhead < time.Millisecond:
		return fmt.Errorf("causal: ceiling ahead %v is too small: at least 1ms", c.CeilingAhead)
	}
	return nil
}

// ClockDeps is what a clock needs from its node.
type ClockDeps struct {
	WallNow func() time.Time
	// Persist makes the ceiling durable before it returns. It is never called twice at the same time, and never while
	// the clock holds its mutex. Each call gets a higher ceiling than the last one that succeeded.
	Persist func(ceiling HLC) error
	// Ceiling is the last one persisted, 0 on a node's first start.
	Ceiling HLC
}

// Clock is a hybrid logical clock. Its readings are strictly monotonic for the life of the node's disk: it issues only
// below a ceiling that was made durable before, and starts above the ceiling of its earlier life.
type Clock struct {
	cfg  ClockConfig
	deps ClockDeps

	// mu guards the fields below. It is never held while Persist runs.
	mu sync.Mutex
	// last is the highest reading issued or observed.
	last HLC
	// ceiling is the highest durable ceiling. Invariant: every reading issued is below it.
	ceiling HLC
	// pending is the extension in flight, nil when there is none.
	pending *extension
}

// extension is one call of Persist, which others may wait for.
type extension struct {
	done chan struct{}
	err  error // written before done is closed
}

// NewClock returns a clock that starts above deps.Ceiling.
func NewClock(cfg ClockConfig, deps ClockDeps) (*Clock, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.WallNow == nil || deps.Persist == nil {
		return nil, errors.New("causal: a clock needs WallNow and Persist")
	}
	return &Clock{cfg: cfg, deps: deps, last: deps.Ceiling, ceiling: deps.Ceiling}, nil
}

// TryNow is Now for those who must not wait: false means that the ceiling was reached, and that Promise or ExtendAhead has
// to move it first.
func (c *Clock) TryNow() (HLC, bool) {
	wall := c.wall()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.issue(wall)
}

// issue returns the next reading if it is below the ceiling. mu must be held.
func (c *Clock) issue(wall HLC) (HLC, bool) {
	next := max(c.last+1, wall)
	if mutant.Planted == mutant.DotRepeated {
		next = max(c.last, wall)
	}
	if next >= c.ceiling {
		return next, false
	}
	c.last = next
	return next, true
}

// Now issues a reading above every reading issued or observed before. It waits for the ceiling to be made durable when
// the clock has reached it, which ExtendAhead makes rare; it fails only when that failed.
func (c *Clock) Now() (HLC, error) {
	for {
		wall := c.wall()
		c.mu.Lock()
		next, ok := c.issue(wall)
		c.mu.Unlock()
		if ok {
			return next, nil
		}
		// Others may use up the new ceiling before this caller gets to it; then it extends again. Each round moves
		// the ceiling by CeilingAhead, which holds more readings than can be issued meanwhile.
		if err := c.Promise(next); err != nil {
			return 0, err
		}
	}
}

// Observe makes every later Now higher than remote. It refuses, with ErrClockSkew, a reading more than MaxOffset ahead
// of the local wall clock, unless this clock is past it already: two nodes that were led astray together and whose wall
// clocks were then set right must not refuse each other what they agree on.
func (c *Clock) Observe(remote HLC) error {
	if remote <= c.Last() {
		return nil // it says nothing new, wherever the local wall clock has gone since
	}
	wall := c.wall()
	if limit := wall.Millis() + c.cfg.MaxOffset.Milliseconds(); remote.Millis() > limit {
		return fmt.Errorf("%w: a reading is %d ms ahead of the local clock; the limit is %v, check NTP on both nodes",
			ErrClockSkew, remote.Millis()-wall.Millis(), c.cfg.MaxOffset)
	}
	c.mu.Lock()
	c.last = max(c.last, remote)
	c.mu.Unlock()
	return nil
}

// Last returns the highest reading issued or observed.
func (c *Clock) Last() HLC {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Ceiling returns the durable ceiling: every reading issued so far is below it, and every reading of a later life will
// be above it.
func (c *Clock) Ceiling() HLC {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ceiling
}

// Lead returns by how much the next reading would be ahead of the local wall clock. It is large only after a restart
// that was quicker than CeilingAhead, or when the wall clock was set back; peers refuse readings that are more than
// their MaxOffset ahead, so a node waits for Lead to shrink before it serves.
func (c *Clock) Lead() time.Duration {
	wall := c.wall()
	ahead := c.Last().Millis() - wall.Millis()
	return time.Duration(max(ahead, 0)) * time.Millisecond
}

// ExtendAhead moves the ceiling when less than half of CeilingAhead is left. A node calls it several times per
// CeilingAhead, so that Now does not have to wait.
func (c *Clock) ExtendAhead() error {
	half := c.cfg.CeilingAhead.Milliseconds() / 2
	wall := c.wall()
	c.mu.Lock()
	soon := max(c.last, wall)
	c.mu.Unlock()
	return c.Promise(MakeHLC(soon.Millis()+half, soon.Counter()))
}

// Promise returns once the ceiling is durably above h: after a restart the clock will still start above h. A reading
// that came from elsewhere must have passed Observe. One caller persists at a time, the others wait for it without
// holding anything.
func (c *Clock) Promise(h HLC) error {
	for {
		wall := c.wall()
		c.mu.Lock()
		if h < c.ceiling {
			c.mu.Unlock()
			return nil
		}
		ext := c.pending
		if ext != nil {
			c.mu.Unlock()
			<-ext.done
			if ext.err != nil {
				return ext.err
			}
			continue
		}
		ext = &extension{done: make(chan struct{})}
		c.pending = ext
		from := max(c.last+1, wall)
		c.mu.Unlock()
		return c.extend(ext, h, from)
	}
}

// extend persists a ceiling above h and CeilingAhead after from. Only the caller that set c.pending to ext runs it.
func (c *Clock) extend(ext *extension, h, from HLC) error {
	ahead := MakeHLC(from.Millis()+c.cfg.CeilingAhead.Milliseconds(), from.Counter())
	ceiling := max(h+1, ahead)
	err := c.deps.Persist(ceiling)
	if err != nil {
		ext.err = fmt.Errorf("causal: persist the clock's ceiling: %w", err)
	}
	c.mu.Lock()
	if err == nil {
		c.ceiling = ceiling
	}
	c.pending = nil
	c.mu.Unlock()
	close(ext.done)
	return ext.err
}

func (c *Clock) wall() HLC { return MakeHLC(c.deps.WallNow().UnixMilli(), 0) }
