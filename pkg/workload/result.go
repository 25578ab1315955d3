package workload

import (
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Histograms hold latencies in microseconds up to the longest timeout, with an error under one percent. Two digits
// instead of three keep a histogram at some 20 KB, so that thousands of clients can have their own and record without a lock.
const (
	latencyMin    = int64(1)
	latencyMax    = int64(2 * kv.RequestTimeoutMax / time.Microsecond)
	latencyDigits = 2
)

func newHistogram() *hdr.Histogram { return hdr.New(latencyMin, latencyMax, latencyDigits) }

// Latency summarises how long operations took. All fields are zero when there were none.
type Latency struct {
	Mean, P50, P95, P99, P999, Max time.Duration
}

func summarise(h *hdr.Histogram) Latency {
	if h.TotalCount() == 0 {
		return Latency{}
	}
	at := func(quantile float64) time.Duration {
		return time.Duration(h.ValueAtQuantile(quantile)) * time.Microsecond
	}
	return Latency{
		Mean: time.Duration(h.Mean() * float64(time.Microsecond)),
		P50:  at(50), P95: at(95), P99: at(99), P999: at(99.9),
		Max: time.Duration(h.Max()) * time.Microsecond,
	}
}

// Kind is the part of a result that belongs to one kind of operation.
type Kind struct {
	Operations int64
	Latency    Latency
}

// Result is what a run measured.
type Result struct {
	// Elapsed is the measured time: the warm-up is not in it.
	Elapsed time.Duration
	// Operations counts answered operations, reads of absent keys included, failed ones not.
	Operations int64
	// NotFound counts the reads of absent keys within Operations.
	NotFound int64
	// Errors counts failed operations by code; Unknown those of them whose outcome is unknown.
	Errors  map[kv.Code]int64
	Unknown int64
	// LastError is the text of one of the failures, for a message; empty when there was none.
	LastError string
	// Latency is that of answered operations only: a failure's latency says how long a timeout is.
	Latency Latency
	Kinds   map[kv.Op]Kind
}

// PerSecond is the throughput of answered operations.
func (r Result) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Operations) / r.Elapsed.Seconds()
}

// Failed is the number of failed operations.
func (r Result) Failed() int64 {
	var n int64
	for _, count := range r.Errors {
		n += count
	}
	return n
}

// tally is what one client measured. It has one owner, the client's goroutine, until the run has ended.
type tally struct {
	kinds     [kv.OpDelete + 1]*hdr.Histogram // nil where there was no such operation
	notFound  int64
	errors    map[kv.Code]int64
	unknown   int64
	lastError string
}

func newTally() *tally {
	return &tally{errors: make(map[kv.Code]int64)}
}

// record counts one finished operation.
func (t *tally) record(kind kv.Op, took time.Duration, err error) {
	if err != nil && kv.CodeOf(err) != kv.CodeKeyNotFound {
		e := kv.AsError(err)
		t.errors[e.Code]++
		if e.Outcome == kv.OutcomeUnknown {
			t.unknown++
		}
		t.lastError = e.Error()
		return
	}
	if err != nil {
		t.notFound++
	}
	h := t.kinds[kind]
	if h == nil {
		h = newHistogram()
		t.kinds[kind] = h
	}
	// Clamped, so that no operation is lost from the count: beyond the range the exact figure says nothing more.
	_ = h.RecordValue(min(max(took.Microseconds(), latencyMin), latencyMax))
}

// merge adds up what the clients measured.
func merge(tallies []*tally, elapsed time.Duration) Result {
	out := Result{Elapsed: elapsed, Errors: make(map[kv.Code]int64), Kinds: make(map[kv.Op]Kind)}
	all := newHistogram()
	var kinds tally
	for _, t := range tallies {
		out.NotFound += t.notFound
		out.Unknown += t.unknown
		if t.lastError != "" {
			out.LastError = t.lastError
		}
		for code, n := range t.errors {
			out.Errors[code] += n
		}
		for kind, h := range t.kinds {
			if h == nil {
				continue
			}
			all.Merge(h)
			if kinds.kinds[kind] == nil {
				kinds.kinds[kind] = newHistogram()
			}
			kinds.kinds[kind].Merge(h)
		}
	}
	for kind, h := range kinds.kinds {
		if h != nil {
			out.Kinds[kv.Op(kind)] = Kind{Operations: h.TotalCount(), Latency: summarise(h)}
		}
	}
	out.Operations, out.Latency = all.TotalCount(), summarise(all)
	return out
}
