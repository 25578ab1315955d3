package api

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/kv"
)

// opResult is how an operation ended, as the metrics count it.
type opResult uint8

const (
	resultOK       opResult = iota // served
	resultNotFound                 // served: the key does not exist
	resultConflict                 // a condition missed, or concurrent versions were refused
	resultRefused                  // not attempted: a bad request, a fenced level, overload
	resultError                    // attempted and failed, with no effect
	resultUnknown                  // a write whose effect nobody knows
	resultCount
)

var resultNames = [resultCount]string{"ok", "not_found", "conflict", "refused", "error", "unknown"}

const (
	metricOperations = "kvstore_operations_total"
	metricDuration   = "kvstore_operation_duration_seconds"

	levelCount = int(kv.LevelLast) + 1
	opCount    = int(kv.OpList) + 1
)

// operationMetrics counts and times operations of all fronts together. Every series is resolved once, because a lookup
// by label values costs more than everything else the front does to count an operation.
type operationMetrics struct {
	total    [levelCount][opCount][resultCount]prometheus.Counter
	duration [levelCount][opCount]prometheus.Observer
}

// newOperationMetrics registers the metrics, or takes over those that another front of the node registered before.
func newOperationMetrics(reg prometheus.Registerer) (*operationMetrics, error) {
	total, err := registered(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: metricOperations,
		Help: "Operations by the level achieved (asked for, where they failed), kind and result.",
	}, []string{"consistency_level", "operation", "result"}))
	if err != nil {
		return nil, err
	}
	duration, err := registered(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    metricDuration,
		Help:    "Time from a parsed request to its outcome, in seconds.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"consistency_level", "operation"}))
	if err != nil {
		return nil, err
	}
	m := &operationMetrics{}
	for level := range levelCount {
		for op := int(kv.OpGet); op < opCount; op++ {
			levelName, opName := levelLabel(kv.Level(level)), kv.Op(op).String()
			m.duration[level][op] = duration.WithLabelValues(levelName, opName)
			for result := range resultCount {
				m.total[level][op][result] = total.WithLabelValues(levelName, opName, resultNames[result])
			}
		}
	}
	return m, nil
}

// registered registers the collector, or returns the equal one that is registered already.
func registered[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	if err == nil {
		return c, nil
	}
	if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	return c, fmt.Errorf("api: register metrics: %w", err)
}

// levelLabel names the level of an operation that failed before its level was decided "default".
func levelLabel(l kv.Level) string {
	if l == kv.LevelUnset {
		return "default"
	}
	return l.String()
}

// observe counts and times one operation that was attempted.
func (m *operationMetrics) observe(level kv.Level, op kv.Op, result opResult, took time.Duration) {
	if m.count(level, op, result) {
		m.duration[level][op].Observe(took.Seconds())
	}
}

// count counts one operation, and reports whether its labels are known: what is no operation is counted nowhere rather than
// under a label that no dashboard knows. The operations of a batch that is not atomic are counted each by itself.
func (m *operationMetrics) count(level kv.Level, op kv.Op, result opResult) bool {
	if int(level) >= levelCount || op < kv.OpGet || int(op) >= opCount {
		return false
	}
	m.total[level][op][result].Inc()
	return true
}

// resultOf classifies a failure. A nil error is resultOK.
func resultOf(err *kv.Error) opResult {
	if err == nil {
		return resultOK
	}
	if err.Outcome == kv.OutcomeUnknown && err.Code != kv.CodeOperationNotFound {
		return resultUnknown
	}
	switch err.Code {
	case kv.CodeKeyNotFound, kv.CodeOperationNotFound:
		return resultNotFound
	case kv.CodeVersionMismatch, kv.CodeSiblings:
		return resultConflict
	case kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady, kv.CodeDeadlineExceeded, kv.CodeInternal:
		return resultError
	default:
		return resultRefused
	}
}
