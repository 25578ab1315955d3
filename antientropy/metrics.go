package antientropy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	exchanges, repaired, watermarks            *prometheus.CounterVec
	seconds, scrubbed, damaged, sent, received prometheus.Counter
}

func newMetrics(s *Service) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	gauge := func(name, help string, worst func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() (value float64) {
			for _, o := range s.deps.Owned() {
				value = max(value, worst(s.Status(o.Partition, o.Owners)))
			}
			return value
		})
	}
	carried := vector("kvstore_antientropy_bytes_total", "Bytes of exchanges that this node began, by direction: sent or received.", "direction")
	m := &metrics{
		exchanges: vector("kvstore_antientropy_exchanges_total",
			"Comparisons of a partition with another replica, by result: equal, repaired or failed.", "result"),
		repaired: vector("kvstore_antientropy_keys_repaired_total",
			"Keys that a comparison merged, by side: local, or remote for those sent to the peer.", "side"),
		watermarks: vector("kvstore_antientropy_watermarks_total",
			"Attempts of this node to raise the repair watermark of a partition, by result: raised or waiting.", "result"),
		seconds:  counter("kvstore_antientropy_busy_seconds_total", "Time spent on comparisons that this node began."),
		scrubbed: counter("kvstore_antientropy_scrubbed_rows_total", "Rows checked against the hash tree."),
		damaged:  counter("kvstore_antientropy_damaged_rows_total", "Rows found missing or damaged by a check against the hash tree."),
		sent:     carried.WithLabelValues("sent"), received: carried.WithLabelValues("received"),
	}
	s.deps.Registerer.MustRegister(m.exchanges, m.repaired, m.watermarks, m.seconds, m.scrubbed, m.damaged, carried,
		gauge("kvstore_antientropy_exchange_age_seconds",
			"The longest time since a partition was compared with each of its other replicas.",
			func(st Status) float64 { return st.ExchangeAge.Seconds() }),
		gauge("kvstore_antientropy_watermark_age_seconds",
			"The age of the oldest repair watermark; 0 where none was set.",
			func(st Status) float64 {
				if st.Watermark == 0 {
					return 0
				}
				now, err := s.deps.Now()
				if err != nil {
					return 0
				}
				return (time.Duration(now.Millis()-st.Watermark.Millis()) * time.Millisecond).Seconds()
			}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "kvstore_healing_partitions",
			Help: "Partitions of which rows were lost here: until those were asked back, this replica counts as no acknowledgement and no answer.",
		}, func() (n float64) {
			for _, o := range s.deps.Owned() {
				if s.deps.Engine.Healing(o.Partition) {
					n++
				}
			}
			return n
		}))
	return m
}
