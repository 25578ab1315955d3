package main

import (
	"context"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// listCommand holds the flags of `caprock list`.
type listCommand struct {
	connection
	output   outputFormat
	level    string
	stale    time.Duration
	limit    int
	keysOnly bool
}

// listDocument is what the command prints of one key.
type listDocument struct {
	Key         string  `json:"key"`
	KeyEncoding string  `json:"key_encoding,omitempty"`
	Value       *string `json:"value,omitempty"`
	Encoding    string  `json:"encoding,omitempty"`
	Version     uint64  `json:"version"`
	Timestamp   string  `json:"timestamp"`
}

func newListCommand(a *app) *cobra.Command {
	var l listCommand
	cmd := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List keys, in the order of their bytes",
		Long: `List keys, in the order of their bytes.

What is shown of each partition is what the level says, linearizable at level strong; all of them together are no snapshot.`,
		Example: `  caprock list user: --keys-only
  caprock list user: --max-staleness 2s
  caprock list --limit 10 -o json`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return l.run(cmd.Context(), a, prefix)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&l.level, "consistency", "c", "", "`level`: strong (the default), eventual, local or bounded")
	fs.DurationVar(&l.stale, "max-staleness", 0, stalenessUsage+" (default 5s)")
	fs.IntVar(&l.limit, "limit", kv.ListItemsMax, "the most keys to list; 0 lists all")
	fs.BoolVar(&l.keysOnly, "keys-only", false, "leave the values out")
	l.output.addFlag(fs, formatTable)
	l.connection.addFlags(a, fs)
	return cmd
}

// option is the level that the flags ask for.
func (l *listCommand) option() (client.Option, error) {
	if l.stale != 0 {
		return staleness(l.level, l.stale)
	}
	if l.level == "" {
		return client.Strong(), nil
	}
	level, err := kv.ParseLevel(l.level)
	if err != nil {
		return nil, usageError{err}
	}
	return client.AtLevel(level), nil
}

func (l *listCommand) run(ctx context.Context, a *app, prefix string) error {
	level, err := l.option()
	if err != nil {
		return err
	}
	return l.with(ctx, func(ctx context.Context, c *client.Client) error {
		documents := []listDocument{}
		var rows []table.Row
		query := kv.ListQuery{Prefix: []byte(prefix), KeysOnly: l.keysOnly}
		more := true
		for more && (l.limit <= 0 || len(documents) < l.limit) {
			query.Limit = kv.ListItemsMax
			if l.limit > 0 {
				query.Limit = min(query.Limit, l.limit-len(documents))
			}
			page, err := c.List(ctx, query, level)
			if err != nil {
				return err
			}
			for _, item := range page.Items {
				d := listDocument{Version: item.Version, Timestamp: timeText(item.Timestamp)}
				d.Key, d.KeyEncoding = bytesText(item.Key)
				value, encoding := bytesText(item.Value)
				if !l.keysOnly {
					d.Value, d.Encoding = &value, encoding
				}
				documents = append(documents, d)
				rows = append(rows, table.Row{d.Key, value, d.Version, d.Timestamp})
				query.After = item.Key
			}
			more = page.More && len(page.Items) > 0
		}
		return l.output.print(a, map[string]any{"items": documents, "more": more}, func() error {
			a.printTable(table.Row{"key", "value", "version", "timestamp"}, rows)
			return nil
		})
	})
}
