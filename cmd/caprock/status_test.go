package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

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
