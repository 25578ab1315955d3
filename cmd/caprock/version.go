package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// version is set by the linker (make build); a build without it says so.
var version = "unreleased"

func newVersionCommand(a *app) *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			doc := versionDocument{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			return output.print(a, doc, func() error {
				_, err := fmt.Fprintf(a.stdout, "caprock %s (%s, %s)\n", doc.Version, doc.Go, doc.Platform)
				return err
			})
		},
	}
	output.addFlag(cmd.Flags(), formatTable)
	return cmd
}

type versionDocument struct {
	Version  string `json:"version" yaml:"version"`
	Go       string `json:"go" yaml:"go"`
	Platform string `json:"platform" yaml:"platform"`
}
