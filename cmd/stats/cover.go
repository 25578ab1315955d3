package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// What coverage is held against, in percent.
const (
	coverProtocol = 85
	coverAll      = 75
)

// protocolPackages are those whose coverage is held against coverProtocol, below the root of the module.
func protocolPackages() []string {
	return []string{
		"antientropy", "consensus", "pkg/causal", "pkg/kv", "pkg/membership", "pkg/meta", "pkg/node", "pkg/storage", "pkg/transport", "quorum", "ring",
	}
}

// isCounted leaves out what is a module of its own, which the tests of this one cannot cover.
func isCounted(dir string) bool {
	return !strings.HasPrefix(dir, "tools/")
}

// coverage is how many statements there are, and how many of them ran.
type coverage struct {
	statements, ran int
}

func (c coverage) percent() float64 {
	return 100 * float64(c.ran) / float64(max(c.statements, 1))
}

// block is a sequence of statements without a branch; a profile names it by file, begin and end.
type block struct {
	statements int
	ran        bool
}

// readProfile reads a cover profile and sums it up by directory. With -coverpkg each test binary writes a line for every block of all packages, so that
// a block occurs many times, and has run when it did so in any of them. Generated files, and all others that are not among files, are left out.
func readProfile(r io.Reader, files []file) (map[string]coverage, error) {
	known := make(map[string]bool, len(files))
	for _, f := range files {
		known[f.path] = true
	}
	blocks := make(map[string]block)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "mode:") {
			continue
		}
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			return nil, fmt.Errorf("the profile has a line %q", lines.Text())
		}
		statements, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("the profile has a line %q: %w", lines.Text(), err)
		}
		blocks[fields[0]] = block{statements, blocks[fields[0]].ran || fields[2] != "0"}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	dirs := make(map[string]coverage)
	for name, b := range blocks {
		file, ok := below(known, name)
		if !ok || !isCounted(path.Dir(file)) {
			continue
		}
		c := dirs[path.Dir(file)]
		c.statements += b.statements
		if b.ran {
			c.ran += b.statements
		}
		dirs[path.Dir(file)] = c
	}
	return dirs, nil
}

// below finds the file of a block among the known ones. The profile names it by its import path: a host and an owner or more stand before the path.
func below(known map[string]bool, name string) (string, bool) {
	name, _, _ = strings.Cut(name, ":")
	for {
		if known[name] {
			return name, true
		}
		_, rest, ok := strings.Cut(name, "/")
		if !ok {
			return "", false
		}
		name = rest
	}
}

func printCoverage(out io.Writer, dirs map[string]coverage) {
	var protocol, all coverage
	fmt.Fprintln(out, "\nstatements that ran in any test, by package (* a protocol)")
	for _, dir := range slices.SortedFunc(maps.Keys(dirs), cmp.Compare[string]) {
		c, mark := dirs[dir], ' '
		all.statements, all.ran = all.statements+c.statements, all.ran+c.ran
		least := 0.0
		if slices.Contains(protocolPackages(), dir) {
			mark, least = '*', coverProtocol
			protocol.statements, protocol.ran = protocol.statements+c.statements, protocol.ran+c.ran
		}
		printCovered(out, fmt.Sprintf("%c %s", mark, dir), c, least)
	}
	printCovered(out, "* protocols together", protocol, coverProtocol)
	printCovered(out, "  all", all, coverAll)
}

func printCovered(out io.Writer, name string, c coverage, least float64) {
	note := ""
	if c.percent() < least {
		note = fmt.Sprintf("   below %.0f %%", least)
	}
	fmt.Fprintf(out, "  %-28s %6.1f %% of %6d%s\n", name, c.percent(), c.statements, note)
}
