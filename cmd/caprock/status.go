package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// statusReport is what `caprock status` prints: one node's view of the cluster, and the partitions' leaders, for which every
// endpoint is asked, because a node knows only the leaders of what it replicates itself.
type statusReport struct {
	Status     json.RawMessage   `json:"status"`
	Partitions []partitionReport `json:"partitions"`
	// Hints are what the nodes that answered keep for others.
	Hints []hintReport `json:"hints,omitempty"`
}

// partitionReport is one partition; Leader is empty while no endpoint knows it.
type partitionReport struct {
	Partition int      `json:"partition"`
	Replicas  []string `json:"replicas"`
	Leader    string   `json:"leader,omitempty"`
	Term      uint64   `json:"term,omitempty"`
	// Healing are the replicas that have lost rows of the eventual lane and count for nothing until they have got them back, as
	// far as the endpoints say so.
	Healing []string `json:"healing,omitempty"`
	// Repair is what the node that was asked says of its own replica.
	Repair *repairReport `json:"repair,omitempty"`
}

type repairReport struct {
	State string `json:"state"`
}

// heals reports whether the replica of the node that was asked has lost rows.
func (p *partitionReport) heals() bool {
	return p.Repair != nil && p.Repair.State != "" && p.Repair.State != "ok"
}

// replicas names the replicas, and says which of them heal.
func (p *partitionReport) replicas() string {
	out := slices.Clone(p.Replicas)
	for i, name := range out {
		if slices.Contains(p.Healing, name) {
			out[i] += " (healing)"
		}
	}
	return strings.Join(out, " ")
}

// nodeStatus is as much of a node's status as the table shows. The other formats print all of it.
type nodeStatus struct {
	Node       string            `json:"node"`
	Epoch      uint64            `json:"epoch"`
	MetaLeader string            `json:"meta_leader"`
	Ready      map[string]string `json:"ready"`
	Nodes      []struct {
		Name  string `json:"name"`
		Alive bool   `json:"alive"`
		HTTP  string `json:"http"`
		GRPC  string `json:"grpc"`
		Zone  string `json:"zone"`
	} `json:"nodes"`
	Hints []hintReport `json:"hints"`
}

// hintReport is what a node keeps for another, which it hands over when that is back.
type hintReport struct {
	Holder string  `json:"holder,omitempty"`
	Target string  `json:"target"`
	Hints  int     `json:"hints"`
	Bytes  int64   `json:"bytes"`
	Oldest float64 `json:"oldest_seconds"`
}

// row is how a table shows it.
func (h *hintReport) row() table.Row {
	oldest := time.Duration(h.Oldest * float64(time.Second)).Round(time.Second)
	return table.Row{h.Holder, h.Target, h.Hints, h.Bytes, oldest.String()}
}

func newStatusCommand(a *app) *cobra.Command {
	var (
		c      connection
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes, the partitions and who leads them",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := c.status(cmd.Context())
			if err != nil {
				return err
			}
			return output.print(a, report, func() error { return printStatus(a, report) })
		},
	}
	output.addFlag(cmd.Flags(), formatTable)
	c.addFlags(a, cmd.Flags())
	return cmd
}

// status asks all endpoints at once. One that answers is enough.
func (c *connection) status(ctx context.Context) (statusReport, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	views := make([]endpointView, len(c.endpoints))
	var all sync.WaitGroup
	for i, endpoint := range c.endpoints {
		all.Go(func() { views[i] = c.view(ctx, endpoint) })
	}
	all.Wait()
	var report statusReport
	var heard []string
	merged, healing := map[int]partitionReport{}, map[int][]string{}
	for _, v := range views {
		if v.err != nil {
			continue
		}
		report.Status = v.status
		if !slices.Contains(heard, v.node) { // two addresses may lead to one node
			heard = append(heard, v.node)
			report.Hints = append(report.Hints, v.hints...)
		}
		for _, p := range v.partitions {
			if p.heals() {
				healing[p.Partition] = append(healing[p.Partition], v.node)
			}
			p.Repair = nil
			if known, ok := merged[p.Partition]; !ok || p.Leader != "" && (known.Leader == "" || p.Term > known.Term) {
				merged[p.Partition] = p
			}
		}
	}
	for id, names := range healing {
		p := merged[id]
		slices.Sort(names)
		p.Healing = slices.Compact(names)
		merged[id] = p
	}
	if report.Status == nil {
		return statusReport{}, views[0].err
	}
	report.Partitions = slices.SortedFunc(maps.Values(merged), func(a, b partitionReport) int { return cmp.Compare(a.Partition, b.Partition) })
	return report, nil
}

// endpointView is what one endpoint answered.
type endpointView struct {
	status     json.RawMessage
	node       string
	partitions []partitionReport
	hints      []hintReport
	err        error
}

func (c *connection) view(ctx context.Context, endpoint string) (v endpointView) {
	only := connection{endpoints: []string{endpoint}, timeout: c.timeout}
	v.err = only.with(ctx, func(ctx context.Context, cl *client.Client) error {
		var err error
		if v.status, err = cl.StatusContext(ctx, "status"); err != nil {
			// A question changes nothing: however it failed, there is no outcome to be unsure of.
			return kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
		var own nodeStatus
		if err := json.Unmarshal(v.status, &own); err != nil {
			return fmt.Errorf("%s: %w", endpoint, err)
		}
		v.node, v.hints = own.Node, own.Hints
		for i := range v.hints {
			v.hints[i].Holder = own.Node
		}
		raw, err := cl.StatusContext(ctx, "partitions")
		if err != nil {
			return kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
		var list struct {
			Partitions []partitionReport `json:"partitions"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			return fmt.Errorf("%s: %w", endpoint, err)
		}
		v.partitions = list.Partitions
		return nil
	})
	return v
}

func printStatus(a *app, report statusReport) error {
	var s nodeStatus
	if err := json.Unmarshal(report.Status, &s); err != nil {
		return fmt.Errorf("the node's status: %w", err)
	}
	leads := map[string]int{}
	var partitions []table.Row
	for _, p := range report.Partitions {
		leads[p.Leader]++
		partitions = append(partitions, table.Row{p.Partition, p.Leader, p.Term, p.replicas()})
	}
	var nodes []table.Row
	for _, n := range s.Nodes {
		state := "alive"
		if !n.Alive {
			state = "not reachable"
		}
		nodes = append(nodes, table.Row{n.Name, state, leads[n.Name], n.HTTP, n.GRPC, n.Zone})
	}
	a.printTable(table.Row{"node", "state", "leads", "http", "grpc", "zone"}, nodes)
	fmt.Fprintln(a.stdout)
	a.printTable(table.Row{"partition", "leader", "term", "replicas"}, partitions)
	if len(report.Hints) > 0 {
		rows := make([]table.Row, len(report.Hints))
		for i := range report.Hints {
			rows[i] = report.Hints[i].row()
		}
		fmt.Fprintln(a.stdout)
		a.printTable(table.Row{"hints kept by", "for", "hints", "bytes", "oldest"}, rows)
	}
	fmt.Fprintf(a.stdout, "\nAs %s sees it: map epoch %d, metadata led by %s\n", s.Node, s.Epoch, cmp.Or(s.MetaLeader, "nobody at present"))
	for _, level := range []kv.Level{kv.LevelStrong, kv.LevelEventual, kv.LevelLocal} {
		fmt.Fprintf(a.stdout, "  %-9s %s\n", level, s.Ready[level.String()])
	}
	return nil
}
