package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// slowTests is how many of the slowest tests are named.
const slowTests = 10

// timed is a test and how long it took.
type timed struct {
	name string
	took time.Duration
}

// slowest reads the log of go test -json and returns the tests that took longest. A part of a test counts towards the whole.
func slowest(r io.Reader, most int) ([]timed, error) {
	var all []timed
	decoder := json.NewDecoder(r)
	for {
		var event struct {
			Action, Package, Test string
			Elapsed               float64
		}
		err := decoder.Decode(&event)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the log of go test -json: %w", err)
		}
		ended := event.Action == "pass" || event.Action == "fail"
		if ended && event.Test != "" && !strings.Contains(event.Test, "/") {
			took := time.Duration(event.Elapsed * float64(time.Second))
			all = append(all, timed{path.Base(event.Package) + "." + event.Test, took})
		}
	}
	slices.SortStableFunc(all, func(a, b timed) int { return cmp.Or(cmp.Compare(b.took, a.took), cmp.Compare(a.name, b.name)) })
	return all[:min(len(all), most)], nil
}

func printSlowest(out io.Writer, tests []timed) {
	fmt.Fprintf(out, "\nslowest %d tests\n", len(tests))
	for _, t := range tests {
		fmt.Fprintf(out, "  %6.1f s  %s\n", t.took.Seconds(), t.name)
	}
}
