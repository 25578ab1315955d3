package storage

import (
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/prometheus/client_golang/prometheus"
)

// formatVersion is the on-disk format of Pebble's files. It is named, because Pebble's zero value picks the oldest it
// can still write, which cannot tell a damaged log from the end of one. Raising it is a decision: a directory never goes
// back to an older format.
const formatVersion = pebble.FormatValueSeparation

const (
	// bloomBitsPerKey makes about one miss in a hundred read a block for nothing. Most keys exist in one lane only, so
	// half of all point reads are misses.
	bloomBitsPerKey = 10
	// batchBytesMax bounds one batch. Pebble itself panics at 4 GiB.
	batchBytesMax = 1 << 30
)

// Config tunes the engine. What it says is about one node's whole storage.
type Config struct {
	// CacheBytes holds uncompressed blocks and, in an eighth of it, rows of the eventual lane. Default 256 MiB; with Pebble's own default of 8 MiB a point read costs four
	// times as much.
	CacheBytes int64
	// MemtableBytes is how much is collected in memory before it is flushed. Default 64 MiB. After a crash about this
	// much of the write-ahead log is replayed.
	MemtableBytes int64
	// MemtablesMax stops writes once this many memtables wait to be flushed. Default 4. The memory they take is
	// MemtablesMax × MemtableBytes.
	MemtablesMax int
	// L0CompactionSublevels is the read amplification of level 0 that starts a compaction. Default 2: compacting early
	// keeps point reads short, which is what both lanes mostly do.
	L0CompactionSublevels int
	// L0StopSublevels is the read amplification of level 0 that stops writes. Default 20. Engine.Pressure measures the
	// way there; callers refuse writes well before it.
	L0StopSublevels int
	// CompactionsMax bounds concurrent compactions. Default 2; one is the rule and the second helps when debt builds up.
	CompactionsMax int
	// BytesPerSync asks the disk to write sstables out after this many bytes, so that a sync of the log never waits
	// behind a flush's dirty pages. Default 512 KiB.
	BytesPerSync int
	// WALBytesPerSync does the same for the log, where batches that ask for no sync collect. Default 256 KiB.
	WALBytesPerSync int
	// OpenFilesMax bounds the files kept open. Default 1,000.
	OpenFilesMax int
}

// DefaultConfig returns the configuration of a node that has a machine of its own.
func DefaultConfig() Config {
	return Config{
		CacheBytes:            256 << 20,
		MemtableBytes:         64 << 20,
		MemtablesMax:          4,
		L0CompactionSublevels: 2,
		L0StopSublevels:       20,
		CompactionsMax:        2,
		BytesPerSync:          512 << 10,
		WALBytesPerSync:       256 << 10,
		OpenFilesMax:          1000,
	}
}

// Validate reports the first field that cannot work.
func (c Config) Validate() error {
	switch {
	case c.CacheBytes < 1<<20:
		return fmt.Errorf("storage: CacheBytes is %d; at least 1 MiB is needed", c.CacheBytes)
	case c.MemtableBytes < 256<<10 || c.MemtableBytes > 1<<30:
		return fmt.Errorf("storage: MemtableBytes is %d; it must be between 256 KiB and 1 GiB", c.MemtableBytes)
	case c.MemtablesMax < 2:
		return fmt.Errorf("storage: MemtablesMax is %d; with fewer than 2 every flush would stop writes", c.MemtablesMax)
	case c.L0CompactionSublevels < 1:
		return fmt.Errorf("storage: L0CompactionSublevels is %d; at least 1 is needed", c.L0CompactionSublevels)
	case c.L0StopSublevels <= c.L0CompactionSublevels:
		return fmt.Errorf("storage: L0StopSublevels is %d; it must be above L0CompactionSublevels (%d), or writes stop before a compaction starts",
			c.L0StopSublevels, c.L0CompactionSublevels)
	case c.CompactionsMax < 1:
		return fmt.Errorf("storage: CompactionsMax is %d; at least 1 is needed", c.CompactionsMax)
	case c.BytesPerSync < 1 || c.WALBytesPerSync < 0:
		return errors.New("storage: BytesPerSync must be at least 1 and WALBytesPerSync at least 0")
	case c.OpenFilesMax < 100:
		return fmt.Errorf("storage: OpenFilesMax is %d; at least 100 are needed", c.OpenFilesMax)
	}
	return nil
}

// Deps are what the engine is given.
type Deps struct {
	// FS is where everything durable goes. nil: the operating system's.
	FS FS
	// Logger gets what Pebble has to say. nil: nothing is logged.
	Logger *slog.Logger
	// Registerer gets the kvstore_storage_ metrics until Close. nil: none are registered.
	Registerer prometheus.Registerer
	// OnFatal is called at most once, when the write-ahead log or the manifest could not be written and the node has to
	// stop. It runs on a goroutine of the engine that may hold locks: it must return at once, and must not call the
	// engine. Not called for a failure that Open returns. nil: the error is only logged.
	OnFatal func(error)
}

// options returns Pebble's options for the configuration. What needs the engine is added by Open.
func (c Config) options() *pebble.Options {
	o := &pebble.Options{
		FormatMajorVersion:          formatVersion,
		CacheSize:                   c.CacheBytes - c.CacheBytes/recentShare,
		MemTableSize:                uint64(c.MemtableBytes),
		MemTableStopWritesThreshold: c.MemtablesMax,
		L0CompactionThreshold:       c.L0CompactionSublevels,
		L0StopWritesThreshold:       c.L0StopSublevels,
		BytesPerSync:                c.BytesPerSync,
		WALBytesPerSync:             c.WALBytesPerSync,
		MaxOpenFiles:                c.OpenFilesMax,
		// A base level as large as the memtables it receives: smaller ones are rewritten by nearly every compaction.
		LBaseMaxBytes:              max(c.MemtableBytes, 64<<20),
		CompactionConcurrencyRange: func() (lower, upper int) { return 1, c.CompactionsMax },
	}
	for i := range o.Levels {
		// On the last level too: a key that exists nowhere is looked up as often as one that does.
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBitsPerKey)
	}
	o.TargetFileSizes[0] = min(max(c.MemtableBytes/16, 2<<20), math.MaxInt32)
	return o
}
