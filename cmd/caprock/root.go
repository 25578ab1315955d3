package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caprockdb/caprock/pkg/client"
)

// app is what a command may touch of the process.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string
}

// env returns a variable of the environment, "" when it is not set.
func (a *app) env(name string) string {
	for _, pair := range a.environ {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	return ""
}

// usageError marks a mistake in the command line itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usageArgs makes a failed check of the arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// run executes one command line and returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, environ: environ}
	root := newRootCommand(a)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	if err != nil {
		fmt.Fprintln(stderr, "caprock:", strings.Join(strings.Fields(err.Error()), " "))
	}
	return exitCode(err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "caprock",
		Short: "A distributed key-value store in which each request chooses its consistency",
		Long: `A distributed key-value store in which each request chooses its consistency.

Try it: caprock demo

Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict or failed precondition, 5 unavailable,
6 not authorised, 7 outcome unknown.`,
		Args:                       knownCommand,
		SuggestionsMinimumDistance: 2,
		SilenceUsage:               true,
		SilenceErrors:              true,
		// Without RunE cobra would not check the arguments, and an unknown command would be answered with help.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; `%s --help` lists the flags", err, cmd.CommandPath())}
	})
	root.AddCommand(
		newStartCommand(a), newDemoCommand(a), newGatewayCommand(a),
		newGetCommand(a), newPutCommand(a), newDeleteCommand(a), newListCommand(a), newBatchCommand(a),
		newVerifyCommand(a), newStatusCommand(a), newPolicyCommand(a), newCheckCommand(a), newHealthcheckCommand(a), newVersionCommand(a),
	)
	return root
}

// knownCommand refuses what is left of a command line that names no command.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "`caprock --help` lists the commands"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{fmt.Errorf("%q is not a command; %s", args[0], hint)}
}

// exitCode says how a command ended. A script tells from it what happened without reading messages.
func exitCode(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return client.ExitUsage
	}
	return client.ExitCode(err)
}
