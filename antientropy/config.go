package antientropy

import (
	"fmt"
	"time"
)

// Config paces the work of this package.
type Config struct {
	// Interval is the pause between two rounds; a round compares each partition with one peer, another one each round.
	// Up to half of it is added by chance, so that nodes do not move in step.
	Interval time.Duration
	// IdleFactor makes the pause after a piece of work on the own disk at least this many times as long as the work took, so
	// that it takes at most 1/(1+IdleFactor) of the node's time.
	IdleFactor int
	// Timeout bounds one request to a peer.
	Timeout time.Duration
	// ChunkBytesMax bounds a message's payload. A single set that is larger travels alone.
	ChunkBytesMax int
	// RateBytes bounds what an exchange that this node began carries per second, both ways together.
	RateBytes int
	// WatermarkInterval is how often this node tries to raise the watermark of each partition of which it is the first owner.
	WatermarkInterval time.Duration
	// WatermarkLag is how far behind the clocks the watermark stays. What was stamped longer ago and has not arrived is
	// refused and stamped anew, so that it must exceed the time that a request may take.
	WatermarkLag time.Duration
	// ScrubInterval is the pause between two checks of all rows of a partition against its tree.
	ScrubInterval time.Duration
}

// DefaultConfig returns the pace used in production.
func DefaultConfig() Config {
	return Config{
		Interval: 10 * time.Second, IdleFactor: 20, Timeout: 10 * time.Second, ChunkBytesMax: 1 << 20, RateBytes: 16 << 20,
		WatermarkInterval: time.Minute, WatermarkLag: 90 * time.Second, ScrubInterval: 6 * time.Hour,
	}
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Interval <= 0 || c.Timeout <= 0 || c.WatermarkInterval <= 0 || c.WatermarkLag <= 0 || c.ScrubInterval <= 0:
		return fmt.Errorf("antientropy: intervals must be positive")
	case c.IdleFactor < 0:
		return fmt.Errorf("antientropy: the idle factor is %d; it is at least 0", c.IdleFactor)
	case c.ChunkBytesMax < 1<<10:
		return fmt.Errorf("antientropy: chunks of %d bytes; at least 1 KiB is needed", c.ChunkBytesMax)
	case c.RateBytes < c.ChunkBytesMax:
		return fmt.Errorf("antientropy: %d bytes a second is less than a chunk", c.RateBytes)
	}
	return nil
}
