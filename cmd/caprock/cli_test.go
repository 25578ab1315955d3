package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// caprock runs a command line in this process.
func caprock(environ []string, args ...string) (stdout, stderr string, code int) {
	var out, errs strings.Builder
	code = run(args, strings.NewReader(""), &out, &errs, environ)
	return out.String(), errs.String(), code
}

func TestMistakesOnTheCommandLineAreUsageErrorsOfOneLine(t *testing.T) {
	for _, tc := range []struct {
		line string
		want string
	}{
		{"strat", "did you mean start?"},
		{"frobnicate", "`caprock --help` lists the commands"},
		{"--frob", "unknown flag: --frob"},
		{"get", "accepts 1 arg(s), received 0; usage: caprock get KEY"},
		{"put k", "accepts 2 arg(s)"},
		{"get k --frob", "`caprock get --help` lists the flags"},
		{"get k -c sometimes", `unknown consistency level "sometimes"`},
		{"get k -o xml", "choose table, json, yaml, raw"},
		{"put k v -o raw", "choose table, json, yaml"},
		{"put k v --if-version x", "invalid argument"},
		{"put k v --context !!", "--context is not one that an answer gave"},
		{"get k --endpoints=", "--endpoints"},
		{"get k --timeout 61s", "timeout"},
		{"status extra", `unknown command "extra"`},
		{"gateway --nodes n1", "write host:port"},
		{"demo --nodes 99", "choose 1 to 9"},
		{"demo --stop", "--data-dir"},
		{"start --partitions 0", "partitions is 0"},
		{"start --config /does/not/exist", "no such file"},
	} {
		stdout, stderr, code := caprock(nil, strings.Fields(tc.line)...)
		require.Equal(t, client.ExitUsage, code, "%s: %s", tc.line, stderr)
		require.Empty(t, stdout, tc.line)
		require.Contains(t, stderr, tc.want, tc.line)
		require.Equal(t, 1, strings.Count(stderr, "\n"), "%s: %s", tc.line, stderr)
	}
	_, stderr, code := caprock([]string{"CAPROCK_DATADIR=/data"}, "start")
	require.Equal(t, client.ExitUsage, code)
	require.Contains(t, stderr, "CAPROCK_DATADIR is not a setting; the nearest one is CAPROCK_DATA_DIR")
}

func TestExitCodeSaysWhatHappened(t *testing.T) {
	for code, errs := range map[int][]error{
		0: {nil},
		1: {errors.New("any"), kv.Errorf(kv.CodeInternal, "bug")},
		2: {usageError{errors.New("flag")}, fmt.Errorf("wrapped: %w", usageError{errors.New("flag")}), kv.Errorf(kv.CodeBadQuorum, "w")},
		3: {kv.Errorf(kv.CodeKeyNotFound, "k")},
		4: {kv.Errorf(kv.CodeVersionMismatch, "v"), kv.Errorf(kv.CodeLevelFenced, "l")},
		5: {kv.Errorf(kv.CodeNoLeader, "l"), fmt.Errorf("wrapped: %w", kv.Errorf(kv.CodeNotReady, "l")), kv.Errorf(kv.CodeDeadlineExceeded, "t")},
		7: {kv.Errorf(kv.CodeDeadlineExceeded, "t").WithOutcome(kv.OutcomeUnknown)},
	} {
		for _, err := range errs {
			require.Equal(t, code, exitCode(err), "%v", err)
		}
	}
}

func TestEndpointsComeFromTheEnvironmentUnlessAFlagGivesThem(t *testing.T) {
	endpoints := func(environ []string, args ...string) []string {
		var c connection
		fs := pflag.NewFlagSet("get", pflag.ContinueOnError)
		c.addFlags(&app{environ: environ}, fs)
		require.NoError(t, fs.Parse(args))
		return c.endpoints
	}
	environ := []string{"CAPROCK_ENDPOINTS=10.0.0.1:9001,10.0.0.2:9001"}
	require.Equal(t, []string{"127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"}, endpoints(nil))
	require.Equal(t, []string{"10.0.0.1:9001", "10.0.0.2:9001"}, endpoints(environ))
	require.Equal(t, []string{"n1:9001"}, endpoints(environ, "--endpoints=n1:9001"))
	_, _, code := caprock([]string{"CAPROCK_ENDPOINTS=127.0.0.1:1"}, "get", "k", "--timeout=50ms")
	require.Equal(t, client.ExitUnavailable, code)
}

// Data goes to standard output in three forms that say the same.
func TestOutputFormatsSayTheSame(t *testing.T) {
	stdout, stderr, code := caprock(nil, "version", "-o", "json")
	require.Zero(t, code, stderr)
	require.JSONEq(t, `{"version":"unreleased","go":"`+runtime.Version()+`","platform":"`+runtime.GOOS+"/"+runtime.GOARCH+`"}`, stdout)
	stdout, _, code = caprock(nil, "version", "-o", "yaml")
	require.Zero(t, code)
	require.Equal(t, "version: unreleased\ngo: "+runtime.Version()+"\nplatform: "+runtime.GOOS+"/"+runtime.GOARCH+"\n", stdout)
	stdout, _, code = caprock(nil, "version")
	require.Zero(t, code)
	require.Contains(t, stdout, "caprock unreleased")
}

func TestYAMLKeepsWhatLooksLikeSomethingElse(t *testing.T) {
	value, found := "12", true
	d := document{Key: "yes", Value: &value, Version: 1<<63 + 1, Consistency: "strong", Found: &found}
	var out strings.Builder
	require.NoError(t, printYAML(&out, d))
	require.Equal(t, "key: \"yes\"\nvalue: \"12\"\nversion: 9223372036854775809\nconsistency: strong\nfound: true\n", out.String())
}

func TestBytesThatAreNoTextAreBase64(t *testing.T) {
	text, encoding := bytesText([]byte("grüß"))
	require.Equal(t, [2]string{"grüß", ""}, [2]string{text, encoding})
	text, encoding = bytesText([]byte{0xff, 0x00})
	require.Equal(t, [2]string{"/wA=", "base64"}, [2]string{text, encoding})
}

// Colour is for terminals whose user did not refuse it; a table in a file has no escapes.
func TestTablesInFilesHaveNoColour(t *testing.T) {
	var out strings.Builder
	a := &app{stdout: &out}
	require.False(t, a.coloured())
	printReadTable(a, document{Key: "k", Value: new(string), Settled: new(bool), Consistency: "strong"})
	require.Contains(t, out.String(), "KEY")
	require.NotContains(t, out.String(), "\x1b")
}
