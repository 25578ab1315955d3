package quorum

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Why hints were dropped, as metrics spell it.
const (
	dropBytes     = "bytes"     // the target's hints have reached BytesMax
	dropAge       = "age"       // older than AgeMax
	dropLeft      = "left"      // the target is no member of the cluster any more
	dropMoved     = "moved"     // the target does not replicate the partition any more
	dropWatermark = "watermark" // from before what the repair watermark was told
	dropQueue     = "queue"     // the disk does not keep up
	dropStorage   = "storage"   // the disk did not take it
	dropDamaged   = "damaged"   // it cannot be read
	dropShut      = "shut"      // the lanes of its prefix are being switched, or are strong-only
)

func dropReasons() []string {
	return []string{dropBytes, dropAge, dropLeft, dropMoved, dropWatermark, dropQueue, dropStorage, dropDamaged, dropShut}
}

// hintMetrics are the store's. It collects what is kept for each target when it is asked.
type hintMetrics struct {
	hints     *Hints
	queued    prometheus.Counter
	coalesced prometheus.Counter
	replayed  prometheus.Counter
	failed    prometheus.Counter
	dropped   *prometheus.CounterVec

	pending, bytes, oldest *prometheus.Desc
}

func newHintMetrics(reg prometheus.Registerer, s *Hints) *hintMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"target"}, nil)
	}
	m := &hintMetrics{
		hints:     s,
		queued:    counter("kvstore_hints_queued_total", "Hints made durable for nodes that did not take a write."),
		coalesced: counter("kvstore_hints_coalesced_total", "Writes that went into a hint of their key which was not on the disk yet."),
		replayed:  counter("kvstore_hints_replayed_total", "Hints that their target has acknowledged."),
		failed:    counter("kvstore_hints_replay_failures_total", "Hints that their target did not acknowledge in time; they are kept and sent again."),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvstore_hints_dropped_total", Help: "Hints given up, by reason; anti-entropy repairs what they held.",
		}, []string{"reason"}),
		pending: gauge("kvstore_hints_pending", "Hints kept for a node."),
		bytes:   gauge("kvstore_hints_bytes", "Size of the hints kept for a node."),
		oldest:  gauge("kvstore_hints_oldest_seconds", "Age of the oldest hint kept for a node; 0 when there is none."),
	}
	for _, reason := range dropReasons() {
		m.dropped.WithLabelValues(reason)
	}
	reg.MustRegister(m.queued, m.coalesced, m.replayed, m.failed, m.dropped, m)
	return m
}

func (m *hintMetrics) drop(reason string, n int) { m.dropped.WithLabelValues(reason).Add(float64(n)) }

// Describe implements prometheus.Collector.
func (m *hintMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.pending
	ch <- m.bytes
	ch <- m.oldest
}

// Collect implements prometheus.Collector.
func (m *hintMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, st := range m.hints.all() {
		name := m.hints.deps.Name(st.Target)
		for desc, v := range map[*prometheus.Desc]float64{
			m.pending: float64(st.Hints), m.bytes: float64(st.Bytes), m.oldest: st.Oldest.Seconds(),
		} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, name)
		}
	}
}

// HintStatus is what is kept for one node.
type HintStatus struct {
	Target kv.NodeID
	Hints  int
	Bytes  int64
	// Oldest is the age of the oldest hint.
	Oldest time.Duration
}

// Status returns what is kept for each node that anything is kept for.
func (s *Hints) Status() []HintStatus {
	return slices.DeleteFunc(s.all(), func(st HintStatus) bool { return st.Hints == 0 })
}

// all returns what is kept for each node that anything was ever kept for in this life.
func (s *Hints) all() []HintStatus {
	now := s.deps.Clock.Last()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]HintStatus, 0, len(s.targets))
	for id, t := range s.targets {
		st := HintStatus{Target: id, Hints: t.hints, Bytes: t.bytes}
		for _, q := range t.queues {
			st.Oldest = max(st.Oldest, time.Duration(now.Millis()-q.oldest.Millis())*time.Millisecond)
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b HintStatus) int { return cmp.Compare(a.Target, b.Target) })
	return out
}
