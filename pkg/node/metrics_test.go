package node

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestDamagedRowsAreCountedAsViolationsOfConsistency(t *testing.T) {
	reg := prometheus.NewRegistry()
	n := &Node{}
	newMetrics(reg, n)
	const name = "kvstore_consistency_violations_total"
	text := func(value string) string {
		return "# HELP " + name + " Replicas found to hold another state than a majority at the same position of the log, " +
			"checks in which no majority agreed, and eventual rows found lost or damaged.\n# TYPE " + name + " counter\n" + name + " " + value + "\n"
	}
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(text("0")), name))
	n.rowsDamaged.Add(3)
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(text("3")), name))
}
