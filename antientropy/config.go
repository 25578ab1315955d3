package antientropy

import (
	"fmt"
	"time"
)

// Config paces the exchanges.
type Config struct {
	// Interval is the pause between two rounds; a round compares each partition with one peer, another one each round.
	// Up to half of it is added by chance, so that nodes do not move in step.
	Interval time.Duration
	// IdleFactor makes the pause at least this many times as long as the round before took, so that a node with much
	// data spends at most 1/(1+IdleFactor) of its time on scans.
	IdleFactor int
	// Timeout bounds one request to a peer.
	Timeout time.Duration
	// ChunkBytesMax bounds a message's payload. A single set that is larger travels alone.
	ChunkBytesMax int
}

// DefaultConfig returns the pace used in production.
func DefaultConfig() Config {
	return Config{Interval: 10 * time.Second, IdleFactor: 20, Timeout: 10 * time.Second, ChunkBytesMax: 1 << 20}
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Interval <= 0 || c.Timeout <= 0:
		return fmt.Errorf("antientropy: intervals must be positive")
	case c.IdleFactor < 0:
		return fmt.Errorf("antientropy: the idle factor is %d; it is at least 0", c.IdleFactor)
	case c.ChunkBytesMax < 1<<10:
		return fmt.Errorf("antientropy: chunks of %d bytes; at least 1 KiB is needed", c.ChunkBytesMax)
	}
	return nil
}
