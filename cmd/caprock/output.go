package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// outputFormat is how a command prints its result. It implements pflag.Value.
type outputFormat struct {
	name string
	// raw: the command also has the raw format.
	raw bool
}

// The output formats. formatRaw is the bytes of a value and nothing else; only a command that prints one value has it.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatRaw   = "raw"
)

// addFlag declares the flag. A command whose standard is raw is one that has it.
func (f *outputFormat) addFlag(fs *pflag.FlagSet, standard string) {
	*f = outputFormat{name: standard, raw: standard == formatRaw}
	fs.VarP(f, "output", "o", strings.Join(f.names(), ", "))
}

func (f *outputFormat) names() []string {
	names := []string{formatTable, formatJSON, formatYAML}
	if f.raw {
		names = append(names, formatRaw+" (the value's bytes and nothing else)")
	}
	return names
}

// Set implements pflag.Value.
func (f *outputFormat) Set(s string) error {
	if s == formatTable || s == formatJSON || s == formatYAML || s == formatRaw && f.raw {
		f.name = s
		return nil
	}
	return errors.New("choose " + strings.Join(f.names(), ", "))
}

func (f *outputFormat) String() string { return f.name }

// Type implements pflag.Value.
func (f *outputFormat) Type() string { return "format" }

// print writes doc in the chosen format; human writes it for people, in any format but JSON and YAML.
func (f *outputFormat) print(a *app, doc any, human func() error) error {
	switch f.name {
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

// plainStyle lets the encoder choose how to write the node and everything in it, as it would for Go values: of a node it
// does not quote what only older readers take for something else than text ("yes").
func plainStyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		if alone, err := yaml.Marshal(n.Value); err == nil && alone[0] == '"' {
			n.Style = yaml.DoubleQuotedStyle
		}
	}
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
