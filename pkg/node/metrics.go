package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// metrics are the router's own. Each lane and the storage register theirs.
type metrics struct {
	forwarded prometheus.Counter
	refused   prometheus.Counter
	// refusedDisk counts writes of users and of peers.
	refusedDisk prometheus.Counter
	staleEpoch  prometheus.Counter
	// degraded counts operations that were answered at their fallback level.
	degraded  *prometheus.CounterVec
	clockSkew prometheus.Counter
	// peeks counts the keys that a majority was asked about for a strong operation, settles what became of taking a version in,
	// and overtaken the writes that had to be judged anew.
	peeks, overtaken prometheus.Counter
	settles          *prometheus.CounterVec
	// proofs counts attempts at proofs of level bounded, boundedReads the answers by whom they took.
	proofs, boundedReads *prometheus.CounterVec
	// laneChanges counts the changes of fences by what they led to, on the node that led group 0; swept the keys that were settled by a sweep
	// here, fenced the requests that a policy or a switch refused.
	laneChanges   *prometheus.CounterVec
	swept, fenced prometheus.Counter
	// failures counts strong and bounded requests without a majority, by operation; the eventual lane counts its own beside them.
	failures [kv.OpList + 1]prometheus.Counter
}

// proven counts a request of a user, of level strong or bounded, that found no leader, or no majority in time.
func (m *metrics) proven(op kv.Op, err error) {
	if err == nil || int(op) >= len(m.failures) {
		return
	}
	switch kv.AsError(err).Code {
	case kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeDeadlineExceeded:
		m.failures[op].Inc()
	}
}

func newMetrics(r prometheus.Registerer, n *Node) *metrics {
	m := &metrics{
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_forwarded_requests_total", Help: "Requests handed on to another node.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_admission_refused_total", Help: "Requests refused because too many were in flight.",
		}),
		refusedDisk: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_writes_refused_disk_total", Help: "Writes of users and of peers refused because the disk is nearly full, or refuses flushes.",
		}),
		staleEpoch: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_stale_epoch_total", Help: "Peer requests refused because the epochs of the partition map differed.",
		}),
		degraded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvstore_degraded_operations_total", Help: "Operations answered at the weaker level that their fallback permitted.",
		}, []string{"requested_level", "achieved_level", "operation"}),
		clockSkew: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kvstore_gossip_clock_skew_total", Help: "Clock readings seen by gossip that were too far ahead to be taken over.",
		}),
	}
	m.peeks = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kvstore_peeks_total",
		Help: "Strong operations that asked a majority which eventual versions of their key it holds, because it did not hold none at all.",
	})
	m.overtaken = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kvstore_guarded_overtaken_total", Help: "Strong writes judged anew because their key had changed before their entry was applied.",
	})
	m.settles = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_settles_total", Help: "Eventual versions offered to the log, by whether it took them in, the key had changed, or its state was full.",
	}, []string{"result"})
	m.proofs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_bounded_proofs_total",
		Help: "Attempts to prove a replica fresh for level bounded: clean ones let it answer alone, after unclean ones a majority is asked as well.",
	}, []string{"result"})
	m.boundedReads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_bounded_reads_total", Help: "Reads of level bounded by this node's replicas: alone, or with a majority.",
	}, []string{"by"})
	m.laneChanges = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvstore_lane_changes_total", Help: "Changes of how a prefix stands between the lanes, by its new state, seen while leading group 0.",
	}, []string{"state"})
	m.swept = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kvstore_lane_swept_keys_total", Help: "Keys whose eventual versions this node had the log take in because their prefix becomes strong-only.",
	})
	m.fenced = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kvstore_lane_fenced_total", Help: "Requests refused here because the lanes of their prefix do not allow their level, or are being switched.",
	})
	passing := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvstore_lane_switches", Help: "Prefixes whose lanes are being switched, as far as this node knows.",
	}, func() float64 {
		if n.machine == nil {
			return 0
		}
		return float64(len(n.machine.State().Passing()))
	})
	failures := quorum.Failures(r)
	for op := kv.OpGet; op <= kv.OpList; op++ {
		m.failures[op] = failures.WithLabelValues(op.String())
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvstore_requests_in_flight", Help: "Requests this node is working on.",
	}, func() float64 { return float64(n.admission.ops.Load()) })
	epoch := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvstore_partition_map_epoch", Help: "Epoch of the partition map this node routes by.",
	}, func() float64 {
		if n.machine == nil {
			return 0
		}
		return float64(n.epoch())
	})
	free := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvstore_storage_free_bytes", Help: "Free bytes of the data directory's filesystem, at most a second old; 0 where it cannot tell.",
	}, func() float64 { return float64(n.space.available.Load()) })
	violations := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "kvstore_consistency_violations_total",
		Help: "Replicas found to hold another state than a majority at the same position of the log, checks in which no majority agreed, and eventual rows found lost or damaged.",
	}, func() float64 {
		if n.strong == nil {
			return float64(n.rowsDamaged.Load())
		}
		return float64(n.strong.Violations() + n.rowsDamaged.Load())
	})
	r.MustRegister(m.forwarded, m.refused, m.refusedDisk, m.staleEpoch, m.degraded, m.clockSkew, m.peeks, m.overtaken, m.settles, m.proofs, m.boundedReads,
		m.laneChanges, m.swept, m.fenced, passing, violations, inFlight, epoch, free)
	return m
}
