package workload

import (
	"errors"
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Limits of a run. They catch a slipped digit rather than protect a cluster.
const (
	clientsMax    = 100_000
	valueBytesMax = 64 << 20
	keysMax       = 1 << 40
)

// Mix says how many of every hundred operations are reads and deletes; the rest are writes.
type Mix struct {
	GetPercent    int
	DeletePercent int
}

// Config describes one run.
type Config struct {
	// Clients is the number of operations in flight: each client waits for an answer before it sends again.
	Clients int
	// Duration bounds the measured part of the run.
	Duration time.Duration
	// Warmup runs before Duration, with the same load, and is not measured: it fills connection pools and caches.
	Warmup time.Duration
	// Operations ends the run early, after about as many measured operations; 0 leaves Duration as the only bound.
	Operations int64
	// Keys is the size of the key space; keys are drawn uniformly from it.
	Keys int64
	// KeyPrefix starts every key, so that a run can be aimed at a policy and its data found again.
	KeyPrefix string
	// ValueBytes is the size of each written value. Values do not compress.
	ValueBytes int
	Mix        Mix
	// Level is asked for by every operation; LevelUnset leaves it to the cluster's policies.
	Level kv.Level
	// Timeout bounds each operation.
	Timeout time.Duration
	// Seed decides keys, values and the order of operations, client by client. Runs with equal seeds send the same operations.
	Seed uint64
}

// DefaultConfig is a short run of small writes and reads, half each.
func DefaultConfig() Config {
	return Config{
		Clients:    64,
		Duration:   10 * time.Second,
		Warmup:     time.Second,
		Keys:       100_000,
		KeyPrefix:  "workload/",
		ValueBytes: 100,
		Mix:        Mix{GetPercent: 50},
		Timeout:    kv.RequestTimeout,
		Seed:       1,
	}
}

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Clients >= 1 && c.Clients <= clientsMax, "clients is %d; it must be 1 to %d", c.Clients, clientsMax)
	check(c.Duration > 0, "duration is %s; it must be positive", c.Duration)
	check(c.Warmup >= 0, "warmup is %s; it must not be negative", c.Warmup)
	check(c.Operations >= 0, "operations is %d; it must not be negative", c.Operations)
	check(c.Keys >= 1 && c.Keys <= keysMax, "keys is %d; it must be 1 to %d", c.Keys, int64(keysMax))
	check(len(c.KeyPrefix) <= kv.KeyBytesMax-keyDigits, "key-prefix has %d bytes; it must have at most %d",
		len(c.KeyPrefix), kv.KeyBytesMax-keyDigits)
	check(c.ValueBytes >= 0 && c.ValueBytes <= valueBytesMax, "value-size is %d; it must be 0 to %d bytes", c.ValueBytes, valueBytesMax)
	check(c.Mix.GetPercent >= 0 && c.Mix.DeletePercent >= 0 && c.Mix.GetPercent+c.Mix.DeletePercent <= 100,
		"the mix of %d%% gets and %d%% deletes is impossible; both are at least 0 and together at most 100", c.Mix.GetPercent, c.Mix.DeletePercent)
	check(c.Level == kv.LevelUnset || c.Level.Valid(), "unknown consistency level %d", c.Level)
	check(c.Timeout > 0 && c.Timeout <= kv.RequestTimeoutMax, "timeout is %s; it must be positive and at most %s", c.Timeout, kv.RequestTimeoutMax)
	return errors.Join(errs...)
}
