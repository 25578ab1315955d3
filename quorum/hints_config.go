package quorum

import (
	"fmt"
	"time"
)

// HintConfig bounds what a node keeps for others, and paces how it hands that over.
type HintConfig struct {
	// BytesMax is how many bytes of hints are kept for one target. Default 1 GiB. Beyond it a new hint is dropped and counted,
	// never one that was acknowledged: anti-entropy brings the rest.
	BytesMax int64
	// AgeMax is how long a hint is kept. Default 3 h. It is dropped and counted then, whether or not it was promised: a node
	// that is away for longer is brought up to date by anti-entropy.
	AgeMax time.Duration
	// Interval is how often the targets are looked after: whether they are back, and what has grown too old. Default 1 s.
	Interval time.Duration
	// PageHintsMax and PageBytesMax bound what is under way to one target at once. Default 64 and 1 MiB.
	PageHintsMax int
	PageBytesMax int
	// RateBytes is how many bytes a second one target is handed. Default 8 MiB. All nodes hand over at once what they kept
	// for one that comes back, so that it gets this from each of them.
	RateBytes int
	// CallTimeout is how long the target may take to acknowledge a hint. Default 5 s.
	CallTimeout time.Duration
	// BackoffMax bounds the pause after a target that is believed alive did not take a hint. It begins at Interval. Default
	// 10 s.
	BackoffMax time.Duration
	// CoalesceMax is the number of keys of which the node remembers the hint, so that the next one takes its place. Default
	// 65,536. Hints of other keys pile up until they are handed over, which costs room and changes nothing else.
	CoalesceMax int
	// QueueBytesMax bounds the hints that are not on the disk yet. Default 64 MiB. Beyond it a hint is dropped and counted.
	QueueBytesMax int64
}

// DefaultHintConfig returns the defaults.
func DefaultHintConfig() HintConfig {
	return HintConfig{
		BytesMax: 1 << 30, AgeMax: 3 * time.Hour, Interval: time.Second,
		PageHintsMax: 64, PageBytesMax: 1 << 20, RateBytes: 8 << 20,
		CallTimeout: 5 * time.Second, BackoffMax: 10 * time.Second,
		CoalesceMax: 1 << 16, QueueBytesMax: 64 << 20,
	}
}

// Validate reports the first value that makes no sense.
func (c HintConfig) Validate() error {
	for name, v := range map[string]int64{
		"bytes max": c.BytesMax, "page hints max": int64(c.PageHintsMax), "page bytes max": int64(c.PageBytesMax),
		"rate": int64(c.RateBytes), "coalesce max": int64(c.CoalesceMax), "queue bytes max": c.QueueBytesMax,
	} {
		if v < 1 {
			return fmt.Errorf("quorum: hints: %s is %d; it is at least 1", name, v)
		}
	}
	for name, d := range map[string]time.Duration{
		"age max": c.AgeMax, "interval": c.Interval, "call timeout": c.CallTimeout, "backoff max": c.BackoffMax,
	} {
		if d <= 0 {
			return fmt.Errorf("quorum: hints: %s is %v; it is above 0", name, d)
		}
	}
	return nil
}
