package consensus

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons for which a peer's message is dropped.
const (
	dropInboxFull    = "inbox_full"
	dropBadFrame     = "bad_frame"
	dropUnknownGroup = "unknown_group"
	dropStopped      = "stopped"
	dropHeld         = "held"
	dropRefused      = "refused"
)

// Ends of a proposal and of a read barrier, as metrics spell them.
const (
	endApplied    = "applied"
	endNotApplied = "not_applied"
	endUnknown    = "unknown"

	endServed  = "served"
	endRefused = "refused"
	endTimeout = "timeout"
)

// Directions and results of snapshots.
const (
	directionSent     = "sent"
	directionReceived = "received"

	checkEqual      = "equal"
	checkDifferent  = "different"
	checkSplit      = "split"
	checkIncomplete = "incomplete"

	resultOK      = "ok"
	resultFailed  = "failed"
	resultIgnored = "ignored" // Raft had no use for it any more
)

type metrics struct {
	leaders       prometheus.Gauge
	stopped       prometheus.Gauge
	leaderChanges prometheus.Counter
	elections     prometheus.Counter
	balanced      prometheus.Counter
	proposals     *prometheus.CounterVec
	barriers      *prometheus.CounterVec
	refused       *prometheus.CounterVec
	fills         prometheus.Counter
	syncEntries   prometheus.Histogram
	syncSeconds   prometheus.Histogram
	syncsInFlight prometheus.Gauge
	syncWaits     prometheus.Counter
	applySeconds  prometheus.Histogram
	applied       prometheus.Counter
	dropped       *prometheus.CounterVec
	framesDropped prometheus.Counter
	acksMerged    prometheus.Counter
	skewedEntries prometheus.Counter
	truncations   prometheus.Counter
	snapshots     *prometheus.CounterVec
	snapshotBytes *prometheus.CounterVec

	offersRepeated  prometheus.Counter
	checks          *prometheus.CounterVec
	checksLeftOut   prometheus.Counter
	checkBytes      prometheus.Counter
	quarantines     prometheus.Counter
	rebuildFailures prometheus.Counter
}

// newMetrics registers the store's metrics, unless there is no registerer.
func newMetrics(r prometheus.Registerer, s *Store) (*metrics, error) {
	name := func(n string) string { return "kvstore_raft_" + n }
	var all []prometheus.Collector
	counter := func(n, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name(n), Help: help})
		all = append(all, c)
		return c
	}
	counters := func(n, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, labels)
		all = append(all, c)
		return c
	}
	gauge := func(n, help string) prometheus.Gauge {
		c := prometheus.NewGauge(prometheus.GaugeOpts{Name: name(n), Help: help})
		all = append(all, c)
		return c
	}
	reading := func(n, help string, read func() float64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name(n), Help: help}, read))
	}
	histogram := func(n, help string, buckets []float64) prometheus.Histogram {
		c := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name(n), Help: help, Buckets: buckets})
		all = append(all, c)
		return c
	}
	seconds := prometheus.ExponentialBuckets(20e-6, 2, 18)
	m := &metrics{
		leaders:       gauge("leaders", "Groups that this node leads."),
		stopped:       gauge("groups_stopped", "Replicas that stopped at an entry or a row they cannot read."),
		leaderChanges: counter("leader_changes_total", "Changes of a group's leader seen by this node."),
		balanced:      counter("leaders_returned_total", "Groups that this node handed back to their preferred voter."),
		elections:     counter("elections_total", "Elections that this node started."),
		proposals:     counters("proposals_total", "Proposals of this node by how they ended.", "result"),
		barriers:      counters("barriers_total", "Read barriers by how they ended.", "result"),
		refused:       counters("refused_total", "Operations refused because a limit was reached.", "limit"),
		fills:         counter("fills_total", "Writes of the eventual lane that shared a batch."),
		syncEntries:   histogram("sync_entries", "Log entries per synced batch.", prometheus.ExponentialBuckets(1, 2, 12)),
		syncSeconds:   histogram("sync_duration_seconds", "Time from a batch's write to its durability.", seconds),
		syncsInFlight: gauge("syncs_in_flight", "Batches written and not yet durable."),
		syncWaits:     counter("sync_waits_total", "Times the loop waited because too many batches were being synced."),
		applySeconds:  histogram("apply_duration_seconds", "Time an iteration took to apply committed entries.", seconds),
		applied:       counter("applied_entries_total", "Entries applied."),
		dropped:       counters("messages_dropped_total", "Messages from peers that were dropped.", "reason"),
		framesDropped: counter("frames_dropped_total", "Frames to peers that the transport dropped."),
		acksMerged:    counter("acks_merged_total", "Acknowledgements left out because a later one of the same flush says more."),
		skewedEntries: counter("skewed_entries_total", "Entries whose proposer's clock was too far ahead to be observed."),
	}
	m.truncations = counter("truncations_total", "Times the front of a group's log was dropped.")
	m.snapshots = counters("snapshots_total", "Snapshots that ended, by direction and how.", "direction", "result")
	m.offersRepeated = counter("snapshot_offers_repeated_total", "Offers of a snapshot that were sent again because nothing was heard of them.")
	m.snapshotBytes = counters("snapshot_bytes_total", "Bytes of snapshots' rows, by direction.", "direction")
	m.checks = counters("checks_total", "Comparisons of the replicas' states that this node led, by what they found.", "result")
	m.checksLeftOut = counter("checks_left_out_total", "Comparisons that a replica of this node took no part in.")
	m.checkBytes = counter("check_bytes_total", "Bytes of rows that were hashed.")
	m.quarantines = counter("quarantines_total", "Times that a replica of this node was quarantined.")
	m.rebuildFailures = counter("rebuild_failures_total", "Attempts to rebuild a quarantined replica that failed and are repeated.")
	reading("groups_quarantined", "Replicas of this node that are quarantined.", s.quarantinedGroups)
	reading("log_bytes", "Size of the logs of all groups.", s.logBytes)
	reading("inbox_bytes", "Messages from peers that wait for the loop.", s.inboxBytes)
	reading("pending_bytes", "Proposals that were not answered yet.", func() float64 { return float64(s.pendingBytes.Load()) })
	reading("fill_bytes", "Eventual writes that are being synced.", func() float64 { return float64(s.fillBytes.Load()) })
	reading("applied_lag", "Committed entries that are not applied yet, in the group furthest behind.", s.appliedLag)
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range all {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (s *Store) inboxBytes() float64 {
	s.inbox.mu.Lock()
	defer s.inbox.mu.Unlock()
	return float64(s.inbox.messageBytes)
}

func (s *Store) appliedLag() float64 {
	lag := uint64(0)
	for _, v := range s.views.all() {
		st := v.read()
		lag = max(lag, st.Commit-min(st.Applied, st.Commit))
	}
	return float64(lag)
}

func (s *Store) quarantinedGroups() float64 {
	n := 0
	for _, v := range s.views.all() {
		if v.trust.Load()%2 == 1 {
			n++
		}
	}
	return float64(n)
}

// Violations returns how many consistency violations the checks that this node led have found since it started.
func (s *Store) Violations() uint64 { return s.violations.Load() }

func (s *Store) logBytes() float64 {
	sum := uint64(0)
	for _, v := range s.views.all() {
		st := v.read()
		sum += st.LogBytes
	}
	return float64(sum)
}
