package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/caprockdb/caprock/api"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
)

// faultStore translates the injector's faults from and to JSON: an array of network rules, up to one fault of the disk
// and up to one of the clock.
type faultStore struct{ injector *node.Injector }

var _ api.FaultStore = faultStore{}

// diskJSON is a fault of the disk as users write it.
type diskJSON struct {
	Disk  string `json:"disk"`
	Delay string `json:"delay,omitempty"`
}

// clockJSON is a fault of the clock as users write it.
type clockJSON struct {
	Clock string `json:"clock"`
}

// Rules implements api.FaultStore.
func (s faultStore) Rules() json.RawMessage {
	raw, err := json.Marshal(faultElements(s.injector.InForce()))
	if err != nil { // faults are plain data that came in as JSON
		panic(err)
	}
	return raw
}

// Set implements api.FaultStore.
func (s faultStore) Set(raw json.RawMessage) error {
	set, err := parseFaults(raw)
	if err != nil {
		return err
	}
	return s.injector.Set(set)
}

// Clear implements api.FaultStore.
func (s faultStore) Clear() { s.injector.Clear() }

// faultElements lists the faults as they are written in JSON. It is never nil.
func faultElements(s node.FaultSet) []any {
	out := make([]any, 0, len(s.Network)+2)
	for _, r := range s.Network {
		out = append(out, r)
	}
	if s.Disk.Mode != storage.DiskHealthy {
		d := diskJSON{Disk: string(s.Disk.Mode)}
		if s.Disk.Delay != 0 {
			d.Delay = s.Disk.Delay.String()
		}
		out = append(out, d)
	}
	if s.Clock != 0 {
		out = append(out, clockJSON{s.Clock.String()})
	}
	return out
}

// parseFaults reads what faultElements wrote, or a user. The set is not validated.
func parseFaults(raw json.RawMessage) (set node.FaultSet, err error) {
	var elements []json.RawMessage
	if err := json.Unmarshal(raw, &elements); err != nil {
		return set, fmt.Errorf("the body must be a JSON array of faults: %w", err)
	}
	if elements == nil {
		return set, errors.New("the body must be a JSON array of faults, not null")
	}
	disks, clocks := 0, 0
	for i, element := range elements {
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(element, &keys); err != nil || keys == nil {
			return set, fmt.Errorf("fault %d of the array is no JSON object", i+1)
		}
		_, isDisk := keys["disk"]
		_, isClock := keys["clock"]
		switch {
		case isDisk:
			disks++
			set.Disk, err = parseDisk(element)
		case isClock:
			clocks++
			set.Clock, err = parseClock(element)
		default:
			var rule transport.Rule
			err = json.Unmarshal(element, &rule)
			set.Network = append(set.Network, rule)
		}
		if err != nil {
			return set, fmt.Errorf("fault %d of the array: %w", i+1, err)
		}
	}
	if disks > 1 || clocks > 1 {
		return set, errors.New("there can be one fault of the disk and one of the clock at a time")
	}
	return set, nil
}

func parseDisk(raw json.RawMessage) (storage.DiskFault, error) {
	var in diskJSON
	if err := decodeStrictly(raw, &in); err != nil {
		return storage.DiskFault{}, err
	}
	out := storage.DiskFault{Mode: storage.DiskMode(in.Disk)}
	if in.Delay != "" {
		var err error
		if out.Delay, err = time.ParseDuration(in.Delay); err != nil {
			return storage.DiskFault{}, fmt.Errorf("delay is %q: a duration such as \"50ms\"", in.Delay)
		}
	}
	if out.Mode == storage.DiskHealthy {
		return storage.DiskFault{}, errors.New("disk names no fault: full, low, error, slow or volatile")
	}
	return out, out.Validate()
}

func parseClock(raw json.RawMessage) (time.Duration, error) {
	var in clockJSON
	if err := decodeStrictly(raw, &in); err != nil {
		return 0, err
	}
	skew, err := time.ParseDuration(in.Clock)
	if err != nil || skew == 0 {
		return 0, fmt.Errorf("clock is %q: a duration to add to it such as \"-10m\"", in.Clock)
	}
	return skew, nil
}

// decodeStrictly refuses unknown fields: a fault that silently does less makes a test pass that proves nothing.
func decodeStrictly(raw json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
