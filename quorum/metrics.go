package quorum

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// storeMetrics are the local replica's.
type storeMetrics struct {
	verdicts     [verdictShut + 1]prometheus.Counter
	skewed       prometheus.Counter
	stampRetries prometheus.Counter
	late         prometheus.Counter
	collected    prometheus.Counter
	pruned       prometheus.Counter
}

func newStoreMetrics(reg prometheus.Registerer) *storeMetrics {
	verdicts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_eventual_replica_writes_total",
		Help: "Eventual writes that arrived at this replica, by what it decided.",
	}, []string{"verdict"})
	m := &storeMetrics{
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_eventual_late_versions_total",
			Help: "Versions that arrived from before the repair watermark and were discarded.",
		}),
		pruned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_eventual_pruned_total",
			Help: "Keys of which versions were removed here because the strong lane's state had come to cover them.",
		}),
		collected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_eventual_collected_total",
			Help: "Sibling sets without a value that were removed behind the repair watermark.",
		}),
		skewed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_eventual_skewed_total",
			Help: "Eventual writes refused because a stamp was further in the future than clocks may differ.",
		}),
		stampRetries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_eventual_stamp_retries_total",
			Help: "Times an attempt read the clock again because another write of the same key was stamped meanwhile.",
		}),
	}
	for v, name := range map[verdict]string{
		verdictMerge: "merged", verdictCovered: "covered", verdictHeld: "held", verdictRefused: "refused", verdictShut: "shut",
	} {
		m.verdicts[v] = verdicts.WithLabelValues(name)
	}
	reg.MustRegister(verdicts, m.skewed, m.stampRetries, m.late, m.collected, m.pruned)
	return m
}

// coordinatorMetrics are the coordinator's.
type coordinatorMetrics struct {
	failures       map[kv.Op]prometheus.Counter
	repairs        prometheus.Counter
	repairsDropped prometheus.Counter
	restamps       prometheus.Counter
	carried        prometheus.Counter
	lagging        prometheus.Counter
	hedges         prometheus.Counter
	lateAcks       prometheus.Counter
	lateFailures   prometheus.Counter
	handedOver     prometheus.Counter
	hintedWrites   prometheus.Counter
	callsDropped   prometheus.Counter
	catchUps       prometheus.Counter
	outstanding    prometheus.GaugeFunc
	samplesPartial prometheus.Counter
	// By level.
	sampled, stale [kv.LevelCausal + 1]prometheus.Counter
	staleness, lag [kv.LevelCausal + 1]prometheus.Observer
}

// lagBuckets reach from what a round trip takes to what a replica that was away for a while does, in seconds.
var lagBuckets = prometheus.ExponentialBuckets(0.0005, 4, 12)

// registerStaleness makes what sampled requests are measured by.
func (m *coordinatorMetrics) registerStaleness(reg prometheus.Registerer) {
	labels := []string{"consistency_level"}
	sampled := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_sampled_reads_total", Help: "Reads that asked all replicas and whose answer was compared with what all of them held.",
	}, labels)
	stale := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_stale_reads_total", Help: "Sampled reads whose answer lacked a version that was written before the read began.",
	}, labels)
	staleness := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kvstore_read_staleness_seconds", Buckets: lagBuckets,
		Help: "Age of what sampled reads answered: since when, at least, there was something newer; 0 for the newest.",
	}, labels)
	lag := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kvstore_replication_lag_seconds", Buckets: lagBuckets,
		Help: "Time from the answer to a sampled write until all of its replicas had acknowledged it.",
	}, labels)
	m.samplesPartial = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kvstore_sampled_reads_partial_total", Help: "Sampled reads that some replica did not answer and nothing proved stale; not counted as sampled.",
	})
	for _, level := range [...]kv.Level{kv.LevelEventual, kv.LevelLocal, kv.LevelCausal} {
		name := level.String()
		m.sampled[level], m.stale[level] = sampled.WithLabelValues(name), stale.WithLabelValues(name)
		m.staleness[level], m.lag[level] = staleness.WithLabelValues(name), lag.WithLabelValues(name)
	}
	reg.MustRegister(sampled, stale, staleness, lag, m.samplesPartial)
}

// Failures returns the counter of requests that too few replicas answered, by operation. Both lanes count with it: the first
// call registers it, further ones of the same registerer return the same counter.
func Failures(reg prometheus.Registerer) *prometheus.CounterVec {
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_quorum_failures_total",
		Help: "Requests that too few replicas answered, or answered in time, by operation.",
	}, []string{"operation"})
	err := reg.Register(failures)
	if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if existing, ok := already.ExistingCollector.(*prometheus.CounterVec); ok {
			return existing
		}
	}
	invariant.Check(err == nil, "register the quorum failures: %v", err)
	return failures
}

func newCoordinatorMetrics(reg prometheus.Registerer, outstanding func() float64) *coordinatorMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	failures := Failures(reg)
	m := &coordinatorMetrics{
		failures:       make(map[kv.Op]prometheus.Counter),
		repairs:        counter("kvstore_read_repair_total", "Replicas that a read found behind and sent what they lacked."),
		repairsDropped: counter("kvstore_read_repair_dropped_total", "Read repairs not made because too many were under way."),
		lagging:        counter("kvstore_quorum_lagging_reads_total", "Reads made again because the replicas asked had yet to apply what replaced a version that they no longer held."),
		carried:        counter("kvstore_quorum_carried_total", "Writes that took effect just before a later one of the same coordinator and key, and ended with it."),
		restamps:       counter("kvstore_quorum_restamps_total", "Times a write was stamped anew because replicas refused it."),
		hedges:         counter("kvstore_quorum_hedged_reads_total", "Reads that asked further replicas because one was late or failed."),
		lateAcks:       counter("kvstore_quorum_late_acks_total", "Acknowledgements that arrived after their request was answered."),
		lateFailures:   counter("kvstore_quorum_late_failures_total", "Replicas that failed or refused a write after it was answered; anti-entropy repairs them."),
		handedOver:     counter("kvstore_quorum_leader_writes_total", "Writes handed to the leader of their partition because others of the same key overtook them."),
		hintedWrites:   counter("kvstore_quorum_hinted_acks_total", "Acknowledgements of sloppy writes that were hints on other nodes."),
		catchUps:       counter("kvstore_quorum_catch_ups_total", "Writes whose coordinator asked other replicas first for what the writer had seen and it had not."),
		callsDropped:   counter("kvstore_quorum_calls_dropped_total", "Calls not sent because too many to the same replica were outstanding."),
		outstanding: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "kvstore_quorum_calls_outstanding",
			Help: "Calls to replicas that have not been answered.",
		}, outstanding),
	}
	for _, op := range []kv.Op{kv.OpGet, kv.OpPut, kv.OpDelete, kv.OpList} {
		m.failures[op] = failures.WithLabelValues(op.String())
	}
	reg.MustRegister(m.repairs, m.repairsDropped, m.restamps, m.carried, m.lagging, m.hedges, m.lateAcks, m.lateFailures, m.handedOver, m.hintedWrites,
		m.callsDropped, m.catchUps, m.outstanding)
	m.registerStaleness(reg)
	return m
}
