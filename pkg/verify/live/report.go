package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/caprockdb/caprock/pkg/verify"
)

// Report is the result of a run.
type Report struct {
	Valid bool `json:"valid"`
	// Operations counts all that were made, final reads included; Failed those that certainly had no effect or, of reads,
	// no answer; Unknown those whose effect nobody knows.
	Operations int `json:"operations"`
	Failed     int `json:"failed"`
	Unknown    int `json:"unknown"`
	// Faults counts the faults that were injected and seen to take effect.
	Faults int `json:"faults"`
	// LeaderChanges counts the leaderships of partitions that were seen, beyond the first of each partition.
	LeaderChanges int              `json:"leader_changes"`
	Anomalies     []verify.Anomaly `json:"anomalies"`
	Seed          uint64           `json:"seed"`

	Workload string         `json:"workload"`
	Nemeses  []string       `json:"nemesis"`
	Nodes    int            `json:"nodes"`
	Clients  int            `json:"clients"`
	Network  string         `json:"network"`
	Seconds  float64        `json:"duration_seconds"`
	ByFault  map[string]int `json:"by_fault"`
	Timeline []Event        `json:"timeline"`
	Checks   []Check        `json:"checks"`
}

// Event is one fault of the timeline. Times are seconds since the workload began.
type Event struct {
	Fault string   `json:"fault"`
	Nodes []string `json:"nodes"`
	// From is when the fault was in force and seen to be; To is when everything served again.
	From float64 `json:"from"`
	To   float64 `json:"to"`
	// Effect is what the fault was seen to do, Error what went wrong with it.
	Effect string `json:"effect,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Check is what one checker judged. Its anomalies are among the report's.
type Check struct {
	Checker    string `json:"checker"`
	Valid      bool   `json:"valid"`
	Operations int    `json:"operations"`
	Keys       int    `json:"keys"`
	Undecided  int    `json:"undecided,omitempty"`
	// Observed counts what is no anomaly at the level that was asked for, but worth knowing.
	Observed int `json:"observed,omitempty"`
	// Suppressed counts anomalies beyond those that are described.
	Suppressed int `json:"suppressed,omitempty"`
}

// seconds rounds to what is worth reading.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// judge puts together what the checkers and the harness found.
func (r *Report) judge(checked verify.Report, own []verify.Anomaly) {
	r.Operations, r.Failed, r.Unknown = checked.Operations, checked.Failed, checked.Unknown
	r.Anomalies = append(append([]verify.Anomaly{}, own...), checked.Anomalies...)
	r.Valid = checked.Valid && len(own) == 0
	for _, res := range checked.Results {
		r.Checks = append(r.Checks, Check{
			Checker: res.Checker, Valid: res.Valid, Operations: res.Operations, Keys: res.Keys, Undecided: res.Undecided,
			Observed: res.ObservedCount, Suppressed: res.Suppressed,
		})
		if res.Undecided > 0 {
			r.Anomalies = append(r.Anomalies, verify.Anomaly{
				Checker: res.Checker, Kind: "undecided",
				Text: fmt.Sprintf("no verdict was found for %d keys within the limits of the search", res.Undecided),
			})
		}
	}
}

// record counts an event.
func (r *Report) record(e Event) {
	r.Timeline = append(r.Timeline, e)
	if e.Error == "" {
		r.Faults++
		r.ByFault[e.Fault]++
	}
}

// visualKeysMax is how many keys the page shows when none has an anomaly.
const visualKeysMax = 4

// The names of the artefacts. The nodes' logs lie beside them.
const (
	fileHistory  = "history.jsonl"
	fileReport   = "report.json"
	fileTimeline = "timeline.txt"
	fileVisual   = "linearizability.html"
)

// writeArtefacts writes the history, the report, the timeline and the page of the interesting keys.
func writeArtefacts(dir string, r *Report, h *verify.History) error {
	return errors.Join(
		writeFile(filepath.Join(dir, fileHistory), h.Encode),
		writeFile(filepath.Join(dir, fileReport), func(f io.Writer) error {
			enc := json.NewEncoder(f)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			return enc.Encode(r)
		}),
		writeFile(filepath.Join(dir, fileTimeline), r.writeTimeline),
		writeFile(filepath.Join(dir, fileVisual), func(f io.Writer) error {
			return verify.Visualize(h, interestingKeys(r, h), f)
		}),
	)
}

// interestingKeys are those with an anomaly, else a few of those that the workload used last, when it had met most faults.
func interestingKeys(r *Report, h *verify.History) []string {
	if keys := (verify.Report{Anomalies: r.Anomalies}).Keys(); len(keys) > 0 {
		return keys
	}
	var keys []string
	seen := map[string]bool{}
	ops := h.Ops()
	for i := len(ops) - 1; i >= 0 && len(keys) < visualKeysMax; i-- {
		if !ops[i].Final && !seen[ops[i].Key] {
			seen[ops[i].Key] = true
			keys = append(keys, ops[i].Key)
		}
	}
	return keys
}

func (r *Report) writeTimeline(f io.Writer) error {
	for _, e := range r.Timeline {
		text := e.Effect
		if e.Error != "" {
			text = "FAILED: " + e.Error
		}
		if _, err := fmt.Fprintf(f, "%8.3f s to %8.3f s  %-20s %v  %s\n", e.From, e.To, e.Fault, e.Nodes, text); err != nil {
			return err
		}
	}
	return nil
}

// writeFile creates a file and fills it.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
