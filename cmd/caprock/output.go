package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// outputFormat is how a command prints its result. It implements pflag.Value.
type outputFormat string

// The output formats. formatRaw is the bytes of a value and nothing else; only commands that print one value have it.
const (
	formatTable outputFormat = "table"
	formatJSON  outputFormat = "json"
	formatYAML  outputFormat = "yaml"
	formatRaw   outputFormat = "raw"
)

func (f *outputFormat) addFlag(fs *pflag.FlagSet, standard outputFormat) {
	*f = standard
	fs.VarP(f, "output", "o", "table, json or yaml")
}

// Set implements pflag.Value.
func (f *outputFormat) Set(s string) error {
	switch outputFormat(s) {
	case formatTable, formatJSON, formatYAML, formatRaw:
		*f = outputFormat(s)
		return nil
	}
	return errors.New("choose table, json or yaml")
}

func (f *outputFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *outputFormat) Type() string { return "format" }

// print writes doc in the chosen format; human writes it for people, in any format but JSON and YAML.
func (f *outputFormat) print(a *app, doc any, human func() error) error {
	switch *f {
	case formatJSON:
		encoder := json.NewEncoder(a.stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(doc)
	case formatYAML:
		return printYAML(a.stdout, doc)
	default:
		return human()
	}
}

// printYAML writes doc's JSON form as YAML, so that both have the same field names in the same order.
func printYAML(w io.Writer, doc any) error {
	raw, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	// JSON is YAML in flow style; only the style has to change.
	var node yaml.Node
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return err
	}
	plainStyle(&node)
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	return errors.Join(encoder.Encode(&node), encoder.Close())
}

// plainStyle lets the encoder choose how to write the node and everything in it. Text that would read as something else
// when it is not quoted keeps its tag, and by that its quotes.
func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// printTable writes rows under a header, in colour only on a terminal whose user did not ask for none.
func (a *app) printTable(header table.Row, rows []table.Row) {
	t := table.NewWriter()
	t.SetOutputMirror(a.stdout)
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatUpper
	if a.coloured() {
		style.Color.Header = text.Colors{text.Bold}
	}
	t.SetStyle(style)
	t.AppendHeader(header)
	t.AppendRows(rows)
	t.Render()
}

func (a *app) coloured() bool { return a.env("NO_COLOR") == "" && isTerminal(a.stdout) }

// isTerminal reports whether w is a character device, which is as near as it gets without asking the terminal driver.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// say writes a message for the person at the terminal, where it does not mix with data.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
