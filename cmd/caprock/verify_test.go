package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/verify"
	"github.com/caprockdb/caprock/pkg/verify/live"
)

func TestMistakesInAVerificationAreUsageErrorsThatNameWhatIsPossible(t *testing.T) {
	for _, tc := range []struct {
		line string
		want string
	}{
		{"--nemesis partition,kil", `"kil" is not a nemesis; the nemeses are none, partition, `},
		{"--nemesis what", "disk-full, disk-error, wipe, all"},
		{"--workload regster", `"regster" is not a workload; the workloads are register, cas`},
		{"--nemesis kill --endpoints http://a:1,http://b:1", `"kill" needs control over the processes`},
		{"--endpoints localhost:8081", "is not of the form http://host:port"},
		{"--nodes 0", "0 nodes: choose 1 to 9"},
		{"--nodes 1 --nemesis partition", "needs at least 2 nodes"},
		{"--network tc", "choose injector or netns"},
		{"--duration 10ms", "at least 1s"},
		{"-o xml", "choose table, json, yaml"},
		{"now", `unknown command "now"`},
	} {
		stdout, stderr, code := caprock(nil, append([]string{"verify"}, strings.Fields(tc.line)...)...)
		require.Equal(t, client.ExitUsage, code, "%s: %s", tc.line, stderr)
		require.Empty(t, stdout, tc.line)
		require.Contains(t, stderr, tc.want, tc.line)
		require.Equal(t, 1, strings.Count(stderr, "\n"), "%s: %s", tc.line, stderr)
	}
}

func TestTheVerdictSaysWhatHappenedAndWhatWasFound(t *testing.T) {
	var stdout strings.Builder
	require.NoError(t, printVerdict(&app{stdout: &stdout}, live.Report{
		Workload: "register", Operations: 12, Faults: 1, LeaderChanges: 2, Seed: 7,
		Timeline: []live.Event{
			{Fault: live.Kill, Nodes: []string{"n1"}, From: 1, To: 2, Effect: "n1 killed"},
			{Fault: live.Pause, Nodes: []string{"n2"}, From: 3, To: 4, Error: "it answers"},
		},
		Anomalies: []verify.Anomaly{{Checker: "linearizable", Kind: "stale read", Key: "k", Text: "5 after 6"}},
	}))
	for _, want := range []string{"NOT VALID", "n1 killed", "FAILED: it answers", "stale read", "5 after 6"} {
		require.Contains(t, stdout.String(), want)
	}
}

func TestProgressIsDrawnWithinItsWidth(t *testing.T) {
	for want, p := range map[string]live.Progress{
		"[" + strings.Repeat(".", 24) + "] starting  0 operations  0 faults":                          {Phase: "starting"},
		"[" + strings.Repeat("#", 12) + strings.Repeat(".", 12) + "] running  5 operations  1 faults": {Phase: "running", Elapsed: 30 * time.Second, Operations: 5, Faults: 1},
		"[" + strings.Repeat("#", 24) + "] checking  9 operations  0 faults":                          {Phase: "checking", Elapsed: time.Hour, Operations: 9},
	} {
		require.Equal(t, want, progressLine(p, time.Minute))
	}
	require.Nil(t, newProgressBar(&app{stderr: &strings.Builder{}}, time.Minute).update(), "where there is no terminal there is no bar")
}
