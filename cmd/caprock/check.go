package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// checkPause is how long after an unfinished answer the same check is asked for again.
const checkPause = 200 * time.Millisecond

// errReplicasDiffer ends `caprock check` when it has found what it looks for.
var errReplicasDiffer = errors.New("replicas hold different states")

// checkReport is one partition's check, as a node answers it.
type checkReport struct {
	Partition int      `json:"partition"`
	Index     uint64   `json:"index"`
	Done      bool     `json:"done"`
	Agree     []string `json:"agree"`
	Differ    []string `json:"differ"`
	Split     []string `json:"split"`
	Silent    []string `json:"silent"`
}

// result says in a few words what came of it.
func (r *checkReport) result() string {
	switch {
	case len(r.Differ) > 0:
		return "different: " + strings.Join(r.Differ, " ") + ", rebuilt from the others"
	case r.Done && len(r.Split) > 1:
		return "no majority agrees"
	case len(r.Silent) > 0:
		return "equal, as far as known"
	default:
		return "equal"
	}
}

func newCheckCommand(a *app) *cobra.Command {
	var (
		c      connection
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "check [partition…]",
		Short: "Compare the replicas of partitions: do all hold the same strong state?",
		Long: `Compare the replicas of partitions: do all hold the same strong state?

Every replica hashes its state at the same entry of the log. A replica that differs from the majority is quarantined and
rebuilt from its peers. Without arguments all partitions are checked, one after the other. --timeout bounds each.

Exit code 4 when replicas differed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			reports, err := c.check(cmd.Context(), args)
			if err != nil {
				return err
			}
			if err := output.print(a, reports, func() error { printChecks(a, reports); return nil }); err != nil {
				return err
			}
			for _, r := range reports {
				if len(r.Differ) > 0 || r.Done && len(r.Split) > 1 {
					return kv.Errorf(kv.CodeVersionMismatch, "partition %d: %w", r.Partition, errReplicasDiffer)
				}
			}
			return nil
		},
	}
	output.addFlag(cmd.Flags(), formatTable)
	c.addFlags(a, cmd.Flags())
	return cmd
}

// check checks the partitions, all of them when none is named.
func (c *connection) check(ctx context.Context, args []string) ([]checkReport, error) {
	var partitions []int
	for _, arg := range args {
		p, err := strconv.ParseUint(arg, 10, 16)
		if err != nil {
			return nil, usageError{fmt.Errorf("%q is no number of a partition", arg)}
		}
		partitions = append(partitions, int(p))
	}
	if len(args) == 0 {
		status, err := c.status(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range status.Partitions {
			partitions = append(partitions, p.Partition)
		}
	}
	reports := make([]checkReport, 0, len(partitions))
	err := c.with(ctx, func(ctx context.Context, cl *client.Client) error {
		for _, p := range partitions {
			r, err := c.checkOne(ctx, cl, p)
			if err != nil {
				return err
			}
			reports = append(reports, r)
		}
		return nil
	})
	return reports, err
}

// checkOne asks until the check is done or its time is over, in which case it returns what is known.
func (c *connection) checkOne(ctx context.Context, cl *client.Client, p int) (r checkReport, err error) {
	for start := time.Now(); ; {
		raw, err := cl.StatusContext(ctx, fmt.Sprintf("check/%d", p))
		known := err == nil
		if known {
			r = checkReport{}
			if err := json.Unmarshal(raw, &r); err != nil {
				return r, fmt.Errorf("the answer about partition %d: %w", p, err)
			}
		}
		switch expired := time.Since(start) > c.timeout || ctx.Err() != nil; {
		case known && r.Done, expired && r.Index > 0:
			return r, nil
		case err != nil && (expired || !kv.AsError(err).Retryable):
			// A question changes nothing: however it failed, there is no outcome to be unsure of.
			return r, kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
		time.Sleep(checkPause)
	}
}

func printChecks(a *app, reports []checkReport) {
	rows := make([]table.Row, 0, len(reports))
	for i := range reports {
		r := &reports[i]
		rows = append(rows, table.Row{r.Partition, r.Index, r.result(), strings.Join(r.Agree, " "), strings.Join(r.Silent, " ")})
	}
	a.printTable(table.Row{"partition", "at entry", "result", "agree", "not known"}, rows)
}
