package client

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

func TestBoundsTravelAndOddOnesAreRefused(t *testing.T) {
	var r request
	Bounded(1500 * time.Microsecond)(&r)
	require.Nil(t, r.refused)
	require.Equal(t, kv.LevelBounded, r.Level)
	require.Equal(t, time.Millisecond, r.MaxStaleness, "rounded to the stricter side")
	require.EqualValues(t, 1, operationOf(&r.Request).GetMaxStalenessMs())
	for _, odd := range []time.Duration{0, -time.Second, time.Microsecond, 2 * time.Hour} {
		var r request
		Bounded(odd)(&r)
		require.NotNil(t, r.refused, "%s", odd)
	}
	var out Result
	out.fill(&kvwire.Result{Level: kv.LevelBounded, StalenessMillis: 37}, nil)
	require.Equal(t, 37*time.Millisecond, out.Staleness)
	results := (&Client{}).batchResults(&kvpb.BatchRequest{}, &kvpb.BatchResponse{Results: []*kvpb.Result{{StalenessBoundMs: 5}}})
	require.Equal(t, 5*time.Millisecond, results[0].Staleness)
	require.Equal(t, 6*time.Millisecond, listResult(&kvpb.ListResponse{StalenessBoundMs: 6}).Staleness)
}
