package consensus

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
)

func TestCoveredIDsAreKeptAsLongAsTheirWritesMayComeAgain(t *testing.T) {
	const minute = 60 * 1000
	e := Committed{Time: causal.MakeHLC(1_000*minute, 0)}
	ids := func(n int, age int64) (out []causal.Dot) {
		for i := range n {
			out = append(out, causal.Dot{Node: 1, Time: causal.MakeHLC(e.Time.Millis()-age, uint16(i))})
		}
		return out
	}
	more := ids(1, 0)
	require.Len(t, cover(ids(coveredKept-1, 600*minute), more, true, e), coveredKept, "some are kept whatever their age")
	require.Len(t, cover(ids(1000, 14*minute), more, true, e), 1001)
	require.Len(t, cover(ids(1000, 16*minute), more, true, e), coveredKept)
	require.Len(t, cover(ids(1000, 16*minute), more, false, e), 1001, "an entry that names versions by their ids forgets later")
	require.Len(t, cover(ids(1000, 300*minute), more, false, e), coveredKept)
	require.Len(t, cover(ids(9000, minute), more, true, e), 9001, "none while its request may run")
	require.Len(t, cover(ids(9000, 2*minute), more, true, e), settledMany)
}
