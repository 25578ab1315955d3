package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

// What the measures are held against.
const (
	fileLinesP90   = 400
	fileLinesMax   = 800
	funcLinesP90   = 50
	funcLinesMax   = 100
	constructorMax = 5
)

// spread is how large the members of a group are: of one in two, of nine in ten, of all.
type spread struct {
	count, p50, p90, max int
}

// spreadOf takes the nearest rank: pN is the smallest size that N % of the members do not exceed.
func spreadOf(sizes []int) spread {
	if len(sizes) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(sizes))
	rank := func(percent int) int { return sorted[(len(sorted)*percent+99)/100-1] }
	return spread{count: len(sorted), p50: rank(50), p90: rank(90), max: rank(100)}
}

// sized is a thing that has a size: a file, a function, a constructor's parameters.
type sized struct {
	name string
	size int
}

// over returns those that are larger than the limit, the largest first.
func over(things []sized, limit int) []sized {
	var found []sized
	for _, t := range things {
		if t.size > limit {
			found = append(found, t)
		}
	}
	slices.SortStableFunc(found, func(a, b sized) int { return cmp.Compare(b.size, a.size) })
	return found
}

func sizes(things []sized) []int {
	all := make([]int, len(things))
	for i, t := range things {
		all[i] = t.size
	}
	return all
}

// shape holds the sizes of a group of files.
type shape struct {
	files, funcs []sized
	// constructors have the number of their parameters as size.
	constructors []sized
}

func shapeOf(files []file) shape {
	var s shape
	for _, f := range files {
		s.files = append(s.files, sized{f.path, f.lines})
		for _, fn := range f.funcs {
			s.funcs = append(s.funcs, sized{fmt.Sprintf("%s:%d %s", f.path, fn.line, fn.name), fn.lines})
			if isConstructor(fn.name) && !f.test {
				s.constructors = append(s.constructors, sized{fmt.Sprintf("%s:%d %s", f.path, fn.line, fn.name), fn.params})
			}
		}
	}
	return s
}

// isConstructor tells New, NewThing and newThing from Newest and renew.
func isConstructor(name string) bool {
	rest, ok := strings.CutPrefix(name, "New")
	if !ok {
		rest, ok = strings.CutPrefix(name, "new")
	}
	return ok && (rest == "" || unicode.IsUpper([]rune(rest)[0]))
}

func printShape(out io.Writer, files []file) {
	product := slices.DeleteFunc(slices.Clone(files), func(f file) bool { return f.test })
	tests := slices.DeleteFunc(slices.Clone(files), func(f file) bool { return !f.test })
	fmt.Fprintln(out, "files and functions, in lines (without generated files)")
	fmt.Fprintf(out, "%-22s %6s %6s %6s %6s\n", "", "count", "p50", "p90", "max")
	for _, group := range []struct {
		name  string
		files []file
	}{{"all", files}, {"product", product}, {"tests", tests}} {
		s := shapeOf(group.files)
		printSpread(out, "files, "+group.name, spreadOf(sizes(s.files)), fileLinesP90, fileLinesMax)
		printSpread(out, "functions, "+group.name, spreadOf(sizes(s.funcs)), funcLinesP90, funcLinesMax)
	}
	s := shapeOf(files)
	printOver(out, "files over", s.files, fileLinesP90)
	printOver(out, "files over", s.files, fileLinesMax)
	fmt.Fprintf(out, "\nfunctions over %d lines: %d\n", funcLinesP90, len(over(s.funcs, funcLinesP90)))
	printOver(out, "functions over", s.funcs, funcLinesMax)
	printOver(out, "parameters of constructors over", s.constructors, constructorMax)
}

func printSpread(out io.Writer, name string, s spread, p90, most int) {
	note := ""
	if s.p90 > p90 || s.max > most {
		note = fmt.Sprintf("   beyond p90 %d, max %d", p90, most)
	}
	fmt.Fprintf(out, "%-22s %6d %6d %6d %6d%s\n", name, s.count, s.p50, s.p90, s.max, note)
}

func printOver(out io.Writer, what string, things []sized, limit int) {
	found := over(things, limit)
	fmt.Fprintf(out, "\n%s %d: %d\n", what, limit, len(found))
	for _, t := range found {
		fmt.Fprintf(out, "  %5d  %s\n", t.size, t.name)
	}
}
