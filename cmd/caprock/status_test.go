package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
)

func TestStatusShowsTheHintsOfEveryNodeThatAnswered(t *testing.T) {
	var out bytes.Buffer
	report := statusReport{
		Status: json.RawMessage(`{"node":"n1"}`),
		Hints: []hintReport{
			{Holder: "n1", Target: "n3", Hints: 12, Bytes: 3456, Oldest: 61.4}, {Holder: "n2", Target: "n3", Hints: 7, Bytes: 89, Oldest: 0.2},
		},
	}
	require.NoError(t, printStatus(&app{stdout: &out}, report))
	for _, want := range []string{"HINTS KEPT BY", "n1", "n2", "n3", "12", "3456", "1m1s"} {
		require.Contains(t, out.String(), want)
	}
	out.Reset()
	report.Hints = nil
	require.NoError(t, printStatus(&app{stdout: &out}, report))
	require.NotContains(t, out.String(), "HINTS")
}

func TestHintedAcknowledgementsAreShownApart(t *testing.T) {
	d := newDocument("k", client.Result{Acks: 3, Hinted: 1})
	d.written(client.Result{Acks: 3, Hinted: 1})
	require.Equal(t, "3 (1 hinted)", d.acks())
	d.written(client.Result{Acks: 2})
	require.Equal(t, "2", d.acks())
}

func TestStatusNamesTheReplicasThatHeal(t *testing.T) {
	var out bytes.Buffer
	report := statusReport{
		Status:     json.RawMessage(`{"node":"n1"}`),
		Partitions: []partitionReport{{Partition: 3, Replicas: []string{"n1", "n2", "n3"}, Leader: "n1", Healing: []string{"n2"}}},
	}
	require.NoError(t, printStatus(&app{stdout: &out}, report))
	require.Contains(t, out.String(), "n1 n2 (healing) n3")
	for state, heals := range map[string]bool{"ok": false, "healing": true, "quarantined": true, "": false} {
		p := partitionReport{Repair: &repairReport{State: state}}
		require.Equal(t, heals, p.heals(), state)
	}
	require.False(t, (&partitionReport{}).heals(), "the node that was asked holds no replica")
}
