package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caprockdb/caprock/pkg/verify"
	"github.com/caprockdb/caprock/pkg/verify/live"
)

// verifySeedMax bounds the seeds that are drawn: short enough to type again.
const verifySeedMax = 1_000_000

// verifyOptions are the flags of `caprock verify` that are not the run's own.
type verifyOptions struct {
	output  outputFormat
	verbose bool
}

func newVerifyCommand(a *app) *cobra.Command {
	cfg := live.DefaultConfig()
	var options verifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Break a cluster on purpose, and check what its clients saw",
		Long: `Break a cluster on purpose, and check what its clients saw.

Starts a cluster of processes of this binary, or attaches to the one that --endpoints names, runs a workload while
nemeses inject faults, mends everything, waits until the replicas agree, and checks the history of all operations
against what each level promises. A fault that was not seen to take effect makes the result invalid.

Exit code 0: valid; 1: not valid, or no verdict; 2: usage.

Workloads: ` + strings.Join(verify.Workloads(), ", ") + `.
Nemeses: ` + strings.Join(live.Nemeses(), ", ") + `.`,
		Example: `  caprock verify --nemesis partition,kill --duration 20s
  caprock verify --nodes 5 --workload causal --nemesis all --duration 1m --seed 7 --out /tmp/run
  caprock verify --endpoints http://127.0.0.1:8081,http://127.0.0.1:8082,http://127.0.0.1:8083 --nemesis partition`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return runVerify(cmd.Context(), a, cfg, options)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	addVerifyFlags(fs, &cfg)
	fs.BoolVarP(&options.verbose, "verbose", "v", false, "tell of each fault as it happens")
	options.output.addFlag(fs, formatTable)
	return cmd
}

func addVerifyFlags(fs *pflag.FlagSet, cfg *live.Config) {
	fs.IntVar(&cfg.Nodes, "nodes", cfg.Nodes, "number of nodes to start")
	fs.StringVar(&cfg.Workload, "workload", cfg.Workload, "what the clients do")
	fs.StringSliceVar(&cfg.Nemeses, "nemesis", cfg.Nemeses, "what goes wrong, comma-separated")
	fs.DurationVar(&cfg.Duration, "duration", cfg.Duration, "how long the workload runs; mending and checking come on top")
	fs.IntVar(&cfg.Rate, "rate", cfg.Rate, "operations a second of all clients, at most; 0: as fast as the clients go")
	fs.IntVar(&cfg.Clients, "clients", cfg.Clients, "number of concurrent clients")
	fs.IntVar(&cfg.Keys, "keys", cfg.Keys, "number of keys in use at a time (set, session: of each client)")
	fs.Uint64Var(&cfg.Seed, "seed", 0, "decides the faults and the operations; 0: draw one and print it")
	fs.DurationVar(&cfg.ClockAhead, "clock-ahead", cfg.ClockAhead, "how far ahead clocks go where writes are eventual, at most; the run waits as long for replicas to agree")
	fs.StringVar(&cfg.Network, "network", cfg.Network, "how links are cut: "+live.NetworkInjector+", or "+live.NetworkNetns+" (as root on Linux)")
	fs.StringSliceVar(&cfg.Endpoints, "endpoints", nil, "HTTP `addresses` of all nodes of a running cluster, which must have been started with --dev")
	fs.StringVar(&cfg.DataDir, "data-dir", "", "`directory` that keeps the nodes' data (default a temporary one, removed at the end)")
	fs.StringVar(&cfg.OutDir, "out", "", "`directory` for history, report, timeline, page and logs (default a temporary one, kept if the result is not valid)")
}

// errNotValid is the end of a run that found something.
var errNotValid = errors.New("not valid")

// runVerify prepares the directories, runs, and prints the result.
func runVerify(parent context.Context, a *app, cfg live.Config, options verifyOptions) (err error) {
	ctx, stop := untilSignal(parent)
	defer stop()
	if cfg.Seed == 0 {
		cfg.Seed = 1 + rand.Uint64N(verifySeedMax)
		fmt.Fprintf(a.stderr, "seed %d\n", cfg.Seed)
	}
	removeData, err := verifyDirectory(&cfg.DataDir, "--data-dir", "caprock-verify-data-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeData()) }()
	removeOut, err := verifyDirectory(&cfg.OutDir, "--out", "caprock-verify-")
	if err != nil {
		return err
	}
	deps := live.Deps{Logger: verifyLogger(a, options.verbose)}
	if deps.Command, err = nodeCommand(a); err != nil {
		return err
	}
	bar := newProgressBar(a, cfg.Duration)
	deps.Progress = bar.update()
	report, err := live.Run(ctx, cfg, deps)
	bar.clear()
	if err != nil {
		// Without nodes there are no logs, and the directory is of no use to anybody.
		if os.Remove(cfg.OutDir) != nil {
			fmt.Fprintln(a.stderr, "the nodes' logs are in", cfg.OutDir)
		}
		return err
	}
	if err := options.output.print(a, report, func() error { return printVerdict(a, report) }); err != nil {
		return err
	}
	if report.Valid {
		if err := removeOut(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(cfg.OutDir); err == nil {
		fmt.Fprintln(a.stderr, "artefacts:", cfg.OutDir)
	}
	if !report.Valid {
		return fmt.Errorf("%w: %d anomalies; run it again with --seed %d", errNotValid, len(report.Anomalies), report.Seed)
	}
	return nil
}

// verifyDirectory makes the directory, a temporary one where none is named. remove removes it only if it is temporary.
func verifyDirectory(path *string, flag, pattern string) (remove func() error, err error) {
	if *path == "" {
		if *path, err = os.MkdirTemp("", pattern); err != nil {
			return nil, fmt.Errorf("temporary directory: %w", err)
		}
		temporary := *path
		return func() error { return os.RemoveAll(temporary) }, nil
	}
	if *path, err = filepath.Abs(*path); err == nil {
		err = os.MkdirAll(*path, 0o750)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return func() error { return nil }, nil
}

// nodeCommand returns what makes the processes of the nodes. They die with this process at once, also a paused one, which
// would take note of nothing milder.
func nodeCommand(a *app) (func(live.Spec) *exec.Cmd, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return func(s live.Spec) *exec.Cmd {
		cmd := exec.Command(binary, startArgs(s)...)
		cmd.Env = withoutSettings(a.environ)
		cmd.SysProcAttr = childAttributes(syscall.SIGKILL)
		return cmd
	}, nil
}

func verifyLogger(a *app, verbose bool) *slog.Logger {
	if !verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// printVerdict writes the result for people.
func printVerdict(a *app, r live.Report) error {
	verdict := "valid"
	if !r.Valid {
		verdict = "NOT VALID"
	}
	a.printTable(table.Row{"result", "workload", "operations", "failed", "unknown", "faults", "leader changes", "seed"},
		[]table.Row{{verdict, r.Workload, r.Operations, r.Failed, r.Unknown, r.Faults, r.LeaderChanges, r.Seed}})
	if len(r.Timeline) > 0 {
		var rows []table.Row
		for _, e := range r.Timeline {
			text := e.Effect
			if e.Error != "" {
				text = "FAILED: " + e.Error
			}
			rows = append(rows, table.Row{fmt.Sprintf("%.1f s", e.From), fmt.Sprintf("%.1f s", e.To), e.Fault, text})
		}
		fmt.Fprintln(a.stdout)
		a.printTable(table.Row{"from", "to", "fault", "effect"}, rows)
	}
	for _, anomaly := range r.Anomalies {
		fmt.Fprintf(a.stdout, "\n%s\n", anomaly)
	}
	return nil
}
