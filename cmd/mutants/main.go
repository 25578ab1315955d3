// Command mutants builds each planted bug (package mutant) into the simulation and runs seeds until the simulation catches
// it, or into the tests of the package that has the rule it breaks. A bug that survives all seeds is a hole in the checkers. A failure counts only if the same test passes on the same
// seed without the bug. It is what `make mutants` runs, from the root of the module.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/caprockdb/caprock/pkg/mutant"
)

func main() {
	seeds := flag.Int("seeds", 40, "how many seeds each bug may survive")
	workers := flag.Int("workers", 2, "how many bugs are hunted at once")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: mutants [flags] [name…]   (all of them without a name)")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed, err := run(ctx, *seeds, *workers, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// run hunts the named bugs, or all, and returns how many were not caught.
func run(ctx context.Context, seeds, workers int, names []string) (failed int, err error) {
	wanted := mutant.All()
	if len(names) > 0 {
		wanted = nil
		for _, n := range names {
			if !slices.Contains(mutant.All(), mutant.Name(n)) {
				return 0, fmt.Errorf("no bug is called %q; there are %q", n, mutant.All())
			}
			wanted = append(wanted, mutant.Name(n))
		}
	}
	if seeds < 1 || workers < 1 {
		return 0, errors.New("at least one seed and one worker are needed")
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	clean := filepath.Join(dir, "clean")
	if err := os.Mkdir(clean, 0o700); err != nil {
		return 0, err
	}
	var all []string
	for _, name := range wanted {
		all = append(all, hunters[name]...)
	}
	if err := build(ctx, clean, "", all); err != nil {
		return 0, err
	}

	queue := make(chan mutant.Name)
	var out sync.Mutex // guards failed and the terminal
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for name := range queue {
				start := time.Now()
				got := hunt(ctx, dir, clean, name, seeds)
				out.Lock()
				if !got.caught {
					failed++
				}
				fmt.Println(got.line(name, time.Since(start)))
				out.Unlock()
			}
		})
	}
	for _, name := range wanted {
		queue <- name
	}
	close(queue)
	group.Wait()
	fmt.Printf("%d passed, %d failed\n", len(wanted)-failed, failed)
	return failed, ctx.Err()
}
