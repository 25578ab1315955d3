package verify

import (
	"fmt"
	"slices"
	"strings"
)

// anomaliesMax bounds the anomalies that one checker describes; the rest is counted.
const anomaliesMax = 50

// Anomaly is something that a correct cluster cannot have answered.
type Anomaly struct {
	// Checker is who found it, Kind what it is, in a few words that do not vary.
	Checker string `json:"checker"`
	Kind    string `json:"kind"`
	Key     string `json:"key,omitempty"`
	// Text names the operations and says what is wrong with them.
	Text string `json:"text"`
	// Ops are the ids of the operations.
	Ops []int `json:"ops,omitempty"`
}

// String returns the anomaly for a person to read.
func (a Anomaly) String() string {
	return fmt.Sprintf("%s: %s: key %q: %s", a.Checker, a.Kind, a.Key, a.Text)
}

// Result is what a checker found.
type Result struct {
	Checker string `json:"checker"`
	// Valid is false when there is an anomaly, or something could not be decided.
	Valid bool `json:"valid"`
	// Operations and Keys count what was judged; Undecided counts the keys for which no verdict was found.
	Operations int `json:"operations"`
	Keys       int `json:"keys"`
	Undecided  int `json:"undecided,omitempty"`
	// Anomalies describes what was found, Suppressed counts what was found beyond the number that is described.
	Anomalies  []Anomaly `json:"anomalies,omitempty"`
	Suppressed int       `json:"suppressed,omitempty"`
	// Observed describes what is no anomaly at the level that was asked for, but worth knowing. ObservedCount counts it.
	Observed      []Anomaly `json:"observed,omitempty"`
	ObservedCount int       `json:"observed_count,omitempty"`
}

func newResult(checker string) Result { return Result{Checker: checker, Valid: true} }

// add records an anomaly about the operations.
func (r *Result) add(kind, key, text string, ops ...*Op) {
	r.Valid = false
	if len(r.Anomalies) == anomaliesMax {
		r.Suppressed++
		return
	}
	r.Anomalies = append(r.Anomalies, r.anomaly(kind, key, text, ops))
}

// observe records something that is no anomaly.
func (r *Result) observe(kind, key, text string, ops ...*Op) {
	r.ObservedCount++
	if len(r.Observed) < anomaliesMax {
		r.Observed = append(r.Observed, r.anomaly(kind, key, text, ops))
	}
}

func (r *Result) anomaly(kind, key, text string, ops []*Op) Anomaly {
	a := Anomaly{Checker: r.Checker, Kind: kind, Key: key}
	lines := []string{text}
	for _, op := range ops {
		a.Ops = append(a.Ops, op.ID)
		lines = append(lines, op.String())
	}
	a.Text = strings.Join(lines, "; ")
	return a
}

// Report is what all checkers of a workload found.
type Report struct {
	Valid bool `json:"valid"`
	// Operations, Failed and Unknown count the operations of the whole history.
	Operations int       `json:"operations"`
	Failed     int       `json:"failed"`
	Unknown    int       `json:"unknown"`
	Anomalies  []Anomaly `json:"anomalies"`
	Results    []Result  `json:"results"`
}

// NewReport puts the results of the checkers together.
func NewReport(h *History, results ...Result) Report {
	c := h.Counts()
	out := Report{
		Valid: true, Operations: c.Operations, Failed: c.Failed, Unknown: c.Unknown, Anomalies: []Anomaly{}, Results: results,
	}
	for i := range results {
		out.Valid = out.Valid && results[i].Valid
		out.Anomalies = append(out.Anomalies, results[i].Anomalies...)
	}
	return out
}

// Keys returns the keys that have an anomaly, in order.
func (r Report) Keys() []string {
	var keys []string
	for _, a := range r.Anomalies {
		if a.Key != "" {
			keys = append(keys, a.Key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// String returns the anomalies, one a line, "valid" when there are none.
func (r Report) String() string {
	if r.Valid {
		return "valid"
	}
	lines := make([]string, 0, len(r.Anomalies))
	for _, a := range r.Anomalies {
		lines = append(lines, a.String())
	}
	for _, res := range r.Results {
		if res.Suppressed > 0 {
			lines = append(lines, fmt.Sprintf("%s: %d more anomalies", res.Checker, res.Suppressed))
		}
	}
	return strings.Join(lines, "\n")
}
