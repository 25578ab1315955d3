package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// operation holds the flags of the commands that read or write one key.
type operation struct {
	connection
	output  outputFormat
	level   string
	weaker  string
	stale   time.Duration
	session sessionFlag
	n, r, w int
	version uint64
	sloppy  bool
	token   string
	ttl     time.Duration
	flags   *pflag.FlagSet
}

func (o *operation) addFlags(a *app, fs *pflag.FlagSet, write bool) {
	fs.SortFlags = false
	o.flags = fs
	fs.StringVarP(&o.level, "consistency", "c", "", levelUsage(write))
	fs.StringVar(&o.weaker, "fallback", "", "weaker `level`, eventual or local, to answer at when the asked one cannot be met")
	fs.StringVar(&o.session.value, "session", "", "causal, strong: `token` of the session, new, or a file that holds the token and gets the next one")
	fs.IntVar(&o.n, "n", 0, "eventual: how many of the key's replicas take part")
	if write {
		fs.IntVar(&o.w, "w", 0, "eventual: how many replicas acknowledge")
		fs.BoolVar(&o.sloppy, "sloppy", false, "eventual: hints that other nodes keep for replicas count as acknowledgements")
		fs.Uint64Var(&o.version, "if-version", 0, "strong: only while the key has this `version`; 0 means while it does not exist")
		fs.DurationVar(&o.ttl, "ttl", 0, "strong put: how long the value is there, as in 90s or 24h")
		fs.StringVar(&o.token, "context", "", "eventual: overwrite exactly what the `context` of an earlier answer covers")
		o.output.addFlag(fs, formatTable)
	} else {
		fs.IntVar(&o.r, "r", 0, "eventual: how many replicas answer")
		fs.DurationVar(&o.stale, "max-staleness", kv.MaxStalenessDefault, stalenessUsage)
		o.output.addFlag(fs, formatRaw)
	}
	o.connection.addFlags(a, fs)
}

// levelUsage says what levels there are.
func levelUsage(write bool) string {
	if write {
		return "`level`: strong, eventual, local or causal (default what the key's policy says)"
	}
	return "`level`: strong, eventual, local, causal or bounded (default what the key's policy says)"
}

const stalenessUsage = "bounded: how stale the answer may be at most; without a level it asks for bounded"

// staleness is the option of the flag --max-staleness at the level.
func staleness(level string, d time.Duration) (client.Option, error) {
	if level != "" && level != kv.LevelBounded.String() {
		return nil, usageError{fmt.Errorf("--max-staleness goes with level bounded, not with %s", level)}
	}
	return client.Bounded(d), nil
}

// options translates the flags that were given. What a level cannot honour is refused by the cluster, not here.
func (o *operation) options() ([]client.Option, error) {
	var options []client.Option
	if o.level != "" {
		level, err := kv.ParseLevel(o.level)
		if err != nil {
			return nil, usageError{err}
		}
		options = append(options, client.AtLevel(level))
	}
	if o.flags.Changed("max-staleness") {
		option, err := staleness(o.level, o.stale)
		if err != nil {
			return nil, err
		}
		options = append(options, option)
	}
	if o.flags.Changed("fallback") {
		level, err := kv.ParseLevel(o.weaker)
		if err != nil {
			return nil, usageError{err}
		}
		options = append(options, client.Fallback(level))
	}
	if o.flags.Changed("session") {
		option, err := o.session.option(o.level)
		if err != nil {
			return nil, usageError{err}
		}
		options = append(options, option)
	}
	for name, option := range map[string]func() client.Option{
		"n":          func() client.Option { return client.N(o.n) },
		"r":          func() client.Option { return client.R(o.r) },
		"w":          func() client.Option { return client.W(o.w) },
		"if-version": func() client.Option { return client.IfVersion(o.version) },
		"ttl":        func() client.Option { return client.TTL(o.ttl) },
	} {
		if o.flags.Changed(name) {
			options = append(options, option())
		}
	}
	if o.sloppy {
		options = append(options, client.Sloppy())
	}
	if o.flags.Changed("context") {
		token, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(o.token, "="))
		if err != nil || len(token) == 0 {
			return nil, usageError{errors.New("--context is not one that an answer gave: it is not base64url")}
		}
		options = append(options, client.Context(token))
	}
	return options, nil
}

// document is what a command prints of a result. Its names are those of the HTTP answers.
type document struct {
	Key         string            `json:"key"`
	KeyEncoding string            `json:"key_encoding,omitempty"`
	Value       *string           `json:"value,omitempty"`
	Encoding    string            `json:"encoding,omitempty"`
	Siblings    []siblingDocument `json:"siblings,omitempty"`
	Version     uint64            `json:"version"`
	Context     string            `json:"context,omitempty"`
	Session     string            `json:"session,omitempty"`
	Timestamp   string            `json:"timestamp,omitempty"`
	Consistency string            `json:"consistency"`
	Found       *bool             `json:"found,omitempty"`
	Settled     *bool             `json:"settled,omitempty"`
	Staleness   *int64            `json:"staleness_bound_ms,omitempty"`
	Acks        int               `json:"acks,omitempty"`
	Hinted      int               `json:"hinted,omitempty"`
	Outcome     string            `json:"outcome,omitempty"`
	Coordinator string            `json:"coordinator,omitempty"`
	Replicas    []string          `json:"replicas,omitempty"`
}

// acks is what a table shows of the acknowledgements.
func (d *document) acks() string {
	if d.Hinted > 0 {
		return fmt.Sprintf("%d (%d hinted)", d.Acks, d.Hinted)
	}
	return strconv.Itoa(d.Acks)
}

type siblingDocument struct {
	Value     string `json:"value"`
	Encoding  string `json:"encoding,omitempty"`
	Timestamp string `json:"timestamp"`
	Node      string `json:"node"`
	Deleted   bool   `json:"deleted,omitempty"`
}

func newDocument(key string, r client.Result) document {
	d := document{
		Version: r.Version, Context: base64.RawURLEncoding.EncodeToString(r.Context), Timestamp: timeText(r.Timestamp),
		Session:     base64.RawURLEncoding.EncodeToString(r.Session),
		Consistency: r.Level.String(), Coordinator: r.Coordinator, Replicas: r.Replicas,
	}
	d.Key, d.KeyEncoding = bytesText([]byte(key))
	for _, s := range r.Siblings {
		sd := siblingDocument{Timestamp: timeText(s.Timestamp), Node: s.Node, Deleted: s.Deleted}
		sd.Value, sd.Encoding = bytesText(s.Value)
		d.Siblings = append(d.Siblings, sd)
	}
	return d
}

func (d *document) read(r client.Result) {
	if len(r.Siblings) == 0 {
		var value string
		value, d.Encoding = bytesText(r.Value)
		d.Value = &value
	}
	d.Found, d.Settled = &r.Found, &r.Settled
	if r.Level == kv.LevelBounded {
		millis := r.Staleness.Milliseconds()
		d.Staleness = &millis
	}
}

func (d *document) written(r client.Result) {
	d.Acks, d.Hinted, d.Outcome = r.Acks, r.Hinted, r.Outcome.String()
}

// bytesText spells bytes as the HTTP answers do: as text where they are valid UTF-8, else as base64.
func bytesText(b []byte) (text, encoding string) {
	if utf8.Valid(b) {
		return string(b), ""
	}
	return base64.StdEncoding.EncodeToString(b), "base64"
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

func newGetCommand(a *app) *cobra.Command {
	var o operation
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Example: `  caprock get greeting
  caprock get greeting -c eventual --r 2 -o json
  caprock get greeting --max-staleness 500ms -o json`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return o.get(cmd.Context(), a, args[0]) },
	}
	o.addFlags(a, cmd.Flags(), false)
	return cmd
}

func (o *operation) get(ctx context.Context, a *app, key string) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	return o.with(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.GetContext(ctx, key, options...)
		if err != nil {
			// A read changes nothing: however it failed, there is no outcome to be unsure of.
			return kv.AsError(err).WithOutcome(kv.OutcomeNotApplied)
		}
		if err := o.session.keep(a, r.Session); err != nil {
			return err
		}
		if len(r.Siblings) > 0 && o.output.name == formatRaw {
			return kv.Errorf(kv.CodeSiblings, "%s has %d concurrent versions: print them with -o table, json or yaml, and write one of them back with --context",
				key, len(r.Siblings))
		}
		d := newDocument(key, r)
		d.read(r)
		return o.output.print(a, d, func() error {
			if o.output.name == formatRaw {
				return printRaw(a, r.Value)
			}
			printReadTable(a, d)
			return nil
		})
	})
}

// printRaw writes the value as it is. Only a person at a terminal gets a line end that is not part of it.
func printRaw(a *app, value []byte) error {
	if _, err := a.stdout.Write(value); err != nil {
		return err
	}
	if isTerminal(a.stdout) {
		fmt.Fprintln(a.stdout)
	}
	return nil
}

func printReadTable(a *app, d document) {
	if len(d.Siblings) > 0 {
		var rows []table.Row
		for _, s := range d.Siblings {
			rows = append(rows, table.Row{d.Key, s.Value, s.Deleted, s.Timestamp, s.Node})
		}
		a.printTable(table.Row{"key", "value", "deleted", "timestamp", "node"}, rows)
		return
	}
	level := d.Consistency
	if d.Staleness != nil {
		level += fmt.Sprintf(" (%d ms)", *d.Staleness)
	}
	a.printTable(table.Row{"key", "value", "version", "consistency", "settled", "timestamp"},
		[]table.Row{{d.Key, *d.Value, d.Version, level, *d.Settled, d.Timestamp}})
}

func newPutCommand(a *app) *cobra.Command {
	var o operation
	cmd := &cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Write a key; a VALUE of - is read from standard input",
		Example: `  caprock put greeting hello
  caprock put lock mine --if-version 0
  caprock put photo - -c eventual --w 2 < photo.jpg`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error { return o.put(cmd.Context(), a, args[0], args[1]) },
	}
	o.addFlags(a, cmd.Flags(), true)
	return cmd
}

// stdinBytesMax is more than any node takes, so that a value that is too large is refused by the node, with its limit.
const stdinBytesMax = 20 << 20

func (o *operation) put(ctx context.Context, a *app, key, value string) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	if value == "-" {
		raw, err := io.ReadAll(io.LimitReader(a.stdin, stdinBytesMax))
		if err != nil {
			return fmt.Errorf("read the value from standard input: %w", err)
		}
		value = string(raw)
	}
	return o.with(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.SetContext(ctx, key, value, options...)
		if err != nil {
			return err
		}
		if err := o.session.keep(a, r.Session); err != nil {
			return err
		}
		d := newDocument(key, r)
		d.written(r)
		return o.output.print(a, d, func() error {
			a.printTable(table.Row{"key", "version", "consistency", "acks", "outcome"},
				[]table.Row{{d.Key, d.Version, d.Consistency, d.acks(), d.Outcome}})
			return nil
		})
	})
}

func newDeleteCommand(a *app) *cobra.Command {
	var o operation
	cmd := &cobra.Command{
		Use:     "delete KEY",
		Short:   "Delete a key; that it was absent is no error",
		Example: `  caprock delete greeting`,
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.delete(cmd.Context(), a, args[0]) },
	}
	o.addFlags(a, cmd.Flags(), true)
	return cmd
}

func (o *operation) delete(ctx context.Context, a *app, key string) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	return o.with(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.DeleteContext(ctx, key, options...)
		if err != nil {
			return err
		}
		if err := o.session.keep(a, r.Session); err != nil {
			return err
		}
		d := newDocument(key, r)
		d.written(r)
		d.Found = &r.Found
		return o.output.print(a, d, func() error {
			a.printTable(table.Row{"key", "found", "version", "consistency", "acks", "outcome"},
				[]table.Row{{d.Key, r.Found, d.Version, d.Consistency, d.acks(), d.Outcome}})
			return nil
		})
	})
}
