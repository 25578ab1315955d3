package quorum

import (
	"fmt"
	"time"
)

// Config bounds the eventual lane of one node.
type Config struct {
	// SiblingsMax is the number of concurrent versions of a key that a coordinator lets a write make. Default 64. A
	// higher one lets clients that never read grow keys without end.
	SiblingsMax int
	// AttemptsMax is how often a write is stamped before its refusals are given up on. Default 3.
	AttemptsMax int
	// HedgeDelay is how long a read waits for the replicas it asked before it asks the rest, and how long a write that
	// was refused somewhere waits for the others before it is stamped anew. Default 20 ms. Below the peers' usual
	// latency every read costs n requests.
	HedgeDelay time.Duration
	// ReadSample is the share of reads, 0 to 1, that ask all n replicas, so that staleness is measured and replicas that
	// are rarely asked are repaired. Default 0.1. Each such read costs n requests.
	ReadSample float64
	// RequestTimeout is the deadline of a request that came without one. Default 5 s.
	RequestTimeout time.Duration
	// ReplicaTimeout is how long a replica may take to acknowledge, also after the request was answered. Default 5 s.
	// It is never less than the request's own time.
	ReplicaTimeout time.Duration
	// CallsPerReplicaMax bounds the calls to one replica that have not been answered. Default 16384. Beyond it the
	// replica is not sent to, which counts as a vote lost, never as a failed request: a replica that swallows
	// everything must not hold up the others.
	CallsPerReplicaMax int
	// LeaderAttemptsMax is AttemptsMax on the leader of the key's partition, which others hand writes to that were refused
	// twice. Default 16.
	LeaderAttemptsMax int
	// HotFor is for how long a node hands all writes of a key straight to the leader after it had to hand over one. Default
	// 1 s.
	HotFor time.Duration
	// FallbackDelay is how long a sloppy write waits for a replica before it has the next node of the ring keep a hint.
	// Default 200 ms. A replica that is believed dead is not waited for.
	FallbackDelay time.Duration
	// RepairsMax bounds the read repairs under way at once. Default 256. Beyond it a repair is dropped and counted.
	RepairsMax int
	// StopTimeout is how long Run waits for outstanding calls after it was told to stop. Default 5 s.
	StopTimeout time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		SiblingsMax:        64,
		AttemptsMax:        3,
		LeaderAttemptsMax:  16,
		HotFor:             time.Second,
		FallbackDelay:      200 * time.Millisecond,
		HedgeDelay:         20 * time.Millisecond,
		ReadSample:         0.1,
		RequestTimeout:     5 * time.Second,
		ReplicaTimeout:     5 * time.Second,
		CallsPerReplicaMax: 16384,
		RepairsMax:         256,
		StopTimeout:        5 * time.Second,
	}
}

// Validate reports the first value that makes no sense.
func (c Config) Validate() error {
	for _, n := range []struct {
		name  string
		value int
	}{
		{"siblings max", c.SiblingsMax},
		{"attempts max", c.AttemptsMax},
		{"leader attempts max", c.LeaderAttemptsMax},
		{"calls per replica max", c.CallsPerReplicaMax},
		{"repairs max", c.RepairsMax},
	} {
		if n.value < 1 {
			return fmt.Errorf("quorum: %s is %d; it is at least 1", n.name, n.value)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"hedge delay", c.HedgeDelay},
		{"hot for", c.HotFor},
		{"fallback delay", c.FallbackDelay},
		{"request timeout", c.RequestTimeout},
		{"replica timeout", c.ReplicaTimeout},
		{"stop timeout", c.StopTimeout},
	} {
		if d.value <= 0 {
			return fmt.Errorf("quorum: %s is %v; it is above 0", d.name, d.value)
		}
	}
	if !(c.ReadSample >= 0 && c.ReadSample <= 1) {
		return fmt.Errorf("quorum: the read sample is %v; it is a share from 0 to 1", c.ReadSample)
	}
	return nil
}
