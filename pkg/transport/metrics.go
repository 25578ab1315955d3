package transport

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Why frames are dropped.
const (
	reasonFull     = "full"
	reasonTooLarge = "too_large"
	reasonDown     = "down"
	reasonClosed   = "closed"
	reasonFault    = "fault"
)

var dropReasons = [...]string{reasonFull, reasonTooLarge, reasonDown, reasonClosed, reasonFault}

// Why calls fail that got no reply.
const (
	callNotSent = "not_sent"
	callBroken  = "broken"
	callOverdue = "overdue"
)

// metrics counts the traffic. Everything on the path of a frame is resolved beforehand.
type metrics struct {
	batchesSent, batchesReceived prometheus.Counter
	bytesSent, bytesReceived     prometheus.Counter
	connects, connectsFailed     prometheus.Counter
	linksUp                      prometheus.Gauge
	skewed                       prometheus.Counter
	strayReplies                 prometheus.Counter
	repeated                     prometheus.Counter
	malformed                    prometheus.Counter
	drops                        map[Class]map[string]prometheus.Counter
	calls                        map[string]prometheus.Counter
}

func newMetrics(r prometheus.Registerer, m *Mux) (*metrics, error) {
	batches := counterVec("batches_total", "Batches of frames exchanged with peers.", "direction")
	bytes := counterVec("bytes_total", "Bytes of frames exchanged with peers.", "direction")
	connects := counterVec("connects_total", "Attempts to connect to a peer.", "result")
	drops := counterVec("dropped_frames_total", "Frames that were dropped before or after sending.", "class", "reason")
	calls := counterVec("call_failures_total", "Requests to peers that ended without a reply.", "reason")
	out := &metrics{
		batchesSent: batches.WithLabelValues("out"), batchesReceived: batches.WithLabelValues("in"),
		bytesSent: bytes.WithLabelValues("out"), bytesReceived: bytes.WithLabelValues("in"),
		connects: connects.WithLabelValues("ok"), connectsFailed: connects.WithLabelValues("failed"),
		linksUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kvstore_transport_links", Help: "Links to peers that are up.",
		}),
		skewed:       counter("skewed_batches_total", "Batches of peers whose clock is too far ahead; their readings are ignored."),
		strayReplies: counter("stray_replies_total", "Replies that no call waits for any more."),
		repeated:     counter("repeated_requests_total", "Requests that came again or far too late and were not handled."),
		malformed:    counter("malformed_requests_total", "Requests that could not be read."),
		drops:        make(map[Class]map[string]prometheus.Counter),
		calls:        make(map[string]prometheus.Counter),
	}
	for _, class := range []Class{ClassRaft, ClassData} {
		out.drops[class] = make(map[string]prometheus.Counter)
		for _, reason := range dropReasons {
			out.drops[class][reason] = drops.WithLabelValues(string(class), reason)
		}
	}
	for _, reason := range []string{callNotSent, callBroken, callOverdue} {
		out.calls[reason] = calls.WithLabelValues(reason)
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvstore_transport_calls_in_flight", Help: "Requests to peers that wait for a reply.",
	}, func() float64 { return float64(m.inFlight.Load()) })
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvstore_transport_outbox_bytes", Help: "Bytes of frames that wait to be sent.",
	}, func() float64 { return float64(m.outboxBytes()) })
	var errs []error
	for _, c := range []prometheus.Collector{
		batches, bytes, connects, drops, calls, inFlight, queued, out.linksUp,
		out.skewed, out.strayReplies, out.repeated, out.malformed,
	} {
		errs = append(errs, r.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("transport: register metrics: %w", err)
	}
	return out, nil
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: "kvstore_transport_" + name, Help: help})
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kvstore_transport_" + name, Help: help}, labels)
}

func (m *metrics) sent(bytes int) {
	m.batchesSent.Inc()
	m.bytesSent.Add(float64(bytes))
}

func (m *metrics) received(bytes int) {
	m.batchesReceived.Inc()
	m.bytesReceived.Add(float64(bytes))
}

func (m *metrics) connected(err error) {
	if err != nil {
		m.connectsFailed.Inc()
		return
	}
	m.connects.Inc()
}

func (m *metrics) dropped(class Class, reason string) { m.drops[class][reason].Inc() }

func (m *metrics) callFailed(reason string) { m.calls[reason].Inc() }

// outboxBytes sums what waits to be sent.
func (m *Mux) outboxBytes() int {
	n := 0
	m.each(func(p *peer) {
		p.mu.Lock()
		n += p.raft.bytes + p.data.bytes
		p.mu.Unlock()
	})
	return n
}
