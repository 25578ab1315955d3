package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// policyAnswerBytesMax bounds what is read of an answer.
const policyAnswerBytesMax = 16 << 20

// policyFlags are the fields of a policy that `caprock policy set` can give, in the order of its help.
type policyFlags struct {
	level, lanes, resolver, expr, ttl, readRepair, durability string
	n, r, w                                                   int
}

func newPolicyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show and change what holds for the keys with a prefix",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newPolicyVerb(a, "list", "List all policies", cobra.NoArgs, http.MethodGet),
		newPolicyVerb(a, "get PREFIX", "Show the policy of exactly this prefix", cobra.ExactArgs(1), http.MethodGet),
		newPolicyVerb(a, "set PREFIX", "Create or replace the whole policy of a prefix", cobra.ExactArgs(1), http.MethodPut),
		newPolicyVerb(a, "delete PREFIX", "Leave the keys to the next shorter prefix", cobra.ExactArgs(1), http.MethodDelete),
	)
	return cmd
}

func newPolicyVerb(a *app, use, short string, args cobra.PositionalArgs, method string) *cobra.Command {
	var (
		c      connection
		output outputFormat
		flags  policyFlags
		wait   bool
	)
	cmd := &cobra.Command{
		Use: use, Short: short, Args: usageArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, body := "/admin/policies", []byte(nil)
			if len(args) > 0 {
				path += "/" + url.PathEscape(args[0])
			}
			if method == http.MethodPut {
				body = flags.body(cmd.Flags())
			}
			raw, err := c.admin(cmd.Context(), method, path, body)
			if err != nil {
				return err
			}
			if wait {
				if err := awaitLanes(cmd.Context(), a, &c, args[0]); err != nil {
					return err
				}
				if method == http.MethodPut {
					if raw, err = c.admin(cmd.Context(), http.MethodGet, path, nil); err != nil {
						return err
					}
				}
			}
			return output.print(a, json.RawMessage(raw), func() error { return printPolicies(a, method, raw) })
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	if method == http.MethodPut {
		fs.StringVar(&flags.level, "default", "", "`level` of requests that name none: strong, eventual or local")
		fs.StringVar(&flags.lanes, "lanes", "", "levels that are allowed: "+strings.Join(kv.AllLanes(), ", "))
		fs.IntVar(&flags.n, "n", 0, "replicas that take part")
		fs.IntVar(&flags.r, "r", 0, "replicas that a read needs")
		fs.IntVar(&flags.w, "w", 0, "replicas that a write needs")
		fs.StringVar(&flags.resolver, "resolver", "", strings.Join(kv.Resolvers(), ", "))
		fs.StringVar(&flags.expr, "expr", "", "CEL `expression` of the resolver expr")
		fs.StringVar(&flags.ttl, "ttl", "", "how long values are there that are put without one, such as 24h")
		fs.StringVar(&flags.durability, "durability", "", "sync, or async: eventual writes are acknowledged before the disk has synced them")
		fs.StringVar(&flags.readRepair, "read-repair", "", "background, blocking or off")
	}
	if method != http.MethodGet {
		fs.BoolVar(&wait, "wait", false, "return only once the keys have the lanes that were asked for, and tell of progress on stderr")
	}
	output.addFlag(fs, formatTable)
	c.addFlags(a, fs)
	return cmd
}

// body is the policy as JSON: the fields whose flags were given.
func (f *policyFlags) body(fs *pflag.FlagSet) []byte {
	out := map[string]any{}
	for name, field := range map[string]struct {
		name  string
		value any
	}{
		"default": {"default", f.level}, "lanes": {"lanes", f.lanes}, "n": {"n", f.n}, "r": {"r", f.r}, "w": {"w", f.w}, "resolver": {"resolver", f.resolver},
		"expr": {"expr", f.expr}, "ttl": {"ttl", f.ttl}, "read-repair": {"read_repair", f.readRepair},
		"durability": {"durability", f.durability},
	} {
		if fs.Changed(name) {
			out[field.name] = field.value
		}
	}
	raw, err := json.Marshal(out)
	if err != nil { // strings and numbers can always be encoded
		panic(err)
	}
	return raw
}

// admin sends an administrative request to the HTTP address of a node that is alive; the endpoints say which those are.
func (c *connection) admin(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var status nodeStatus
	if err := c.with(ctx, func(ctx context.Context, cl *client.Client) error {
		raw, err := cl.StatusContext(ctx, "status")
		if err != nil {
			return kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
		return json.Unmarshal(raw, &status)
	}); err != nil {
		return nil, err
	}
	err := error(kv.Errorf(kv.CodeQuorumUnavailable, "no node that is alive has an HTTP address"))
	for _, n := range status.Nodes {
		if !n.Alive || n.HTTP == "" {
			continue
		}
		// Setting a policy twice is setting it once, so that the next node may be asked after a failure.
		var raw []byte
		var answered bool
		if raw, answered, err = adminAt(ctx, "http://"+n.HTTP+path, method, body); answered {
			return raw, err
		}
	}
	return nil, err
}

func adminAt(ctx context.Context, target, method string, body []byte) (raw []byte, answered bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, false, kv.Errorf(kv.CodeQuorumUnavailable, "%s could not be asked: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(resp.Body, policyAnswerBytesMax)); err != nil {
		return nil, false, kv.Errorf(kv.CodeQuorumUnavailable, "%s broke off its answer: %w", req.URL.Host, err)
	}
	if resp.StatusCode == http.StatusOK {
		return raw, true, nil
	}
	var problem struct{ Code, Detail string }
	if json.Unmarshal(raw, &problem) != nil || problem.Code == "" {
		return nil, true, errors.New(req.URL.Host + " answered " + resp.Status)
	}
	code := kv.Code(problem.Code)
	if resp.StatusCode == http.StatusNotFound {
		code = kv.CodeKeyNotFound
	}
	return nil, true, kv.Errorf(code, "%s", problem.Detail)
}

func printPolicies(a *app, method string, raw []byte) error {
	type policy struct {
		Prefix, Default, Lanes, Resolver, Expr, TTL, State string
		N, R, W                                            *int
		ReadRepair                                         string `json:"read_repair"`
		Durability                                         string
	}
	var answer struct {
		policy
		Found    bool
		Policies []policy
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return fmt.Errorf("the node's answer: %w", err)
	}
	if method == http.MethodDelete {
		if !answer.Found {
			fmt.Fprintf(a.stderr, "%q had no policy of its own\n", answer.Prefix)
		}
		return nil
	}
	all := answer.Policies
	if answer.Prefix != "" {
		all = []policy{answer.policy}
	}
	count := func(n *int) any {
		if n == nil {
			return "-"
		}
		return *n
	}
	text := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	rows := make([]table.Row, len(all))
	for i, p := range all {
		rows[i] = table.Row{
			p.Prefix, text(p.Default), text(p.Lanes), count(p.N), count(p.R), count(p.W), p.Resolver, text(p.Expr), text(p.TTL), p.ReadRepair, p.Durability, p.State,
		}
	}
	a.printTable(table.Row{"prefix", "default", "lanes", "n", "r", "w", "resolver", "expr", "ttl", "read repair", "durability", "state"}, rows)
	return nil
}
