package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// runLines is from how many equal lines on a run counts.
const runLines = 10

// place is where a run begins: a file and the index of a line of its code.
type place struct {
	file, line int
}

// duplicate is a sequence of lines that stands in several places.
type duplicate struct {
	lines  int
	places []string
	// test is whether all places but one, or all, are in tests: then the product has it at most once.
	test bool
}

// duplicated finds the runs of at least least lines that stand in more than one place, each as long as it can be, the longest first. A run does not
// overlap with itself.
func duplicated(files []file, least int) []duplicate {
	found := make(map[string]map[place]bool)
	for _, same := range windows(files, least) {
		for i, a := range same {
			for _, b := range same[i+1:] {
				lines := common(files, a, b)
				if lines < least {
					continue
				}
				text := textOf(files[a.file].code[a.line : a.line+lines])
				if found[text] == nil {
					found[text] = make(map[place]bool)
				}
				found[text][a], found[text][b] = true, true
			}
		}
	}
	var runs []duplicate
	for text, places := range found {
		r := duplicate{lines: strings.Count(text, "\n")}
		product := 0
		for p := range places {
			f := files[p.file]
			if !f.test {
				product++
			}
			last := f.code[p.line+r.lines-1].number
			r.places = append(r.places, fmt.Sprintf("%s:%d-%d", f.path, f.code[p.line].number, last))
		}
		r.test = product < 2
		slices.Sort(r.places)
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b duplicate) int {
		return cmp.Or(cmp.Compare(b.lines, a.lines), slices.Compare(a.places, b.places))
	})
	return runs
}

// windows groups the places where the same least lines begin.
func windows(files []file, least int) map[string][]place {
	all := make(map[string][]place)
	for i, f := range files {
		for line := 0; line+least <= len(f.code); line++ {
			text := textOf(f.code[line : line+least])
			all[text] = append(all[text], place{i, line})
		}
	}
	return all
}

func textOf(lines []codeLine) string {
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(l.text)
		text.WriteByte('\n')
	}
	return text.String()
}

// common returns how many lines a and b, where a is the first, have in common, and 0 where the lines before them are equal too: the run that begins
// there has these lines.
func common(files []file, a, b place) int {
	left, right := files[a.file].code, files[b.file].code
	if a.line > 0 && b.line > 0 && left[a.line-1].text == right[b.line-1].text {
		return 0
	}
	n := 0
	for a.line+n < len(left) && b.line+n < len(right) && left[a.line+n].text == right[b.line+n].text {
		if a.file == b.file && a.line+n == b.line {
			break
		}
		n++
	}
	return n
}

func printRuns(out io.Writer, runs []duplicate) {
	for _, tests := range []bool{false, true} {
		wanted := slices.DeleteFunc(slices.Clone(runs), func(r duplicate) bool { return r.test != tests })
		name := "product"
		if tests {
			name = "tests"
		}
		fmt.Fprintf(out, "\nequal runs of %d lines or more, %s: %d\n", runLines, name, len(wanted))
		for _, r := range wanted {
			fmt.Fprintf(out, "  %5d  %s\n", r.lines, strings.Join(r.places, "  "))
		}
	}
}
