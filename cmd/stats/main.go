// Command stats prints the measures of the code: sizes of files and functions, parameters of constructors, runs of lines that stand twice, and, of
// what `make cover` has written, the coverage of each package and the slowest tests. It judges nothing, and a measure beyond its aim is marked. It is
// what `make stats` runs, from the root of the module.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
)

func main() {
	cover := flag.String("cover", "", "the cover profile that `make cover` wrote, if there is one")
	tests := flag.String("tests", "", "the log of go test -json that `make cover` wrote, if there is one")
	root := flag.String("root", ".", "the root of the module")
	flag.Parse()
	if err := report(os.Stdout, *root, *cover, *tests); err != nil {
		fmt.Fprintln(os.Stderr, "stats:", err)
		os.Exit(1)
	}
}

// report prints all measures; those of a profile or a log that is not there are left out, and it says so.
func report(out io.Writer, root, cover, tests string) error {
	files, err := read(os.DirFS(root))
	if err != nil {
		return err
	}
	printShape(out, files)
	printRuns(out, duplicated(files, runLines))
	if err := withFile(out, cover, "cover profile", func(r io.Reader) error {
		blocks, err := readProfile(r, files)
		if err == nil {
			printCoverage(out, blocks)
		}
		return err
	}); err != nil {
		return err
	}
	return withFile(out, tests, "log of tests", func(r io.Reader) error {
		slow, err := slowest(r, slowTests)
		if err == nil {
			printSlowest(out, slow)
		}
		return err
	})
}

// withFile hands on the file at path. That there is none is no error, since a profile takes minutes to make.
func withFile(out io.Writer, path, what string, use func(io.Reader) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(out, "\nno %s: make cover writes one\n", what)
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return use(f)
}
