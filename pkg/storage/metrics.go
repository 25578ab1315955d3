package storage

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// stats are the engine's metrics: those it counts itself, and a collector that asks Pebble for the rest.
type stats struct {
	walSync          prometheus.Histogram
	stalls           prometheus.Counter
	backgroundErrors prometheus.Counter
	corruptions      *prometheus.CounterVec

	// mu guards engine and registered. Pebble panics when it is asked for metrics after it was closed.
	mu         sync.Mutex
	engine     *Engine
	registered prometheus.Registerer
}

func newStats() *stats {
	return &stats{
		walSync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "kvstore_storage_wal_sync_seconds",
			Help:    "Duration of syncs of the write-ahead log.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18), // 50 µs to 6.5 s
		}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_storage_write_stalls_total",
			Help: "Times that writes had to wait for flushes or compactions.",
		}),
		backgroundErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_storage_background_errors_total",
			Help: "Flushes, compactions and other background jobs that failed.",
		}),
		corruptions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvstore_storage_corruptions_total",
			Help: "Damaged rows and blocks found, by keyspace.",
		}, []string{"keyspace"}),
	}
}

func (s *stats) observeWALSync(d time.Duration) { s.walSync.Observe(d.Seconds()) }

// register publishes the metrics, with the engine as the source of those that Pebble keeps.
func (s *stats) register(r prometheus.Registerer, e *Engine) error {
	if r == nil {
		return nil
	}
	if err := r.Register(s); err != nil {
		return fmt.Errorf("storage: register metrics: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.engine, s.registered = e, r
	return nil
}

func (s *stats) unregister() {
	s.mu.Lock()
	r := s.registered
	s.engine, s.registered = nil, nil
	s.mu.Unlock()
	if r != nil {
		r.Unregister(s)
	}
}

// gauge is a metric read from Pebble when it is collected.
type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(e *Engine, m *pebble.Metrics) float64
}

func newGauge(name, help string, kind prometheus.ValueType, read func(*Engine, *pebble.Metrics) float64) gauge {
	return gauge{desc: prometheus.NewDesc("kvstore_storage_"+name, help, nil, nil), kind: kind, read: read}
}

// gauges lists what is read from Pebble.
func gauges() []gauge {
	const g, c = prometheus.GaugeValue, prometheus.CounterValue
	return []gauge{
		newGauge("l0_files", "Files in level 0.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.Levels[0].TablesCount) }),
		newGauge("l0_sublevels", "Read amplification of level 0.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.Levels[0].Sublevels) }),
		newGauge("compaction_debt_bytes", "Estimated bytes to compact until the tree is in shape.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.Compact.EstimatedDebt) }),
		newGauge("memtable_bytes", "Bytes in memtables, those waiting to be flushed included.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.MemTable.Size) }),
		newGauge("block_cache_bytes", "Bytes in the block cache.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.BlockCache.Size) }),
		newGauge("block_cache_hits_total", "Blocks found in the cache.", c,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.BlockCache.Hits) }),
		newGauge("block_cache_misses_total", "Blocks read from the disk.", c,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.BlockCache.Misses) }),
		newGauge("recent_hits_total", "Rows of the eventual lane found among the recent ones.", c,
			func(e *Engine, _ *pebble.Metrics) float64 { hits, _ := e.recent.counts(); return float64(hits) }),
		newGauge("recent_misses_total", "Rows of the eventual lane looked for in vain among the recent ones.", c,
			func(e *Engine, _ *pebble.Metrics) float64 { _, misses := e.recent.counts(); return float64(misses) }),
		newGauge("disk_bytes", "Bytes that the storage takes on the disk.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.DiskSpaceUsage()) }),
		newGauge("wal_bytes", "Live bytes of the write-ahead log.", g,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.WAL.Size) }),
		newGauge("wal_written_bytes_total", "Bytes written to the write-ahead log.", c,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.WAL.BytesWritten) }),
		newGauge("flushes_total", "Memtables flushed.", c,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.Flush.Count) }),
		newGauge("compactions_total", "Compactions finished.", c,
			func(_ *Engine, m *pebble.Metrics) float64 { return float64(m.Compact.Count) }),
		newGauge("pressure", "Share of the nearest threshold at which writes stall.", g,
			func(e *Engine, m *pebble.Metrics) float64 { return e.pressureOf(m) }),
		newGauge("degraded", "1 while background writes keep failing, 2 once the engine has stopped.", g,
			func(e *Engine, _ *pebble.Metrics) float64 { return e.health.level() }),
	}
}

// Describe implements prometheus.Collector.
func (s *stats) Describe(ch chan<- *prometheus.Desc) {
	s.walSync.Describe(ch)
	s.stalls.Describe(ch)
	s.backgroundErrors.Describe(ch)
	s.corruptions.Describe(ch)
	for _, g := range gauges() {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (s *stats) Collect(ch chan<- prometheus.Metric) {
	s.walSync.Collect(ch)
	s.stalls.Collect(ch)
	s.backgroundErrors.Collect(ch)
	s.corruptions.Collect(ch)
	for _, m := range s.read() {
		ch <- m
	}
}

// read asks Pebble. The metrics are sent after the mutex is released.
func (s *stats) read() (out []prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil {
		return nil
	}
	m := s.engine.db.Metrics()
	for _, g := range gauges() {
		out = append(out, prometheus.MustNewConstMetric(g.desc, g.kind, g.read(s.engine, m)))
	}
	return out
}

// level expresses health as a number.
func (h *health) level() float64 {
	switch {
	case h.stopped() != nil:
		return 2
	case h.degradedErr() != nil:
		return 1
	}
	return 0
}

// pressureAgeMax is how old the pressure that callers get may be. Asking Pebble takes its central mutex.
const pressureAgeMax = 50 * time.Millisecond

// pressureGauge caches the pressure between measurements.
type pressureGauge struct {
	since     time.Time     // when the engine was opened
	value     atomic.Uint64 // bits of a float64
	measured  atomic.Int64  // when, as nanoseconds after since; 0 never
	measuring atomic.Bool   // somebody measures; everybody else takes the last value
}

// Pressure returns how near writes are to being stalled: the largest share of a threshold that is used up, 1 and above
// while they are. It is cheap enough to be asked for every write, and at most 50 ms old.
func (e *Engine) Pressure() float64 {
	if e.health.stalled.Load() || e.usable() != nil {
		return 1
	}
	p := &e.pressure
	now := int64(time.Since(p.since)) + 1
	last := p.measured.Load()
	if (last == 0 || now-last > int64(pressureAgeMax)) && p.measuring.CompareAndSwap(false, true) {
		p.value.Store(math.Float64bits(e.pressureOf(e.db.Metrics())))
		p.measured.Store(now)
		p.measuring.Store(false)
	}
	return math.Float64frombits(p.value.Load())
}

// pressureOf relates Pebble's metrics to the thresholds it stalls at.
func (e *Engine) pressureOf(m *pebble.Metrics) float64 {
	memtables := float64(m.MemTable.Size) / (float64(e.cfg.MemtablesMax) * float64(e.cfg.MemtableBytes))
	sublevels := float64(m.Levels[0].Sublevels) / float64(e.cfg.L0StopSublevels)
	return max(memtables, sublevels)
}

// DiskSpace returns the bytes still available to this process and the total of the filesystem that the directory is on.
func (e *Engine) DiskSpace() (available, total uint64, err error) {
	u, err := e.fs.GetDiskUsage(e.dir)
	if err != nil {
		return 0, 0, fmt.Errorf("storage: disk usage of %s: %w", e.dir, err)
	}
	return u.AvailBytes, u.TotalBytes, nil
}
