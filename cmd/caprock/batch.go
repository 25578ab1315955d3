package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// batchCommand holds the flags of `caprock batch`.
type batchCommand struct {
	connection
	output outputFormat
	level  string
	stale  time.Duration
	atomic bool
	sloppy bool
	id     string
}

// batchOperation is one operation of the input. Its names are those of POST /batch.
type batchOperation struct {
	Type        string  `json:"type"`
	Key         string  `json:"key"`
	KeyEncoding string  `json:"key_encoding"`
	Value       *string `json:"value"`
	Encoding    string  `json:"encoding"`
	IfVersion   *uint64 `json:"if_version"`
	TTL         string  `json:"ttl"`
}

// batchDocument is what the command prints of one operation.
type batchDocument struct {
	Type string `json:"type"`
	document
	Error *batchError `json:"error,omitempty"`
}

type batchError struct {
	Code    kv.Code `json:"code"`
	Detail  string  `json:"detail"`
	Outcome string  `json:"outcome"`
}

func newBatchCommand(a *app) *cobra.Command {
	var b batchCommand
	cmd := &cobra.Command{
		Use:   "batch FILE",
		Short: "Run up to 1,000 operations from a FILE, or from standard input with -",
		Long: `Run up to 1,000 operations from a FILE, or from standard input with -.

The input is one operation a line, or the body of POST /batch: {"operations":[...]}. With --atomic all are applied or
none, which takes puts and deletes of keys in one partition; keys with the same {tag} share one.`,
		Example: `  echo '{"type":"PUT","key":"{cart}a","value":"1"}
        {"type":"DELETE","key":"{cart}b","if_version":7}' | caprock batch - --atomic`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return b.run(cmd.Context(), a, args[0]) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&b.atomic, "atomic", false, "all or none, at level strong")
	fs.StringVarP(&b.level, "consistency", "c", "", "`level`: strong, eventual, local or, for reads, bounded (default what each key's policy says)")
	fs.DurationVar(&b.stale, "max-staleness", 0, "bounded: how stale the answers may be at most (default 5s)")
	fs.BoolVar(&b.sloppy, "sloppy", false, "eventual writes: hints that other nodes keep for replicas count as acknowledgements")
	fs.StringVar(&b.id, "idempotency-key", "", "atomic: a `name` under which the batch can be repeated without being applied twice")
	b.output.addFlag(fs, formatTable)
	b.connection.addFlags(a, fs)
	return cmd
}

func (b *batchCommand) run(ctx context.Context, a *app, file string) error {
	var options []client.Option
	if b.level != "" {
		level, err := kv.ParseLevel(b.level)
		if err != nil {
			return usageError{err}
		}
		options = append(options, client.AtLevel(level))
	}
	if b.stale != 0 {
		option, err := staleness(b.level, b.stale)
		if err != nil {
			return err
		}
		options = append(options, option)
	}
	if b.id != "" {
		if !b.atomic {
			return usageError{errors.New("--idempotency-key goes with --atomic")}
		}
		options = append(options, client.OperationID(b.id))
	}
	input := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return usageError{err}
		}
		defer f.Close()
		input = f
	}
	operations, types, err := readBatch(input)
	if err != nil {
		return usageError{err}
	}
	for i := range operations {
		operations[i].Sloppy = b.sloppy && operations[i].Op.IsWrite()
	}
	return b.with(ctx, func(ctx context.Context, c *client.Client) error {
		run := c.Batch
		if b.atomic {
			run = c.AtomicBatch
		}
		results, err := run(ctx, operations, options...)
		if err != nil {
			return err
		}
		return b.print(a, operations, types, results)
	})
}

// readBatch reads the input in either form.
func readBatch(r io.Reader) ([]kv.Request, []string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, stdinBytesMax+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the operations: %w", err)
	}
	if len(raw) > stdinBytesMax {
		return nil, nil, fmt.Errorf("the input has more than %d bytes", stdinBytesMax)
	}
	var whole struct {
		Operations []batchOperation `json:"operations"`
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if decoder.Decode(&whole) != nil || whole.Operations == nil {
		whole.Operations = nil
		decoder = json.NewDecoder(bytes.NewReader(raw))
		decoder.DisallowUnknownFields()
		for {
			var one batchOperation
			err := decoder.Decode(&one)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, nil, fmt.Errorf("operation %d: %w", len(whole.Operations), err)
			}
			whole.Operations = append(whole.Operations, one)
		}
	} else if decoder.More() {
		return nil, nil, errors.New("something follows the object with the operations")
	}
	var out []kv.Request
	var types []string
	for i, one := range whole.Operations {
		r, err := one.request()
		if err != nil {
			return nil, nil, fmt.Errorf("operation %d: %w", i, err)
		}
		out, types = append(out, r), append(types, one.Type)
	}
	return out, types, nil
}

func (o *batchOperation) request() (r kv.Request, err error) {
	switch o.Type {
	case "GET":
		r.Op = kv.OpGet
	case "PUT":
		r.Op = kv.OpPut
	case "DELETE":
		r.Op = kv.OpDelete
	default:
		return r, fmt.Errorf("type %q is none of GET, PUT and DELETE", o.Type)
	}
	if (r.Op == kv.OpPut) != (o.Value != nil) {
		return r, errors.New("a PUT has a value, and nothing else has")
	}
	if r.Key, err = decodeText(o.Key, o.KeyEncoding); err != nil {
		return r, err
	}
	if o.Value != nil {
		if r.Value, err = decodeText(*o.Value, o.Encoding); err != nil {
			return r, err
		}
	}
	if o.TTL != "" {
		if r.TTL, err = time.ParseDuration(o.TTL); err != nil || r.TTL < time.Millisecond {
			return r, fmt.Errorf("ttl %q is no duration such as 90s", o.TTL)
		}
	}
	if o.IfVersion != nil {
		r.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: *o.IfVersion}
	}
	return r, nil
}

// decodeText is the inverse of bytesText.
func decodeText(text, encoding string) ([]byte, error) {
	switch encoding {
	case "":
		return []byte(text), nil
	case "base64":
		return base64.StdEncoding.DecodeString(text)
	default:
		return nil, fmt.Errorf("encoding %q is unknown; it is base64, or is left out for text", encoding)
	}
}

// print shows what became of each operation. The command fails as the first one did that failed.
func (b *batchCommand) print(a *app, operations []kv.Request, types []string, results []client.BatchResult) error {
	var failed error
	documents := make([]batchDocument, len(results))
	rows := make([]table.Row, len(results))
	for i, r := range results {
		d := batchDocument{Type: types[i], document: newDocument(string(operations[i].Key), r.Result)}
		result := "ok"
		switch {
		case r.Err != nil:
			e := kv.AsError(r.Err)
			d.Error, result = &batchError{Code: e.Code, Detail: e.Detail, Outcome: e.Outcome.String()}, string(e.Code)
			if failed == nil {
				failed = r.Err
			}
		case operations[i].Op == kv.OpGet:
			d.read(r.Result)
		default:
			d.written(r.Result)
		}
		value := ""
		if d.Value != nil {
			value = *d.Value
		}
		documents[i], rows[i] = d, table.Row{d.Type, d.Key, result, value, d.Version}
	}
	err := b.output.print(a, map[string]any{"results": documents}, func() error {
		a.printTable(table.Row{"type", "key", "result", "value", "version"}, rows)
		return nil
	})
	return errors.Join(failed, err)
}
